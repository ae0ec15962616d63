"""A run as files of Arena-Hard and MT-Bench: what is written is read back, and their scripts' rules give our rates."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import answers_to, read_answers, read_questions
from slime_ray.evaluation.field_files.exporting import GENERAL, HARD_PROMPT, Form, export_run
from slime_ray.evaluation.verdicts import POINTS_OF_A, Comparison
from slime_ray.runs import results, schema

from .test_judgments import BATTLES

CONTEXT = [{"role": "user", "content": "What is 3 * 7?"}]
LATER = [*CONTEXT, {"role": "assistant", "content": "21"}, {"role": "user", "content": "And twice that?"}]


def add_trial(
    run: Path,
    trial_id: str,
    verdicts: Sequence[tuple[str | None, str | None]],
    *,
    answer: str = "a",
    each: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> None:
    """A finished trial: `verdicts` of each prompt, with the policy as A and as B. each: other columns, a row a prompt."""
    judge = changes.pop("judge", "exact")
    about = {"trial_id": trial_id, "label": trial_id, "phase": "arm", "seed": 0}
    answers = [
        dict.fromkeys(schema.ANSWER_SCHEMA.names)
        | about
        | {
            "prompt_set": "report",
            "prompt_id": f"p{number}",
            "prompt": [{"role": "user", "content": f"question {number}\u2028é"}],
            "answer": f"{answer} {number}",
            "answer_tokens": 3,
            "baseline_answer": f"baseline {number}",
            "baseline_tokens": 2,
            "verdict_ab": ab,
            "verdict_ba": ba,
            "outcome": Comparison(ab, ba).outcome,  # type: ignore[arg-type]
        }
        | changes
        | (each[number] if each else {})
        for number, (ab, ba) in enumerate(verdicts)
    ]
    row = results.trial_row(**about, status="completed", judge=judge, overrides={}, settings={})
    results.write_trial(run, row=row, answers=answers, curves=[])


def add_maths(run: Path, trial_id: str, *, answers: tuple[str, str] = ("21", "42"), **changes: Any) -> None:
    """A trial that was asked question 81 with both its turns."""
    turns = [
        {"prompt": CONTEXT, "turn": 1, "answer": answers[0], "baseline_answer": "20", "score": 9.0, "baseline_score": 2.0},
        {"prompt": LATER, "turn": 2, "answer": answers[1], "baseline_answer": "40", "score": None, "baseline_score": 3.5},
    ]  # fmt: skip
    add_trial(
        run, trial_id, [("A>B", "B>A"), ("A>B", None)], each=turns, prompt_id="81", category="math",
        **{"judge": "llm:gpt-4", **changes},
    )  # fmt: skip


def load(run: Path) -> results.Run:
    results.write_manifest(run, {"schema": schema.RUN_SCHEMA})
    return results.load(run)


def export(folder: Path, form: Form = "arena-hard") -> str:
    return export_run(load(folder / "run"), folder / "out", form)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_becomes_the_files_that_arena_hard_reads(tmp_path):
    add_trial(tmp_path / "run", "arm-full-s0", [("A>>B", "B>A"), ("A=B", "A>B")])
    add_trial(tmp_path / "run", "arm-full-s1", [("B>A", "A>B"), (None, "A=B")], answer="b")
    out = tmp_path / "out"
    assert export(tmp_path) == f"{out}: 2 questions, answers of 2 trials and the baseline, judgments of 2."
    assert names(out) == [
        "model_answer/arm-full-s0.jsonl",
        "model_answer/arm-full-s1.jsonl",
        "model_answer/baseline.jsonl",
        "model_judgment/exact/arm-full-s0.jsonl",
        "model_judgment/exact/arm-full-s1.jsonl",
        "question.jsonl",
    ]
    prompt = "question 0\u2028é"
    assert lines(out / "question.jsonl")[0] == {"uid": "p0", "category": HARD_PROMPT, "prompt": prompt}
    answer = lines(out / "model_answer" / "arm-full-s1.jsonl")[0]
    assert len(answer.pop("ans_id")) == 22
    assert answer == {
        "uid": "p0",
        "model": "arm-full-s1",
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": "b 0"}}],
        "metadata": {"token_len": 3},
    }
    # The policy is much better as A (game 2), and better as B (game 1).
    assert lines(out / "model_judgment" / "exact" / "arm-full-s0.jsonl")[0] == {
        "uid": "p0",
        "category": HARD_PROMPT,
        "judge": "exact",
        "model": "arm-full-s0",
        "baseline": "baseline",
        "games": [{"score": "B>A"}, {"score": "A>>B"}],
    }
    assert lines(out / "model_judgment" / "exact" / "arm-full-s1.jsonl")[1]["games"] == [
        {"score": "A=B"},
        {"score": None},
    ]


def test_questions_of_arena_hard_keep_their_category(tmp_path):
    for prompt, category in (("a", "creative_writing"), ("b", None)):
        add_trial(tmp_path / "run", f"arm-{prompt}-s0", [("A>B", "B>A")], prompt_id=prompt, category=category)
    export(tmp_path)
    expected = {"a": "creative_writing", "b": HARD_PROMPT}
    out = tmp_path / "out"
    for rows in (lines(out / "question.jsonl"), *map(lines, sorted(out.glob("model_judgment/*/*.jsonl")))):
        assert [row["category"] for row in rows] == [expected[row["uid"]] for row in rows]


def test_a_run_of_two_turns_becomes_the_files_that_fastchat_reads(tmp_path):
    add_maths(tmp_path / "run", "arm-full-s0")
    out = tmp_path / "out"
    assert export(tmp_path, "mt-bench") == f"{out}: 1 questions, answers of 1 trials and the baseline, judgments of 1."
    judge = next((out / "model_judgment").glob("*_pair.jsonl")).name.removesuffix("_pair.jsonl")
    assert names(out) == [
        "model_answer/arm-full-s0.jsonl",
        "model_answer/baseline.jsonl",
        f"model_judgment/{judge}_pair.jsonl",
        f"model_judgment/{judge}_single.jsonl",
        "question.jsonl",
    ]
    assert lines(out / "question.jsonl") == [
        {"question_id": 81, "category": "math", "turns": ["What is 3 * 7?", "And twice that?"]}
    ]
    (answer,) = lines(out / "model_answer" / "arm-full-s0.jsonl")
    assert len(answer.pop("answer_id")) == 22
    assert answer == {"question_id": 81, "model_id": "arm-full-s0", "choices": [{"index": 0, "turns": ["21", "42"]}]}
    about = {"question_id": 81, "model_1": "arm-full-s0", "model_2": "baseline", "judge": ["llm:gpt-4", "pair"]}
    assert lines(out / "model_judgment" / f"{judge}_pair.jsonl") == [
        {**about, "g1_winner": "model_1", "g2_winner": "model_1", "turn": 1},
        {**about, "g1_winner": "model_1", "g2_winner": "error", "turn": 2},
    ]


def test_what_is_written_in_either_form_is_read_back(tmp_path):
    add_maths(tmp_path / "run", "arm-full-s0")
    add_maths(tmp_path / "run", "arm-full-s1", answers=("22", "44"))
    out = tmp_path / "out"
    export(tmp_path, "mt-bench")
    questions = read_questions(out / "question.jsonl")
    assert [(question.id, question.turns) for question in questions] == [("81", ("What is 3 * 7?", "And twice that?"))]
    for model, turns in (("arm-full-s1", ("22", "44")), ("baseline", ("20", "40"))):
        (answer,) = answers_to(questions, read_answers(out / "model_answer" / f"{model}.jsonl"))
        assert answer.turns == turns
    (single,) = (out / "model_judgment").glob("*_single.jsonl")
    # The baseline's ratings stand there once.
    assert [(row["question_id"], row["model"], row["turn"], row["score"]) for row in lines(single)] == [
        (81, "arm-full-s0", 1, 9.0), (81, "arm-full-s0", 2, -1), (81, "baseline", 1, 2.0), (81, "baseline", 2, 3.5),
        (81, "arm-full-s1", 1, 9.0), (81, "arm-full-s1", 2, -1),
    ]  # fmt: skip
    # A prompt of several messages is one text with their roles.
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    add_trial(tmp_path / "other" / "run", "arm-x-s0", [("A>B", "B>A")], prompt=messages)
    export(tmp_path / "other")
    (question,) = read_questions(tmp_path / "other" / "out" / "question.jsonl")
    assert question.turns == ("system: Be brief.\n\nuser: Why?",)
    assert answers_to([question], read_answers(tmp_path / "other" / "out" / "model_answer" / "arm-x-s0.jsonl"))


def arena_hard_score(path: Path) -> float:
    """Arena-Hard's rule by hand: 3 votes for a `>>`, 1 for all else; game 2 has the model as A, game 1 as B; a prompt
    with a missing score is left out; the score is the mean of the votes.
    """
    as_a = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
    votes: list[float] = []
    for row in lines(path):
        first, second = (game["score"] for game in row["games"])
        if first is not None and second is not None:
            votes += as_a[second] + [1 - vote for vote in as_a[first]]
    return sum(votes) / len(votes)


def test_published_judgments_give_arena_hards_published_votes(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [(second, first) for (first, second), _ in BATTLES.values()])
    export(tmp_path)
    file = tmp_path / "out" / "model_judgment" / "exact" / "arm-x-s0.jsonl"
    assert arena_hard_score(file) == pytest.approx(23 / 34)


def fastchat_rate(path: Path, model: str) -> float:
    """FastChat's `win_rate_adjusted` by hand: rows with an error are left out, and two verdicts that differ are a tie."""
    points = []
    for row in lines(path):
        first, second = row["g1_winner"], row["g2_winner"]
        if row["model_1"] == model and "error" not in (first, second):
            points.append(0.5 if first == "tie" or first != second else float(first == "model_1"))
    return sum(points) / len(points)


