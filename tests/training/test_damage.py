"""Every file that a stage, a checkpoint or a run consists of is truncated, emptied and removed before it is used again.

It is made again with the same content, or passed over, or named in one sentence; no trial fails for it, and no number
is another one.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from slime_ray.config.experiment import Experiment, Faults, arm_trials
from slime_ray.errors import RunError, SlimeRayError
from slime_ray.runs import files, results
from slime_ray.runs.folder import Start
from slime_ray.runs.store import RunStore
from slime_ray.training import stages as stages_module
from slime_ray.training import worker
from slime_ray.training.evaluate import evaluate
from slime_ray.training.loop import Runtime
from slime_ray.training.orders import Command, Paused, Report
from slime_ray.training.single import train_one
from slime_ray.training.stages import prepare, train_pairs
from slime_ray.training.worker import run_trial
from tests.damage import DAMAGES

from .small_trials import CLOCKS, TEXT, Orders, assert_same, nothing

OFTEN = Runtime(faults=Faults(checkpoint_minutes=1e-9))
STAGES = ("tokens", "sft", "step0", "baseline", "reference")
CUT = [damage for damage in DAMAGES if damage != "changed"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_all(experiment: Experiment, storage: RunStore, report: Report = nothing) -> None:
    """Make what is missing of the stages, as the trial that needs all of them does."""
    stages_module._load.cache_clear()
    _, dpo = arm_trials(experiment)
    made = prepare(dpo.settings, storage=storage, report=report)
    train_pairs(made, dpo.settings, storage=storage, report=report)


@pytest.fixture(scope="module")
def kept(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages as they were made, whatever happens to the copies."""
    folder = tmp_path_factory.mktemp("kept")
    make_all(experiment, RunStore(folder))
    return folder


@pytest.fixture
def copied(kept: Path, tmp_path: Path) -> RunStore:
    """A storage of one's own with all stages."""
    shutil.copytree(kept / ".stages", tmp_path / "storage" / ".stages")
    return RunStore(tmp_path / "storage")


def folder_of(storage: RunStore, kind: str) -> Path:
    [folder] = [path for path in (storage.root / ".stages").glob(f"{kind}-*") if path.is_dir()]
    return folder


def repair(experiment: Experiment, storage: RunStore, kind: str, name: str, damage: str) -> None:
    """Damage one file of a stage, use the stages as the trial that needs all of them does, and look at them."""
    folder, notices = folder_of(storage, kind), []
    before = content(folder)
    DAMAGES[damage](folder / name)
    make_all(experiment, storage, lambda told: notices.extend([told["notice"]] if "notice" in told else []))
    assert len(notices) == 1
    assert name in notices[0]
    assert content(folder) == before


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [
        ("tokens", "train.arrow", "truncated"),
        ("sft", "model.safetensors", "changed"),
        ("step0", "held_out.npz", "emptied"),
        ("baseline", "report.parquet", "removed"),
        ("reference", "reference.npz", "truncated"),
        ("sft", files.RECORD, "removed"),
    ],
)
def test_a_damaged_stage_is_made_again_as_it_was(experiment, copied, kind, name, damage):
    repair(experiment, copied, kind, name, damage)


def test_tokens_of_an_older_format_are_made_again_once_and_nothing_else_is(experiment, copied, monkeypatch):
    said: list[str] = []
    report = lambda told: said.extend([told["doing"]] if str(told.get("doing")).startswith("making") else [])  # noqa: E731
    monkeypatch.setattr(stages_module, "PAIRS_FORMAT", "newer")
    for _ in range(2):
        make_all(experiment, copied, report)
    assert said == ["making tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", STAGES)
def test_every_file_of_a_stage_is_made_again_as_it_was(experiment, copied, kind, damage):
    for name in sorted(content(folder_of(copied, kind))):
        if name != files.RECORD or damage != "changed":
            repair(experiment, copied, kind, name, damage)


def one_of_each(kinds: Sequence[str]) -> list[Any]:
    """Every kind with every damage, all but one of a kind only in the slow tests."""
    return [
        pytest.param(kind, damage, marks=[] if index % len(CUT) == number else pytest.mark.slow)
        for index, kind in enumerate(kinds)
        for number, damage in enumerate(CUT)
    ]


