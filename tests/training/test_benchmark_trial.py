"""A whole trial on questions of a file: two turns, on one rank and on several, and a file that has changed."""

import json
from pathlib import Path

import pandas as pd
import pytest

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training.stages import prepare
from slime_ray.training.worker import run_trial

from . import trial_worker

TEXT = """\
name: asked
preset: arithmetic
base:
  data: {{sft_examples: 200, pairs: 40, held_out_pairs: 24}}
  sft: {{updates: 10}}
  training: {{updates: 4, pairs_per_update: 16, evaluations: 1}}
  evaluation:
    questions: {questions}
    selection_prompts: 6
    kl_prompts: 4
    decoding: {{temperature: 0.0, temperatures: {{stem: 0.7}}, max_new_tokens: 12, batch: 2}}
arms: {{slime: {{}}}}
"""
ASKED = [row[0]["content"] for row in load_task("arithmetic").prompts(12, purpose="report", seed=0)["prompt"]]
CATEGORIES = ("math", "stem", "math", "stem", "math")


def write_questions(path: Path, first: int = 0) -> None:
    """Five questions, of which the last has one turn."""
    rows = [
        {"question_id": 81 + n, "category": category, "turns": ASKED[first + 2 * n :][: 2 if n < 4 else 1]}
        for n, category in enumerate(CATEGORIES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "question.jsonl"
    write_questions(path)
    return path


@pytest.fixture(scope="module")
def trial(questions, tmp_path_factory) -> Trial:
    path = tmp_path_factory.mktemp("yaml") / "asked.yaml"
    path.write_text(TEXT.format(questions=questions))
    return arm_trials(load_experiment(path))[0]


@pytest.fixture(scope="module")
def whole(trial, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    run_trial(trial, run=run, storage=RunStore(run), report=lambda told: None)
    return run


def answers(run: Path, trial: Trial) -> pd.DataFrame:
    return pd.read_parquet(run / "trials" / trial.trial_id / "answers.parquet")


def test_every_turn_is_a_row_with_the_conversation_that_was_asked(trial, whole):
    row, frame = results.finished_trials(whole)[trial.trial_id], answers(whole, trial)
    # Five prompts are judged, though nine answers.
    assert (row["status"], row["prompts"], len(frame)) == ("completed", 5, 9)
    assert row["win_rate"] == pytest.approx(frame["outcome"].mean())
    assert (
        list(zip(frame["prompt_id"], frame["turn"], frame["category"], strict=True))
        == [(str(81 + n), turn, category) for n, category in enumerate(CATEGORIES) for turn in (1, 2)][:9]
    )
    for n, (_, conversation) in enumerate(frame.groupby("prompt_id")):
        first, *second = conversation.to_dict("records")
        asked = [{"role": "user", "content": ASKED[2 * n]}]
        assert json.loads(first["prompt"]) == asked
        for each in second:
            own = {"role": "assistant", "content": first["answer"]}
            assert json.loads(each["prompt"]) == [*asked, own, {"role": "user", "content": ASKED[2 * n + 1]}]


def test_ranks_share_the_turns_and_answer_as_one_would(trial, whole, on_ranks, tmp_path):
    (tmp_path / "trial.json").write_text(trial.model_dump_json())
    on_ranks(2, trial_worker.__file__, tmp_path / "trial.json", tmp_path / "run", tmp_path / "ranks", "fsdp2")
    columns = ["prompt_id", "turn", "prompt", "answer", "baseline_answer", "verdict_ab", "verdict_ba"]
    pd.testing.assert_frame_equal(answers(tmp_path / "run", trial)[columns], answers(whole, trial)[columns])


def test_other_content_of_the_file_makes_other_prompts_and_the_same_checkpoint(trial, questions, whole):
    storage, nothing = RunStore(whole), lambda told: None
    before = prepare(trial.settings, storage=storage, report=nothing)
    kept = questions.read_text()
    try:
        write_questions(questions, first=1)
        after = prepare(trial.settings, storage=storage, report=nothing)
    finally:
        questions.write_text(kept)
    assert after.prompts["report"][0].messages == [{"role": "user", "content": ASKED[1]}]
    changed = {name for name, value in after.hashes.items() if value != before.hashes[name]}
    assert changed == {"prompts_report"}
    assert after.checkpoint == before.checkpoint
    assert after.baseline["report"] != before.baseline["report"]
    assert after.baseline["selection"] == before.baseline["selection"]