decisive = st.sampled_from([(a, b) for a in POINTS_OF_A for b in POINTS_OF_A if "=" not in a + b] + [("A=B", "A=B")])


@settings(max_examples=10)
@given(st.lists(decisive, min_size=1, max_size=8))
def test_fastchats_rule_on_the_files_gives_our_win_rate(verdicts):
    """Where no verdict is invalid and none a tie in one order alone, of which FastChat makes a whole tie."""
    with tempfile.TemporaryDirectory() as folder:
        add_trial(Path(folder, "run"), "arm-x-s0", verdicts)
        export(Path(folder), "mt-bench")
        ours = [Comparison(*both).outcome for both in verdicts]
        file = Path(folder, "out", "model_judgment", "exact_pair.jsonl")
        assert fastchat_rate(file, "arm-x-s0") == pytest.approx(sum(ours) / len(ours))


def test_names_that_files_cannot_have_are_told_apart_and_kept_inside(tmp_path):
    for judge in ("exakt [é]", "exakt (é)"):
        add_trial(tmp_path / "run", f"arm-{judge}-s0", [("A>B", "B>A")], judge=judge)
    export(tmp_path)
    files = list((tmp_path / "out" / "model_judgment").rglob("*.jsonl"))
    assert len({file.parent for file in files}) == 2
    assert {lines(file)[0]["judge"] for file in files} == {"exakt [é]", "exakt (é)"}