@pytest.mark.parametrize(("kind", "damage"), one_of_each(["tokens", "sft", "step0"]))
def test_what_is_damaged_after_it_was_checked_is_no_trials_result(
    experiment, copied, whole, tmp_path, monkeypatch, kind, damage
):
    """The disk breaks between the check of a stage and its use; on a whole disk the trial then computes the same."""
    trial = arm_trials(experiment)[0]
    name = {"tokens": "train.arrow", "sft": "model.safetensors", "step0": "held_out.npz"}[kind]
    cached = stages_module.cached

    def breaks(storage: RunStore, what: str, *arguments: Any) -> Path:
        found: Path = cached(storage, what, *arguments)
        if what == kind:
            DAMAGES[damage](found / name)
        return found

    stages_module._load.cache_clear()
    monkeypatch.setattr(stages_module, "cached", breaks)
    with pytest.raises(Paused, match="The shared stages could not be used") as paused:
        run_trial(trial, run=tmp_path / "run", storage=copied, report=nothing)
    assert name in str(paused.value)
    assert results.finished_trials(tmp_path / "run") == {}
    monkeypatch.undo()
    run_trial(trial, run=tmp_path / "run", storage=copied, report=nothing)
    assert_same(tmp_path / "run", whole, trial)


def test_an_error_of_the_model_library_names_no_trial_either(experiment, storage, tmp_path, monkeypatch):
    def fails(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered")

    monkeypatch.setattr(worker, "load_start", fails)
    with pytest.raises(Paused, match="could not be used: SafetensorError: Error while deserializing"):
        run_trial(arm_trials(experiment)[0], run=tmp_path, storage=storage, report=nothing)
    assert results.finished_trials(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Stages that a full disk does not take


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("tokens", "slime_ray.training.stages.write_prompts"),
        ("sft", "transformers.PreTrainedModel.save_pretrained"),
        ("step0", "slime_ray.evaluation.held_out.HeldOut.save"),
        ("baseline", "slime_ray.training.stages._write_answers"),
        ("reference", "slime_ray.training.stages.np.savez"),
        ("step0", "slime_ray.runs.files.seal"),
    ],
)
def test_a_disk_that_is_full_while_a_stage_is_written_is_a_sentence_and_leaves_nothing(
    experiment, copied, monkeypatch, kind, where
):
    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for folder in (copied.root / ".stages").glob("*-*"):
        if folder.is_dir() and STAGES.index(folder.name.split("-")[0]) >= STAGES.index(kind):
            shutil.rmtree(folder)
    left = {path for path in (copied.root / ".stages").iterdir() if path.is_dir()}
    monkeypatch.setattr(where, full)
    with pytest.raises(RunError, match=r"could not be made: .*No space left"):
        make_all(experiment, copied)
    assert {path for path in (copied.root / ".stages").iterdir() if path.is_dir()} == left


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and runs


