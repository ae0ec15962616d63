"""A run in MT-Bench's schema: what is written is read back, and FastChat's rules give the rates that we give."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import answers_to, read_answers, read_questions, read_ratings
from slime_ray.evaluation.field_files.export_mt_bench import CATEGORY, export_mt_bench
from slime_ray.evaluation.verdicts import POINTS_OF_A
from slime_ray.evaluation.win_rate import Comparison

from .exported_runs import add_trial, load

CONTEXT = [{"role": "user", "content": "What is 3 * 7?"}]
LATER = [*CONTEXT, {"role": "assistant", "content": "21"}, {"role": "user", "content": "And twice that?"}]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def test_a_run_of_two_turns_becomes_the_files_that_fastchat_reads(tmp_path):
    add_maths(tmp_path / "run", "arm-full-s0")
    out = tmp_path / "out"
    said = str(export_mt_bench(load(tmp_path / "run"), out))
    assert said == f"{out}: 1 questions, answers of 1 trials and the baseline, judgments of 1."
    judge = next((out / "model_judgment").glob("*_pair.jsonl")).name.removesuffix("_pair.jsonl")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
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
    ratings = lines(out / "model_judgment" / f"{judge}_single.jsonl")
    assert [(row["model"], row["turn"], row["score"]) for row in ratings] == [
        ("arm-full-s0", 1, 9.0), ("arm-full-s0", 2, -1), ("baseline", 1, 2.0), ("baseline", 2, 3.5)
    ]  # fmt: skip
    assert {row["question_id"] for row in ratings} == {81}


def test_what_is_written_is_read_back(tmp_path):
    add_maths(tmp_path / "run", "arm-full-s0")
    add_maths(tmp_path / "run", "arm-full-s1", answers=("22", "44"))
    out = tmp_path / "out"
    export_mt_bench(load(tmp_path / "run"), out)
    questions = read_questions(out / "question.jsonl")
    assert [(question.id, question.turns) for question in questions] == [("81", ("What is 3 * 7?", "And twice that?"))]
    for model, turns in (("arm-full-s1", ("22", "44")), ("baseline", ("20", "40"))):
        (answer,) = answers_to(questions, read_answers(out / "model_answer" / f"{model}.jsonl"))
        assert answer.turns == turns
    (single,) = (out / "model_judgment").glob("*_single.jsonl")
    ratings = read_ratings(single)
    assert {rating.judge for rating in ratings} == {"llm:gpt-4"}
    # The baseline's stand there once.
    assert [(rating.model, rating.score) for rating in ratings] == [
        ("arm-full-s0", 9.0), ("arm-full-s0", None), ("baseline", 2.0), ("baseline", 3.5),
        ("arm-full-s1", 9.0), ("arm-full-s1", None),
    ]  # fmt: skip


def pairwise_rate(path: Path, model: str) -> float:
    """FastChat's `win_rate_adjusted` by hand: rows with an error are left out, and two verdicts that differ are a tie."""
    points = []
    for row in lines(path):
        first, second = row["g1_winner"], row["g2_winner"]
        if row["model_1"] == model and "error" not in (first, second):
            points.append(0.5 if first == "tie" or first != second else float(first == "model_1"))
    return sum(points) / len(points)


decisive = st.sampled_from([(a, b) for a in POINTS_OF_A for b in POINTS_OF_A if "=" not in a + b] + [("A=B", "A=B")])


@settings(max_examples=25, deadline=None)
@given(st.lists(decisive, min_size=1, max_size=8))
def test_fastchats_rule_on_the_files_gives_our_win_rate(verdicts):
    """Where no verdict is invalid and none a tie in one order alone, of which FastChat makes a whole tie."""
    with tempfile.TemporaryDirectory() as folder:
        add_trial(Path(folder, "run"), "arm-x-s0", verdicts)
        export_mt_bench(load(Path(folder, "run")), Path(folder, "out"))
        ours = [Comparison(*both).outcome for both in verdicts]
        file = Path(folder, "out", "model_judgment", "exact_pair.jsonl")
        assert pairwise_rate(file, "arm-x-s0") == pytest.approx(sum(ours) / len(ours))


def test_scores_that_are_no_ratings_and_prompts_without_a_category(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")], score=11.0, baseline_score=3.0)
    add_trial(tmp_path / "run", "arm-y-s0", [("A>B", "B>A")], baseline_answer="another", judge="none")
    out = tmp_path / "out"
    exported = export_mt_bench(load(tmp_path / "run"), out)
    assert (exported.models, exported.judged) == (2, 1)
    assert [path.name for path in (out / "model_judgment").iterdir()] == ["exact_pair.jsonl"]
    assert lines(out / "question.jsonl")[0]["category"] == CATEGORY
    assert lines(out / "question.jsonl")[0]["question_id"] == "p0"
    assert lines(out / "model_answer" / "baseline-2.jsonl")[0]["choices"][0]["turns"] == ["another"]


def test_a_run_without_answers_is_refused_and_files_of_others_stay(tmp_path):
    add_trial(tmp_path / "run", "arm-lost-s0", [])
    with pytest.raises(InputError, match="no trial has answers"):
        export_mt_bench(load(tmp_path / "run"), tmp_path / "out")
    add_maths(tmp_path / "run", "arm-full-s0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "question.jsonl").write_text("theirs")
    with pytest.raises(InputError, match=r"question\.jsonl is there already"):
        export_mt_bench(load(tmp_path / "run"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["question.jsonl"]


def test_the_command_writes_either_form_and_says_which_has_room_for_turns(tmp_path, capsys):
    add_maths(tmp_path / "run", "arm-full-s0")
    load(tmp_path / "run")
    command = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "--form mt-bench" in capsys.readouterr().err
    assert cli.main([*command, "--form", "mt-bench"]) == 0
    assert (tmp_path / "out" / "model_answer" / "arm-full-s0.jsonl").exists()
