"""A run's folder: whose name is free again when nothing was started, on a disk and in a store."""

from pathlib import Path

import pytest

from slime_ray.errors import InputError
from slime_ray.experiment import Experiment
from slime_ray.experiment_file import load_experiment
from slime_ray.mirror import Mirror
from slime_ray.run_folder import Start, taken


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text("name: first\npreset: arithmetic\narms: {slime: {}}\n")
    return path


@pytest.fixture
def experiment(source) -> Experiment:
    return load_experiment(source)


@pytest.fixture(params=["folder", "store"])
def storage(request, tmp_path) -> Mirror:
    return Mirror(tmp_path / "runs", f"file://{tmp_path}/bucket" if request.param == "store" else None)


def begin(
    experiment: Experiment, source: Path, storage: Mirror, start: Start, *, sent: bool, ends: BaseException
) -> None:
    """A sweep that ends in the midst of its stages, with its manifest sent or not."""
    run = storage.root / experiment.name
    storage.pull(run)
    with taken(run, experiment, source=source, seed=0, start=start, remove=storage.remove):
        if sent:
            storage.push_files(run)
        raise ends


@pytest.mark.parametrize("sent", [False, True])
def test_a_run_that_was_cut_off_before_its_first_trial_is_started_or_gone_on_with(experiment, source, storage, sent):
    """As the processes of one command after another do, on the same machine; `either` is what --go-on asks for."""
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
    storage = Mirror(tmp_path / "runs", f"file://{tmp_path}/bucket")
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())
    (tmp_path / "bucket" / "first").rename(tmp_path / "deleted")
    with pytest.raises(InputError, match="no such run to resume"):
        begin(experiment, source, storage, "resume", sent=True, ends=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        begin(experiment, source, storage, "fresh", sent=True, ends=KeyboardInterrupt())