@pytest.fixture(scope="module")
def paused(experiment: Experiment, storage: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first trial left with a checkpoint of four updates."""
    run = tmp_path_factory.mktemp("paused")
    told = Orders(4, Command("pause", "it was interrupted"))
    with pytest.raises(Paused):
        run_trial(arm_trials(experiment)[0], run=run, storage=storage, report=told, runtime=OFTEN)
    return run


def resume(
    experiment: Experiment, storage: RunStore, paused: Path, whole: Path, copy: Path, name: str, damage: str
) -> int:
    """Damage a file of the checkpoint, and go on; returns how many updates were made again."""
    trial = arm_trials(experiment)[0]
    shutil.copytree(paused, copy)
    [folder] = (copy / "trials" / trial.trial_id / "resume").iterdir()
    DAMAGES[damage](folder / name)
    told = Orders(-1, None)
    run_trial(trial, run=copy, storage=storage, report=told, runtime=OFTEN)
    assert_same(copy, whole, trial)
    return told.steps[0]


NAMES = (
    "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", ".complete"
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage"), [("optimizer.safetensors", "truncated"), ("random.safetensors", "removed")]
)
def test_a_trial_passes_over_a_damaged_checkpoint(experiment, storage, paused, whole, tmp_path, name, damage):
    assert resume(experiment, storage, paused, whole, tmp_path / "run", name, damage) == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", CUT)
def test_a_trial_passes_over_a_checkpoint_whatever_file_is_damaged(
    experiment, storage, paused, whole, tmp_path, damage
):
    [folder] = (paused / "trials" / "arm-slime-s0" / "resume").iterdir()
    assert sorted(content(folder)) == sorted(NAMES)
    for name in NAMES:
        assert resume(experiment, storage, paused, whole, tmp_path / name, name, damage) == 0


def test_a_checkpoint_that_turns_out_to_be_unreadable_is_a_sentence(experiment, storage, paused, tmp_path):
    """Its sizes are those that were recorded, and its content is not."""
    trial = arm_trials(experiment)[0]
    shutil.copytree(paused, tmp_path / "run")
    [folder] = (tmp_path / "run" / "trials" / trial.trial_id / "resume").iterdir()
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(Paused, match=f"The checkpoint {folder} cannot be read .* Delete it"):
        run_trial(trial, run=tmp_path / "run", storage=storage, report=nothing)
    assert results.finished_trials(tmp_path / "run") == {}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "trial.yaml"
    path.write_text(TEXT)
    return path


def train(experiment: Experiment, source: Path, storage: Path, start: Start) -> Path:
    trial = arm_trials(experiment)[0]
    return train_one(experiment, trial, source=source, storage=storage, start=start, say=lambda line: None)


def measure(experiment: Experiment, source: Path, storage: Path, policy: Path) -> dict[str, dict[str, Any]]:
    named = experiment.model_copy(update={"name": "measured"})
    run = evaluate(
        named, [policy], baseline=None, source=source, storage=str(storage), start="fresh", offline=False,
        say=lambda line: None,
    )  # fmt: skip
    return numbers(run)


def numbers(run: Path) -> dict[str, dict[str, Any]]:
    """The rows of a run's trials, without clocks."""
    rows = results.finished_trials(run)
    return {name: {key: row[key] for key in row if key not in CLOCKS} for name, row in rows.items()}


@pytest.fixture(scope="module")
def trained(experiment: Experiment, source: Path, kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with all stages, a run of one trial that has finished, and its evaluation."""
    storage = tmp_path_factory.mktemp("trained")
    shutil.copytree(kept / ".stages", storage / ".stages")
    train(experiment, source, storage, "fresh")
    measure(experiment, source, storage, storage / "trial" / "trials" / "arm-slime-s0")
    return storage


def right_or_a_sentence(work: Callable[[], object], expected: object, file: Path) -> None:
    """What is computed is what was computed before; or else an error names the file, or the folder that it is of."""
    refusal = None
    try:
        found = work()
    except SlimeRayError as error:
        refusal = str(error)
    if refusal is None:
        assert found == expected, file
    else:
        assert file.name in refusal or str(file.parent) in refusal
        assert "\n" not in refusal


def run_files(run: Path) -> list[str]:
    return [name for name in sorted(content(run)) if "tensorboard" not in name and name != ".sweep.lock"]


def check_resumed(experiment: Experiment, source: Path, trained: Path, copy: Path, name: str, damage: str) -> None:
    """Damage a file of a finished run, and give it with --resume."""
    shutil.copytree(trained, copy)
    run = copy / "trial"
    DAMAGES[damage](run / name)
    expected = numbers(trained / "trial")
    right_or_a_sentence(lambda: numbers(train(experiment, source, copy, "resume")), expected, run / name)


def check_measured(experiment: Experiment, source: Path, trained: Path, copy: Path, name: str, damage: str) -> None:
    """Damage a file of a trained trial, and evaluate it anew."""
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "measured")
    folder = copy / "trial" / "trials" / "arm-slime-s0"
    DAMAGES[damage](folder / name)
    expected = numbers(trained / "measured")
    right_or_a_sentence(lambda: measure(experiment, source, copy, folder), expected, folder / name)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", "truncated"),
        ("trials/arm-slime-s0/trial.json", "emptied"),
        ("trials/arm-slime-s0/pairs.parquet", "truncated"),
        ("trials/arm-slime-s0/attempts.json", "truncated"),
    ],
)
def test_a_run_of_which_a_file_is_damaged_is_gone_on_with_or_refused(
    experiment, source, trained, tmp_path, name, damage
):
    check_resumed(experiment, source, trained, tmp_path / "copy", name, damage)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("checkpoint/adapter_model.safetensors", "truncated"), ("checkpoint/adapter_config.json", "emptied")],
)
def test_a_trial_of_which_a_file_is_damaged_is_measured_or_refused(experiment, source, trained, tmp_path, name, damage):
    check_measured(experiment, source, trained, tmp_path / "copy", name, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", CUT)
def test_every_file_of_a_run_is_damaged_before_it_is_gone_on_with(experiment, source, trained, tmp_path, damage):
    for number, name in enumerate(run_files(trained / "trial")):
        check_resumed(experiment, source, trained, tmp_path / str(number), name, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", CUT)
def test_every_file_of_a_trial_is_damaged_before_it_is_measured(experiment, source, trained, tmp_path, damage):
    for number, name in enumerate(run_files(trained / "trial" / "trials" / "arm-slime-s0")):
        check_measured(experiment, source, trained, tmp_path / str(number), name, damage)
