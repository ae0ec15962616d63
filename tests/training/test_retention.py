"""Retention: a scorer of the user's over prompts of their own, inside a trial, against the SFT checkpoint's answers."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from slime_ray.api import read_inputs
from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.evaluation.questions import check_questions
from slime_ray.planning.material import assumed_material, read_material
from slime_ray.runs import inputs, results, schema
from slime_ray.runs.store import RunStore
from slime_ray.training.orders import Paused
from slime_ray.training.worker import run_trial
from tests.training.small_trials import TEXT, nothing

PROMPTS = [f"What is {a} + {b}?" for a in (11, 33) for b in (22, 44)]
SCORER = """\
def length(prompt, answer):
    return None if prompt.startswith("What is 11 + 22") else len(answer) + 0.5

def broken(prompt, answer):
    raise RuntimeError("no such table")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "kept_scores.py").write_text(SCORER)
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    monkeypatch.syspath_prepend(str(tmp_path))
    # A module of this name may be that of another test's folder.
    monkeypatch.delitem(sys.modules, "kept_scores", raising=False)
    return tmp_path


def experiment(folder: Path, *, scorer: str = "length", retention: bool = True, **changes: Any) -> Experiment:
    path = folder / "trial.yaml"
    path.write_text(TEXT)
    given = {"evaluation.retention": {"prompts": str(folder / "kept.jsonl"), "scorer": f"kept_scores:{scorer}"}}
    return load_experiment(path, overrides=(given if retention else {}) | changes)


def stages(storage: RunStore) -> list[str]:
    return [path.name for path in (storage.root / ".stages").iterdir() if path.is_dir()]


def test_a_trial_keeps_the_paired_change_of_the_scores_and_only_makes_answers_for_new_prompts(folder):
    storage = RunStore(folder / "storage")
    plain = arm_trials(experiment(folder, retention=False))[0]
    row = run_trial(plain, run=storage.root / "plain", storage=storage, report=nothing)
    assert row["retention"] is None
    before = set(stages(storage))
    trial = arm_trials(experiment(folder))[0]
    run = storage.root / "kept"
    kept = run_trial(trial, run=run, storage=storage, report=nothing)
    # The checkpoint, its log-probabilities and its answers to the report prompts are those of the run without.
    assert {name.split("-")[0] for name in stages(storage) if name not in before} == {"tokens", "retention"}
    answers = pd.read_parquet(run / "trials" / trial.trial_id / "answers.parquet")
    answers = answers[answers["prompt_set"] == "retention"]
    # Counted from the texts, three of four prompts have scores.
    changes = answers["answer"].str.len() - answers["baseline_answer"].str.len()
    known = ~answers["prompt"].str.contains(r"11 \+ 22")
    assert known.sum() == 3
    assert kept["retention"] == pytest.approx(changes[known].mean())
    assert {name: kept[name] for name in ("win_rate", "prompts", "stability")} == {
        name: row[name] for name in ("win_rate", "prompts", "stability")
    }
    (run / "manifest.json").write_text(json.dumps({"schema": schema.RUN_SCHEMA}))
    loaded = results.load(run)
    assert set(loaded.answers["prompt_set"]) == {"report"}
    assert len(loaded.retention) == len(PROMPTS)
    assert loaded.trials["retention"][0] == pytest.approx(kept["retention"])


def test_a_scorer_that_fails_pauses_the_trial_with_its_prompt(folder):
    trial = arm_trials(experiment(folder, scorer="broken"))[0]
    storage = RunStore(folder / "storage")
    with pytest.raises(
        Paused, match=r"retention fails on the answer .* to the prompt 'What is 11 \+ 22\?'.*no such table"
    ):
        run_trial(trial, run=storage.root / "run", storage=storage, report=nothing)


def test_scorer_and_prompts_are_looked_at_before_anything_runs(folder):
    with pytest.raises(InputError, match=r"evaluation\.retention\.scorer 'kept_scores:absent' cannot be imported"):
        read_inputs(experiment(folder, scorer="absent"))
    (folder / "kept.jsonl").write_text('{"prompt": "Who wrote Faust?"}\n')
    with pytest.raises(
        InputError, match=r"kept\.jsonl:1: 'Who wrote Faust\?' is no prompt of .* leave evaluation\.retention"
    ):
        check_questions(experiment(folder))
    (folder / "kept.jsonl").unlink()
    with pytest.raises(InputError, match=r"kept\.jsonl: there is no such file"):
        check_questions(experiment(folder))


def test_prompts_and_scorer_are_inputs_that_may_not_change(folder):
    given = experiment(folder)
    assert "evaluation.retention.prompts" in inputs.hashes_of(given)
    before = inputs.digests(given)
    assert "kept_scores:length" in before
    (folder / "kept_scores.py").write_text(SCORER.replace("0.5", "0.25"))
    assert re.match("kept_scores:length changed", str(inputs.change(before, given.settings)))


def test_a_plan_counts_the_answers_to_the_retention_prompts(folder):
    settings = experiment(folder).settings
    read = read_material(settings)
    assumed = assumed_material(settings, 300, (8.0, 4.0, 4.0), "told")
    assert read.prompts["retention"].turns == assumed.prompts["retention"].turns == len(PROMPTS)
    assert "retention" not in read_material(experiment(folder, retention=False).settings).prompts
    assert np.isfinite(read.prompts["retention"].tokens)
