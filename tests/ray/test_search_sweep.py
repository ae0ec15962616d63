"""Real sweeps over spaces with conditions, from an earlier run, and to the end of a budget."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import ray
import torch

from slime_ray.errors import InputError, RunError
from slime_ray.on_ray import sweep as sweeping
from slime_ray.on_ray.search import study_storage
from slime_ray.runs import results
from tests.faults.conftest import until
from tests.ray.sweeps import sweep

pytestmark = pytest.mark.ray
TEXT = """\
search:
  objective.name: {choice: [slime, dpo, simpo]}
  objective.anchor_weight: {log_uniform: [0.01, 2.0], when: {objective.name: slime}}
  objective.beta:
    - {log_uniform: [0.01, 1.0], when: {objective.name: dpo}}
    - {uniform: [1.0, 4.0], when: {objective.name: simpo}}
  model.lora.rank: {choice: [2, 4]}
start_from: [paper, {objective.name: dpo, objective.beta: 0.3}, {objective.name: simpo, model.lora.rank: 2}]
budget: {trials: 3, confirm: {best: 1, seeds: 1}}
"""
LORA = {"rank": 4}


@pytest.fixture(scope="module")
def instance() -> Iterator[None]:
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage, so that the stages are made once."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def methods(instance: None, folder: Path) -> Path:
    """The run of one search over three objectives and two ranks of adapters."""
    return sweep(folder, "methods", TEXT, model__lora=LORA)


def test_objectives_are_switched_by_a_search_and_all_start_from_one_checkpoint(methods, folder):
    trials = pd.read_parquet(methods / "trials.parquet").set_index("trial_id")
    assert trials["status"].tolist() == ["completed"] * 4
    assert trials["objective"].tolist()[-3:] == ["slime", "dpo", "simpo"]
    configs = [json.loads(config) for config in trials["settings"].tolist()[-3:]]
    assert [config["objective"].get("beta") for config in configs] == [None, 0.3, 2.0]
    assert [config["model"]["lora"]["rank"] for config in configs] == [4, 4, 2]
    # A trial with other adapters is compared with the checkpoint that all the others are.
    assert len(list((folder / "runs" / ".stages").glob("sft-*/"))) == 1
    manifest = results.read_manifest(methods)
    assert (manifest["ended_by"], manifest["spent"]["gpu_hours"]) == ("budget.trials", 0.0)
    # An objective's knob is empty where the trial had another objective.
    assert trials["knob.objective.beta"].isna().tolist()[-3:] == [True, False, False]


@pytest.mark.slow
def test_a_search_starts_from_an_earlier_run_and_takes_no_notice_of_its_end(methods, folder, instance):
    start = f"start_from: [{{run: {methods}}}]\n"
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith("start_from")) + "\n" + start
    run = sweep(folder, "second", text, budget__trials=1, model__lora=LORA)
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(run))
    earlier = study.trials[:3]
    rows = results.finished_trials(methods)
    assert {trial.user_attrs["source"] for trial in earlier} == {
        f"{methods}/search-000{number}" for number in (1, 2, 3)
    }
    for trial in earlier:
        row = rows[trial.user_attrs["source"].rpartition("/")[2]]
        assert trial.values == [row["win_rate"], row["stability"]]
    assert len(study.trials) == 4
    # What was taken over stands in the run, which goes on whatever becomes of the earlier one.
    methods.rename(methods.with_name("gone"))
    try:
        sweep(folder, "second", text, "resume", budget__trials=2, model__lora=LORA)
        assert len(optuna.load_study(study_name="slime-ray", storage=study_storage(run)).trials) == 5
        with pytest.raises(InputError, match="there is no such run"):
            sweep(folder, "third", text, model__lora=LORA)
        assert not (folder / "runs" / "third").exists()
    finally:
        methods.with_name("gone").rename(methods)


def test_a_deleted_trial_is_trained_again_as_it_was_where_the_study_is_lost(methods, folder, instance):
    before = results.finished_trials(methods)
    (winner,) = {row["label"] for row in before.values() if row["phase"] == "confirm"}
    shutil.rmtree(methods / "trials" / winner)
    (methods / "study.journal").unlink()
    sweep(folder, "methods", TEXT, "resume", model__lora=LORA)
    rows = results.finished_trials(methods)
    same = ("overrides", "config_hash", "win_rate", "stability", "seed")
    assert {name: [row[key] for key in same] for name, row in rows.items()} == {
        name: [row[key] for key in same] for name, row in before.items()
    }
    entries = optuna.load_study(study_name="slime-ray", storage=study_storage(methods)).trials
    completed = {trial.user_attrs["trial_id"]: trial.values for trial in entries if trial.values}
    assert len(completed) == sum(trial.values is not None for trial in entries) == 3
    assert completed == {name: [before[name]["win_rate"], before[name]["stability"]] for name in completed}


@pytest.mark.skipif(
    torch.backends.cuda.is_built() and not torch.cuda.is_available(),
    reason="torch is built for CUDA and sees no GPU, which a trial with one refuses",
)
def test_a_spent_budget_ends_the_sweep_by_name_and_a_raised_one_goes_on(instance, folder, monkeypatch):
    """The node only says that it has a GPU, so what looks for a real one is left out."""
    monkeypatch.setattr(sweeping, "examine", lambda *given, **options: [])
    held: dict[str, Any] = {"resources__gpu_per_worker": 1, "budget__trials": 1, "model__lora": LORA}
    with pytest.raises(RunError, match=r"\d of 2 trials done, since budget\.gpu_hours 1e-05 is spent .*Raise it with"):
        sweep(folder, "spent", TEXT, budget__gpu_hours=1e-5, **held)
    run = folder / "runs" / "spent"
    manifest = results.read_manifest(run)
    assert (manifest["ended_by"], manifest["finished"]) == ("budget.gpu_hours", None)
    assert manifest["spent"]["gpu_hours"] >= 1e-5
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(run))
    assert "RUNNING" not in [trial.state.name for trial in study.trials]
    # The node hears of it a moment later than the driver.
    until(lambda: ray.available_resources().get("GPU") == 1.0, 30, "a free GPU")
    # Given again as it is, it says so at once; nothing is started.
    done = len(results.finished_trials(run))
    with monkeypatch.context() as none_left:
        none_left.setattr(sweeping, "_fit", lambda *given: pytest.fail("a trial was started"))
        with pytest.raises(RunError, match=rf"{done} of 2 trials done, since budget\.gpu_hours"):
            sweep(folder, "spent", TEXT, "resume", budget__gpu_hours=1e-5, **held)
    sweep(folder, "spent", TEXT, "resume", budget__gpu_hours=1, **held)
    manifest = results.read_manifest(run)
    assert manifest["ended_by"] == "budget.trials"
    assert manifest["spent"]["gpu_hours"] > 1e-5


LEAGUE = """\
league:
  trials: 1
  seeds: 1
  learning_rate: {log_uniform: [1.0e-4, 1.0e-3]}
  entries:
    ipo: {}
    sft: {}
