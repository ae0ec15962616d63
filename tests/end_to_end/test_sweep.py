"""`slime-ray sweep` from a YAML to the report, for real: Ray, Optuna, training, generation, files; `train` without Ray."""

import json
import re
import shutil
import signal
import subprocess
import sys

import optuna
import pandas as pd
import pytest

from slime_ray.cli import main
from slime_ray.config.settings import fingerprint
from slime_ray.on_ray.search import study_storage
from slime_ray.runs import results
from slime_ray.training.cache import content_of
from tests.end_to_end.conftest import SMALL, environment
from tests.faults.conftest import same
from tests.processes import left_behind

pytestmark = pytest.mark.ray

TRIALS = [f"arm-{arm}-s{seed}" for seed in (0, 1) for arm in ("sft", "slime", "dpo")]
SEARCHED = ["search-0001", "search-0002"]


def test_a_sweep_runs_every_trial_and_prints_the_table(finished):
    run, done = finished
    assert done.returncode == 0, done.stderr
    names = set(results.finished_trials(run))
    winner = next(name for name in SEARCHED if f"confirm-{name}-s0" in names)
    assert names == {*TRIALS, *SEARCHED, f"confirm-{winner}-s0", f"confirm-{winner}-s1"}
    assert winner in done.stdout
    assert str(run / "report" / "report.html") in done.stdout
    assert (run / "report" / "report.html").stat().st_size > 10_000


def test_the_result_files_hold_every_trial_seed_and_prompt(finished):
    loaded = results.load(finished[0])
    trials = loaded.trials.set_index("trial_id")
    assert set(trials["status"]) == {"completed"}
    assert trials.loc["search-0001", "knob.objective.anchor_weight"] == pytest.approx(0.1)
    assert trials["stability"].between(0, 1).all()
    assert trials["win_rate"].between(0, 1).all()
    # The SFT checkpoint against itself: nothing was trained, so nothing can have drifted.
    sft = trials.loc["arm-sft-s0"]
    assert (sft["unlearning"], sft["rejected_collapse"], sft["kl_to_sft"]) == (0, 0, 0)
    assert trials.loc["arm-slime-s0", "kl_to_sft"] > 0
    answers = loaded.answers.groupby("trial_id").size()
    assert answers["arm-slime-s0"] == 16
    assert answers["search-0001"] == 8
    by_set = loaded.answers.groupby("prompt_set")["prompt_id"].unique()
    assert not set(by_set["selection"]) & set(by_set["report"])
    curves = loaded.curves
    steps = curves.query("trial_id == 'arm-dpo-s1' and source == 'held_out' and metric == 'chosen_logp'")["step"]
    assert steps.tolist() == [0, 2, 4]
    assert all(list((finished[0] / "trials" / name / "tensorboard").glob("events*")) for name in trials.index)


def test_all_cells_share_prompts_and_baseline_and_seeds_differ(finished):
    answers = results.load(finished[0]).answers
    report = answers[answers["prompt_set"] == "report"].pivot(
        index="prompt_id", columns="trial_id", values="baseline_answer"
    )
    assert report.notna().all().all()
    assert (report.nunique(axis=1) == 1).all()
    trials = results.load(finished[0]).trials.set_index("trial_id")
    assert trials.loc["arm-slime-s0", "chosen_drift"] != trials.loc["arm-slime-s1", "chosen_drift"]


def test_the_reference_is_computed_once_and_shared_by_all_trials_that_need_one(finished):
    """Two DPO trials, eight others: DPO's seeds share one reference, and nobody else has any."""
    assert len(list((finished[0].parent / ".stages").glob("reference-*/reference.npz"))) == 1


def test_the_study_has_no_trial_left_running(finished):
    study = optuna.load_study(study_name="slime-ray", storage=study_storage(finished[0]))
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 2
    assert "RUNNING" not in states


def test_the_manifest_says_what_was_run(finished):
    manifest = results.read_manifest(finished[0])
    assert manifest["finished"] >= manifest["created"]
    assert manifest["seeds"] == [0, 1]
    assert {"torch", "ray", "optuna", "transformers", "python"} <= set(manifest["versions"])
    assert {"train_data", "held_out", "prompts_selection", "prompts_report", "chat_template", "sft_checkpoint"} <= set(
        manifest["hashes"]
    )
    (weights,) = (finished[0].parent / ".stages").glob(f"sft-{manifest['hashes']['sft_checkpoint']}/*.safetensors")
    assert manifest["hashes"]["sft_weights"] == fingerprint([content_of(str(weights))])
    assert manifest["failed_trials"] == []
    assert manifest["data"]["rows"] == "packed"
    assert (finished[0] / "experiment.yaml").read_text().startswith("name: small")
    assert "search-0002 completed" in (finished[0] / "log.txt").read_text()


