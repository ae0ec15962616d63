"""A run's folder: whose name is free again when nothing was started, on a disk and in a store."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.experiment import Arm, Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.folder import Start, lock_run, log_file, read_experiment
from slime_ray.runs.store import RunStore

HINGE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Hinge:
    name = "hinge"
    needs_reference = False
    pairs_together = None
    target: float = 1.0
"""


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text("name: first\npreset: arithmetic\narms: {slime: {}}\n")
    return path


@pytest.fixture
def experiment(source) -> Experiment:
    return load_experiment(source)


@pytest.fixture(params=["folder", "store"])
def storage(request, tmp_path) -> RunStore:
    return RunStore(tmp_path / "runs", f"file://{tmp_path}/bucket" if request.param == "store" else None)


def finish(run: Path, trial: str, status: str) -> None:
    """The row of a trial that has ended, as far as a run's folder asks for it."""
    folder = run / "trials" / trial
    folder.mkdir(parents=True, exist_ok=True)
    row = {"trial_id": trial, "config": "{}", "overrides": "{}", "phase": "arm", "label": "slime", "status": status}
    (folder / "trial.json").write_text(json.dumps(row))


def begin(
    experiment: Experiment, source: Path, storage: RunStore, start: Start, *, sent: bool, ends: BaseException
) -> None:
    """A sweep that ends in the midst of its stages, with its manifest sent or not."""
    run = storage.root / experiment.name
    storage.pull(run)
    with lock_run(run, experiment, source=source, seed=0, start=start, remove=storage.remove):
        if sent:
            storage.push_files(run)
        raise ends


@pytest.mark.parametrize("sent", [False, True])
def test_a_run_that_was_cut_off_before_its_first_trial_is_started_or_gone_on_with(experiment, source, storage, sent):
    """As the processes of one command after another do, on the same machine; `either` is what --auto-resume asks for."""
    for start in ("fresh", "either", "either"):
        with pytest.raises(KeyboardInterrupt):
            begin(experiment, source, storage, start, sent=sent, ends=KeyboardInterrupt())
    again: Start = "resume" if sent or storage.url is None else "fresh"
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, again, sent=sent, ends=KeyboardInterrupt())


@pytest.mark.parametrize("sent", [False, True])
def test_a_name_stays_free_where_nothing_could_be_started(experiment, source, storage, sent):
    for _ in range(2):
        with pytest.raises(InputError, match="no such model"):
            begin(experiment, source, storage, "fresh", sent=sent, ends=InputError("no such model"))
    assert list(source.parent.rglob("manifest.json")) == []


def test_a_run_that_was_deleted_in_the_store_is_started_anew(experiment, source, tmp_path):
    storage = RunStore(tmp_path / "runs", f"file://{tmp_path}/bucket")
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())
    (tmp_path / "bucket" / "first").rename(tmp_path / "deleted")
    with pytest.raises(InputError, match="no such run to resume"):
        begin(experiment, source, storage, "resume", sent=True, ends=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())


# ---------------------------------------------------------------------------------------------------------------------
# Further seeds


def with_seeds(experiment: Experiment, *seeds: int) -> Experiment:
    return experiment.model_copy(update={"seeds": list(seeds)})


def held(experiment: Experiment, source: Path, start: Start) -> dict[str, Any]:
    """Take a run, as a sweep does, and write the manifest that it goes on with."""
    run = source.parent / "runs" / experiment.name
    with lock_run(run, experiment, source=source, seed=0, start=start) as manifest:
        results.write_manifest(run, manifest)
    return results.read_manifest(run)


def test_a_run_is_gone_on_with_with_more_seeds_and_keeps_them(experiment, source):
    before = held(with_seeds(experiment, 0, 5), source, "fresh")
    more = with_seeds(experiment, 0, 1, 5)
    after = held(more, source, "resume")
    assert after["seeds"] == after["experiment"]["seeds"] == [0, 1, 5]
    assert after["fingerprint"] == more.fingerprint != before["fingerprint"]
    assert {key for key in before if before[key] != after[key]} == {"seeds", "experiment", "fingerprint"}
    # As many in another order are the same seeds.
    assert held(with_seeds(experiment, 5, 1, 0), source, "either")["seeds"] == [5, 1, 0]