@pytest.mark.parametrize("judge", ["none", None])
def test_a_run_that_was_not_judged_has_answers_and_no_judgments(tmp_path, judge):
    add_trial(tmp_path / "run", "arm-x-s0", [(None, None)], judge=judge)
    assert export(tmp_path).endswith("answers of 1 trials and the baseline, no judgments, for no answer was judged.")
    assert not (tmp_path / "out" / "model_judgment").exists()


def test_a_trial_without_answers_is_left_out_and_a_run_of_such_is_refused(tmp_path):
    add_trial(tmp_path / "run", "arm-lost-s0", [])
    with pytest.raises(InputError, match="no trial has answers"):
        export(tmp_path)
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    assert "answers of 1 trials" in export(tmp_path)


def test_baselines_that_differ_are_different_models(tmp_path):
    add_trial(tmp_path / "run", "arm-a-s0", [("A>B", "B>A")])
    add_trial(tmp_path / "run", "arm-b-s0", [("A>B", "B>A")], baseline_answer="another")
    add_trial(tmp_path / "run", "arm-c-s0", [("A>B", "B>A"), ("A=B", "A=B")])
    add_trial(tmp_path / "run", "baseline", [("A>B", "B>A")])
    out = tmp_path / "out"
    export(tmp_path)
    judged = {path.stem: lines(path)[0]["baseline"] for path in (out / "model_judgment" / "exact").iterdir()}
    # A trial has the name "baseline", which no baseline may have then.
    assert judged == {
        "arm-a-s0": "baseline-2", "arm-b-s0": "baseline-3", "arm-c-s0": "baseline-2", "baseline": "baseline-2"
    }  # fmt: skip
    assert len(lines(out / "model_answer" / "baseline-2.jsonl")) == 2
    assert lines(out / "model_answer" / "baseline-3.jsonl")[0]["messages"][-1]["content"] == {"answer": "another"}


