"""Files of Arena-Hard and MT-Bench: what is in them is what is read, and a wrong one is refused by file and line."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import Question, answers_to, read_answers, read_questions

FILES = Path(__file__).parent / "field_files"
Rows = list[dict[str, Any]]


def rows_of(name: str) -> Rows:
    lines = (FILES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_questions_of_arena_hard_are_read():
    first, second = read_questions(FILES / "arena_hard_questions.jsonl")
    assert first == Question("3f1c0a77", "hard_prompt", ("Reverse a list in Python.\nKeep the original.",))
    assert (second.category, second.turns) == ("creative_writing", ("Write one line about rain – in Breton.",))
    assert second.place == f"{FILES / 'arena_hard_questions.jsonl'}:2"
    (older,) = read_questions(FILES / "older_arena_hard_questions.jsonl")
    assert older == Question("328c149e", "arena-hard-v0.1", ("Write a melody in ABC notation.",))


def test_questions_of_mt_bench_have_turns():
    writing, maths = read_questions(FILES / "mt_bench_questions.jsonl")
    assert (writing.id, maths.turns) == ("81", ("What is 3 * 7?", "And twice that?"))
    assert [message["content"] for message in maths.messages()] == ["What is 3 * 7?"]
    assert maths.messages(["21"]) == [
        {"role": "user", "content": "What is 3 * 7?"},
        {"role": "assistant", "content": "21"},
        {"role": "user", "content": "And twice that?"},
    ]


def test_answers_of_every_form_are_read():
    by_id = {answer.question_id: answer for answer in read_answers(FILES / "arena_hard_answers.jsonl")}
    assert (by_id["3f1c0a77"].model, by_id["3f1c0a77"].turns) == ("policy", ("items[::-1]",))
    (older,) = read_answers(FILES / "older_arena_hard_answers.jsonl")
    assert (older.question_id, older.model, older.turns) == ("328c149e", "policy", ("X:1\nK:D\nDFA",))
    # The first choice counts.
    travel, maths = read_answers(FILES / "mt_bench_answers.jsonl")
    assert (travel.question_id, travel.turns, maths.turns) == ("81", ("I travel.", "I travelled."), ("21", "42"))


def test_an_empty_answer_is_an_answer():
    answers = read_answers(FILES / "arena_hard_baseline.jsonl")
    assert [answer.turns for answer in answers] == [("Use `list(reversed(items))`.",), ("",)]


def test_a_plain_file_is_a_file_of_questions_and_of_answers():
    file = FILES / "plain_answers.jsonl"
    questions, answers = read_questions(file), read_answers(file)
    assert answers_to(questions, answers) == answers
    assert [answer.model for answer in answers] == ["plain_answers"] * 2
    assert questions[1].id == "12"
    assert [message["role"] for message in questions[1].messages()] == ["system", "user"]
    assert answers[1].place.endswith("plain_answers.jsonl:3")


def test_a_prompt_without_an_id_is_found_again_in_another_file_and_order(write):
    prompts = ["one", "two"]
    policy = write([{"prompt": text, "answer": "x"} for text in prompts], "policy.jsonl")
    baseline = write([{"prompt": text, "answer": f"re {text}"} for text in reversed(prompts)], "baseline.jsonl")
    paired = answers_to(read_questions(policy), read_answers(baseline))
    assert [answer.turns for answer in paired] == [("re one",), ("re two",)]


def test_text_with_odd_line_ends_and_a_byte_order_mark_stays_whole(tmp_path):
    text = "a\u2028b\u0085c\x0bd"
    file = tmp_path / "odd.jsonl"
    row = json.dumps({"prompt": text, "answer": text}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n\r\n")
    assert read_answers(file)[0].turns == (text,)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(read: Callable[[Path], Any], path: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(str(path)), said
    assert re.search(message, said), said
    assert said.endswith("."), said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b'{"uid": "a"', r":1: not JSON"),
        (b'{"prompt": "p", "answer": "a"}\n{"prompt": ', r":2: not JSON"),
        (b'[\n{"prompt": "p"}\n]', r":1: not JSON"),
        (b'{"prompt": "p", "answer": "a"}\n["q"]', r":2: .* is no JSON object"),
        (b'{"prompt": "p", "answer": NaN}', r":1: not JSON: NaN"),
        (b'{"prompt": "\xff"}', r":1: not UTF-8"),
        (b'{"text": "p"}', r":1: the keys are text\. A row has the keys uid, "),
        (b"{}", r":1: the keys are none"),
    ],
)
def test_what_is_no_file_of_the_field_is_refused(tmp_path, content, message):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    refused(read_answers, file, message)


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused(read_questions, tmp_path / "absent.jsonl", "no such file")
    refused(read_questions, tmp_path, "cannot be read")


def change(name: str, path: str, value: Any) -> Rows:
    """The golden rows with one value set in the last, or taken out where `value` is KeyError."""
    rows = rows_of(name)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = rows[-1]
    for part in above:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return rows


@pytest.mark.parametrize(
    ("read", "name", "path", "value", "message"),
    [
        (
            read_questions,
            "arena_hard_questions",
            "prompt",
            KeyError,
            r":2: prompt is missing\. Such a row has the keys",
        ),
        (read_questions, "arena_hard_questions", "prompt", "", r":2: prompt is \"\""),
        (read_questions, "arena_hard_questions", "uid", None, ":2: uid is null"),
        (read_questions, "arena_hard_questions", "uid", True, ":2: uid is true"),
        (read_questions, "arena_hard_questions", "category", 3, ":2: category is 3"),
        (read_questions, "mt_bench_questions", "turns", [], r":2: turns is \[\]"),
        (read_questions, "mt_bench_questions", "turns.1", 5, r":2: turns\.1 is 5"),
        (read_questions, "plain_answers", "prompt", [], r":2: prompt is \[\]: a prompt ends with"),
        (read_questions, "plain_answers", "prompt.1.role", "assistant", ":2: .*a prompt ends with"),
        (read_questions, "plain_answers", "prompt.1.role", "robot", r":2: prompt\.1\.role is \"robot\""),
        (read_answers, "arena_hard_answers", "model", KeyError, ":2: model is missing"),
        (read_answers, "arena_hard_answers", "messages", [], r":2: messages is \[\]: the last message"),
        (read_answers, "arena_hard_answers", "messages.2.role", "user", ":2: .*the last message must be the model's"),
        (read_answers, "arena_hard_answers", "messages.2.content", {}, r":2: messages\.2\.content is \{\}"),
        (read_answers, "mt_bench_answers", "choices", [], r":2: choices is \[\]"),
        (read_answers, "mt_bench_answers", "choices.0.turns.0", None, r":2: choices\.0\.turns\.0 is null"),
        (read_answers, "plain_answers", "answer", KeyError, ":2: answer is missing"),
    ],
)
def test_a_wrong_value_is_refused_by_line_and_key(write, read, name, path, value, message):
    refused(read, write(change(name, path, value)), message)


@pytest.mark.parametrize(
    ("read", "name", "path", "value", "message"),
    [
        (read_questions, "arena_hard_questions", "uid", "3f1c0a77", r":2: question '3f1c0a77' stands in .*:1 already"),
        (read_answers, "arena_hard_answers", "uid", "9be204d1", r":2: an answer to '9be204d1' stands in .*:1 already"),
        (read_answers, "arena_hard_answers", "model", "other", r":2: the model is 'other', but 'policy' in .*:1\."),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(write, read, name, path, value, message):
    refused(read, write(change(name, path, value)), message)


def test_ids_are_one_whether_written_as_a_number_or_as_text(write):
    rows = change("mt_bench_questions", "question_id", "81")
    refused(read_questions, write(rows), ":2: question '81' stands in")


def test_two_forms_in_one_file_are_refused(write):
    rows = rows_of("arena_hard_questions")[:1] + rows_of("mt_bench_questions")[:1]
    refused(read_questions, write(rows), ":2: the rows before have the keys uid, category, prompt")


@pytest.fixture
def asked():
    return read_questions(FILES / "arena_hard_questions.jsonl")


def mismatch(questions, answers, message: str) -> None:
    with pytest.raises(InputError, match=message):
        answers_to(questions, answers)


def test_answers_stand_in_the_order_of_the_questions(asked):
    answers = answers_to(asked, read_answers(FILES / "arena_hard_answers.jsonl"))
    assert [answer.question_id for answer in answers] == ["3f1c0a77", "9be204d1"]


def test_answers_to_other_questions_are_refused(asked):
    answers = read_answers(FILES / "arena_hard_answers.jsonl")
    mismatch(asked[:1], answers, r"answers\.jsonl:1: this answers '9be204d1', which is none of the questions of .*ns\.")
    mismatch(asked, answers[:1], r"answers\.jsonl has no answer to 1 of 2 questions, the first '3f1c0a77' \(.*:1\)")
    mismatch(asked, [replace(answers[0], turns=("a", "b"))], "the answer has 2 turns, but .*:2 asks for 1")


def test_an_answer_to_another_prompt_under_the_same_id_is_refused(write, asked):
    rows = change("arena_hard_answers", "messages.1.content", "Reverse a tuple.")
    mismatch(asked, read_answers(write(rows)), r"mine\.jsonl:2: this answers another prompt than .*questions\.jsonl:1")


def test_a_baseline_with_other_prompts_than_the_policy_is_refused(write):
    policy = write([{"prompt": "one", "answer": "x"}], "policy.jsonl")
    baseline = write([{"prompt": "two", "answer": "y"}], "baseline.jsonl")
    mismatch(read_questions(policy), read_answers(baseline), r"baseline\.jsonl:1: .* questions of .*policy\.jsonl")