"""


def test_a_league_confirms_every_entrys_winner(folder, instance):
    """What a resumed league trains is tested without Ray, with its plan."""
    run = sweep(folder, "league", LEAGUE)
    rows = results.finished_trials(run)
    assert {name: row["objective"] for name, row in rows.items()} == {
        "search-ipo-0001": "ipo", "search-sft-0001": "sft",
        "confirm-search-ipo-0001-s0": "ipo", "confirm-search-sft-0001-s0": "sft",
    }  # fmt: skip
    assert results.read_manifest(run)["finished"]


@pytest.mark.slow
def test_a_league_across_checkpoints_has_stages_for_each_and_takes_one_more_when_resumed(folder, instance):
    run = sweep(folder, "across", LEAGUE + "across: {sft.seed: [0, 1]}\n")
    first = results.finished_trials(run)
    for seed in (0, 1):
        own = [name for name in first if f"-sft{seed}-" in name]
        assert len(own) == 2 * (1 + 1)
        assert {json.loads(first[name]["overrides"])["sft.seed"] for name in own} == {seed}
    hashes = results.read_manifest(run)["hashes"]
    assert hashes["sft_weights"] != hashes["sft_weights.1"]
    made = {file.parent.name: file.read_text() for file in (run.parent / ".stages").glob("sft-*/made.json")}
    assert {hashes["sft_weights"], hashes["sft_weights.1"]} <= {
        json.loads(text)["sft_weights"] for text in made.values()
    }
    sweep(folder, "across", LEAGUE + "across: {sft.seed: [0, 1, 2]}\n", "resume")
    again = results.finished_trials(run)
    assert {name: again[name]["started"] for name in first} == {name: row["started"] for name, row in first.items()}
    assert all("-sft2-" in name for name in again.keys() - first.keys())
    assert len(again) == len(first) * 3 // 2