def test_lengths_that_are_not_known_are_not_written(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")], answer_tokens=None)
    export(tmp_path)
    assert lines(tmp_path / "out" / "model_answer" / "arm-x-s0.jsonl")[0]["metadata"] == {}


def test_scores_that_are_no_ratings_and_prompts_without_a_category(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")], score=11.0, baseline_score=3.0)
    add_trial(tmp_path / "run", "arm-y-s0", [("A>B", "B>A")], baseline_answer="another", judge="none")
    out = tmp_path / "out"
    assert export(tmp_path, "mt-bench").endswith("answers of 2 trials and the baseline, judgments of 1.")
    assert [path.name for path in (out / "model_judgment").iterdir()] == ["exact_pair.jsonl"]
    question = lines(out / "question.jsonl")[0]
    assert (question["category"], question["question_id"]) == (GENERAL, "p0")
    assert lines(out / "model_answer" / "baseline-2.jsonl")[0]["choices"][0]["turns"] == ["another"]


def test_exporting_again_changes_nothing_and_a_run_that_grew_adds_its_trials(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    export(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    add_trial(tmp_path / "run", "arm-x-s1", [("A>B", "B>A")])
    export(tmp_path)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_files_of_others_are_left_as_they_are_and_nothing_is_written_beside_them(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    theirs = tmp_path / "out" / "model_judgment" / "exact" / "arm-x-s0.jsonl"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(InputError, match=r"arm-x-s0\.jsonl is there already and holds something else"):
        export(tmp_path)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "theirs"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out.* cannot be written"):
        export(tmp_path)


def test_the_command_writes_either_form_and_says_which_has_room_for_turns(tmp_path, capsys):
    add_maths(tmp_path / "run", "arm-full-s0")
    load(tmp_path / "run")
    command = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "arm-full-s0 has 2 answers to 1 prompts" in (said := capsys.readouterr().err)
    assert "--form mt-bench" in said
    assert cli.main([*command, "--form", "mt-bench"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: 1 questions, answers of 1 trials")
    assert (tmp_path / "out" / "model_answer" / "arm-full-s0.jsonl").exists()
    assert cli.main(["export", str(tmp_path / "out"), "--to", str(tmp_path / "again")]) == 2
    assert "is not a run" in capsys.readouterr().err