def test_a_name_that_is_taken_is_refused_and_nothing_is_touched(finished, small, storage, capsys):
    run = finished[0]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["sweep", str(small), "--storage", str(storage)]) == 2
    refusal = capsys.readouterr().err
    assert "is already there" in refusal
    assert "--resume" in refusal
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_resuming_a_finished_run_trains_nothing(finished, small, storage):
    run = finished[0]
    before = {path: path.stat().st_mtime_ns for path in (run / "trials").rglob("*")}
    assert main(["sweep", str(small), "--storage", str(storage), "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "trials").rglob("*")} == before


def test_other_settings_cannot_resume_a_run(finished, small, storage, capsys):
    assert main(["sweep", str(small), "--storage", str(storage), "--resume", "--set", "training.updates=5"]) == 2
    assert "was started with other settings" in capsys.readouterr().err


@pytest.mark.faults
def test_an_interrupted_run_leaves_no_process_and_is_gone_on_with(finished, slime_ray, small, storage):
    command = [sys.executable, "-m", "slime_ray", "sweep", str(small), "--storage", str(storage), "--name", "cut"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest
    assert "--resume" in rest
    assert left_behind(process.pid) == []
    kept = results.finished_trials(storage / "cut")
    assert 2 <= len(kept) < 10
    resumed = slime_ray("sweep", small, "--storage", storage, "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    rows = results.finished_trials(storage / "cut")
    assert len(rows) == 10
    assert all(rows[name]["started"] == kept[name]["started"] for name in kept)
    # A trial computes the same before and after the interruption as in the run that was never cut.
    whole = results.finished_trials(finished[0])
    for name in TRIALS:
        assert rows[name]["stability"] == whole[name]["stability"]


def test_a_report_is_made_from_a_copied_run_alone(finished, tmp_path):
    copy = tmp_path / "elsewhere" / "copied"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("ray", "report", "trials"))
    assert main(["report", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(pd.read_parquet(copy / "trials.parquet")) == 10


def test_a_trial_alone_is_the_same_trial_to_the_last_bit(small, storage, finished, capsys):
    """The sweep's was trained by an actor that had trained others."""
    run, _ = finished
    assert main(["train", str(small), "--storage", str(storage), "--trial", "arm-dpo-s1"]) == 0
    alone = results.finished_trials(storage / "small-arm-dpo-s1")["arm-dpo-s1"]
    assert same(alone, results.finished_trials(run)["arm-dpo-s1"])
    assert "dpo" in capsys.readouterr().out


@pytest.mark.faults
def test_a_trial_that_is_interrupted_goes_on_where_it_was(slime_ray, small, storage, finished):
    options = ("train", small, "--storage", storage, "--trial", "arm-slime-s0", "--set", "training.updates=160")
    whole = slime_ray(*options, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "slime_ray", *map(str, options), "--name", "broken"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("training 80/160"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "left without a result: it was interrupted" in said
    assert "--name broken --resume` to go on" in said
    assert slime_ray(*options, "--name", "broken", "--resume").returncode == 0
    row, expected = (results.finished_trials(storage / name)["arm-slime-s0"] for name in ("broken", "whole"))
    assert same(row, expected)
    assert row["attempts"] == 2


@pytest.mark.parametrize("arguments", [("--trial", "arm-none-s0"), ()])
def test_an_unknown_trial_is_refused_with_those_that_there_are(small, tmp_path, capsys, arguments):
    assert main(["train", str(small), "--storage", str(tmp_path), *arguments]) == 2
    assert "arm-slime-s0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_in_a_database_is_there_and_nowhere_else(slime_ray, storage, tmp_path):
    space, database = tmp_path / "space.yaml", f"sqlite:///{tmp_path}/study.db"
    space.write_text(re.sub(r"arms:.*\n( .*\n)+|, confirm: .*}(?=})", "", SMALL))
    options = ("sweep", space, "--storage", storage, "--name", "stored")
    assert slime_ray(*options, "--study", database).returncode == 0
    run = storage / "stored"
    name = json.loads((run / "manifest.json").read_text())["study"]["name"]
    assert len(optuna.load_study(study_name=name, storage=database).trials) == 2
    assert not (run / "study.journal").exists()
    refused = slime_ray(*options, "--resume")
    assert refused.returncode == 2
    assert "Give that database with --study" in refused.stderr