def test_a_run_is_not_gone_on_with_with_fewer_seeds_or_other_settings(experiment, source):
    held(with_seeds(experiment, 0, 1, 5), source, "fresh")
    with pytest.raises(
        InputError, match=r"has the seeds 0,1,5, and those that are given now, 0,1,2, .* --seeds 0,1,2,5"
    ):
        held(with_seeds(experiment, 0, 1, 2), source, "resume")
    with pytest.raises(InputError, match=r"those that are given now, 5,, leave"):
        held(with_seeds(experiment, 5), source, "resume")
    other = experiment.model_copy(update={"arms": [Arm(label="slime", set={"objective.hard_margin": 2.0})]})
    with pytest.raises(InputError, match="was started with other settings"):
        held(with_seeds(other, 0, 1, 5, 6), source, "resume")
    assert results.read_manifest(source.parent / "runs" / "first")["seeds"] == [0, 1, 5]


def test_what_cells_are_compared_by_is_settled_before_they_are_run(tmp_path):
    source = tmp_path / "first.yaml"
    for start, metric in (("fresh", "win_rate"), ("resume", "win_rate"), ("resume", "stability")):
        source.write_text(f"name: first\npreset: arithmetic\nablate: {{design: exponent, metric: {metric}}}\n")
        if metric == "win_rate":
            held(load_experiment(source), source, start)
            continue
        with pytest.raises(InputError, match="another design of the same cells, or another metric"):
            held(load_experiment(source), source, start)


# ---------------------------------------------------------------------------------------------------------------------
# Code of the user's


def test_a_run_is_not_gone_on_with_with_other_code_of_the_users(tmp_path, monkeypatch):
    for name, text in (("own_loss", HINGE), ("own_judge", "def score(prompt, answer):\n    return 0.0\n")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "first.yaml"
    source.write_text(
        "name: first\npreset: arithmetic\nbase: {evaluation: {judge: {name: exact, scorer: 'own_judge:score'}}}\n"
        "arms: {slime: {}, own: {objective: {name: 'own_loss:Hinge'}}}\n"
    )
    before = held(load_experiment(source), source, "fresh")
    files = {"own_loss:Hinge": tmp_path / "own_loss.py", "own_judge:score": tmp_path / "own_judge.py"}
    assert before["code"] == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    finish(tmp_path / "runs" / "first", "arm-slime-s0", "completed")
    assert held(load_experiment(source), source, "resume")["code"] == before["code"]
    for name, file in files.items():
        text = file.read_text()
        file.write_text(text + "# another line\n")
        with pytest.raises(
            InputError, match=f"the code of {name} has changed since the run was started .its hash was "
        ):
            held(load_experiment(source), source, "resume")
        file.write_text(text)


def test_a_scorer_may_be_mended_while_no_trial_has_been_judged(tmp_path, monkeypatch):
    scorer = tmp_path / "own_scorer.py"
    scorer.write_text("def score(prompt, answer):\n    raise KeyError(prompt)\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "first.yaml"
    source.write_text(
        "name: first\npreset: arithmetic\nbase: {evaluation: {judge: {name: exact, scorer: 'own_scorer:score'}}}\n"
        "arms: {slime: {}}\n"
    )
    held(load_experiment(source), source, "fresh")
    run = tmp_path / "runs" / "first"
    finish(run, "arm-slime-s0", "failed")
    scorer.write_text("def score(prompt, answer):\n    return 0.0\n")
    trial = {"trial_id": "arm-slime-s1", "phase": "arm", "label": "slime", "seed": 1}
    curve = {**trial, "step": 2, "source": "sentinel", "metric": "win_rate", "value": 0.5}
    row = results.trial_row(**trial, status="failed", overrides={}, settings={})
    results.write_trial(run, row=row, curves=[curve])
    # Its win rates on the way are the former scorer's.
    with pytest.raises(InputError, match="the code of own_scorer:score has changed"):
        held(load_experiment(source), source, "resume")
    shutil.rmtree(run / "trials" / "arm-slime-s1")
    mended = held(load_experiment(source), source, "resume")
    assert mended["code"] == {"own_scorer:score": hashlib.sha256(scorer.read_bytes()).hexdigest()}
    results.write_manifest(run, mended)
    finish(run, "arm-slime-s0", "completed")
    scorer.write_text("def score(prompt, answer):\n    return 1.0\n")
    with pytest.raises(InputError, match="the code of own_scorer:score has changed"):
        held(load_experiment(source), source, "resume")


def test_a_run_without_code_of_the_users_and_one_of_an_earlier_version_are_gone_on_with(experiment, source):
    assert held(experiment, source, "fresh")["code"] == {}
    run = source.parent / "runs" / "first"
    results.write_manifest(run, {key: value for key, value in results.read_manifest(run).items() if key != "code"})
    assert held(experiment, source, "resume")["code"] == {}


def test_a_log_on_a_full_disk_loses_its_lines_and_nothing_else(capfd):
    with log_file(Path("/dev/full")):
        logging.getLogger("slime_ray.sweep").warning("nobody reads this")
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_process_left_half_written_is_deleted_when_the_run_is_taken(experiment, source, tmp_path):
    run = tmp_path / experiment.name
    with lock_run(run, experiment, source=source, seed=0, start="fresh"):
        pass
    (run / "trials" / "arm-slime-s0").mkdir(parents=True)
    for folder in (run, run / "trials" / "arm-slime-s0"):
        (folder / ".curves.parquet.0123abcd").write_text("half")
    with lock_run(run, experiment, source=source, seed=0, start="resume"):
        assert list(run.rglob("*.0123abcd")) == []


def test_a_run_that_cannot_be_locked_is_refused(experiment, source, tmp_path):
    run = tmp_path / experiment.name
    with lock_run(run, experiment, source=source, seed=0, start="fresh"):
        pass
    (run / ".sweep.lock").unlink(missing_ok=True)
    (run / ".sweep.lock").mkdir()
    with (
        pytest.raises(InputError, match="cannot be written: Is a directory"),
        lock_run(run, experiment, source=source, seed=0, start="resume"),
    ):
        pass


@pytest.mark.parametrize("kept", ["manifest", "trial"])
def test_a_run_that_was_started_with_other_rows_is_not_gone_on_with(experiment, source, storage, monkeypatch, kept):
    """Of a run from before manifests said it, a finished trial does."""
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())
    run = storage.root / experiment.name
    manifest = results.read_manifest(run)
    assert manifest["row_tokens"] == 2048
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "resume", sent=True, ends=KeyboardInterrupt())
    if kept == "manifest":
        manifest["row_tokens"] = 8192
    else:
        del manifest["row_tokens"]
        monkeypatch.setattr(results, "finished_trials", lambda run: {"one": {"row_tokens": 8192}})
    results.write_manifest(run, manifest)
    storage.push_files(run)
    with pytest.raises(InputError, match="started with rows of 8192 tokens, and this version takes 2048"):
        begin(experiment, source, storage, "resume", sent=True, ends=KeyboardInterrupt())


def test_a_run_with_an_attention_of_an_older_version_is_refused_with_the_version(experiment, source, storage):
    """flex was the name of a kernel once."""
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())
    run = storage.root / experiment.name
    manifest = results.read_manifest(run)
    manifest["experiment"]["base"]["model"] = {"source": "embedded/arithmetic", "attention": "flex"}
    manifest["slime_ray"] = "0.1.0"
    results.write_manifest(run, manifest)
    with pytest.raises(InputError, match=r"was written by another version of slime_ray \(0\.1\.0\)"):
        read_experiment(run)
