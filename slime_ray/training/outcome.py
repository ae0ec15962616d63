"""How a trial ends: its row, written whatever happened, and the errors that say it is not over yet.

Nothing heavy is imported here: the driver of a trial of several workers needs it, and trains nothing itself.
"""

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slime_ray.config.experiment import Trial
from slime_ray.errors import RunError, device_error
from slime_ray.runs import files, results
from slime_ray.training import attempts
from slime_ray.training.orders import Command, Report

if TYPE_CHECKING:
    from slime_ray.evaluation.judges import Summary

T = TypeVar("T")
CHECKPOINTS, MODEL, JUDGING = results.CHECKPOINTS, results.MODEL, results.JUDGING


class RanksDiffer(Exception):
    """The ranks of a trial do not hold the same configuration or the same version of this package."""


class OutOfMemory(Exception):
    """A trial ran out of memory for the first time; a fresh process may try once more."""


class DeviceFailure(Exception):
    """A GPU failed, and with it whatever this process would compute there: another process runs the trial again.

    The message names the node.
    """


class StageError(RunError):
    """Shared stages could not be made or used: their damage is no result of the trial that comes upon it."""


def blank_row(trial: Trial, started: datetime) -> dict[str, Any]:
    """The row of a trial of which nothing is measured yet: what it is, and where and when it began."""
    return results.trial_row(
        trial_id=trial.trial_id,
        phase=trial.phase,
        label=trial.label,
        seed=trial.seed,
        objective=trial.settings.objective.name,
        overrides=trial.values,
        settings=trial.settings.model_dump(mode="json"),
        config_hash=trial.config_hash,
        prompt_set=trial.prompt_set,
        judge=trial.settings.judge_identity,
        started=started.isoformat(timespec="seconds"),
        host=platform.node(),
    )


def record_failure(
    trial: Trial, run: Path, reason: str, *, workers: int = 1, storage_minutes: float = 1.0
) -> dict[str, Any]:
    """Write the row of a trial that cannot go on, and return it. Raises StorageError."""
    row = blank_row(trial, datetime.now(UTC)) | {
        "status": "failed", "reason": reason, "healthy": False, "stability": 0.0, "workers": workers
    }  # fmt: skip
    finish(trial, run, row, say_nothing, storage_minutes=storage_minutes)
    return row


def finish(
    trial: Trial,
    run: Path,
    row: dict[str, Any],
    report: Report,
    *,
    storage_minutes: float,
    **tables: Sequence[Mapping[str, Any]],
) -> None:
    """Write a trial's result, for as long as the storage may need to take it, and drop its checkpoints.

    tables: rows of its other files, as `write_trial` takes them. Raises StorageError where the storage has not taken
    it for so long.
    """
    folder = run / "trials" / trial.trial_id
    history = attempts.read(folder)
    row |= {"attempts": max(1, len(history)), "lost_seconds": sum(attempt.lost_seconds for attempt in history[:-1])}
    patiently(lambda: results.write_trial(run, row=row, **tables), report, minutes=storage_minutes)
    attempts.note(folder, ended="failed" if row["status"] == "failed" else "finished")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def write_judging(summary: "Summary | None", folder: Path, report: Report, *, minutes: float) -> None:
    """Write what the judge took, if there was one, beside the trial's other files, as `patiently` does."""
    if summary is not None:
        text = json.dumps(asdict(summary), indent=1)
        patiently(lambda: files.write(folder / JUDGING, text), report, minutes=minutes)


def patiently(work: Callable[[], T], report: Callable[[dict[str, Any]], object], *, minutes: float) -> T:
    """Do what a storage may refuse for a while, again and again, and return what came of it.

    report: hears why it is not done yet. Raises StorageError when the storage has refused for so long.
    """
    deadline, pause = time.monotonic() + 60 * minutes, 0.5
    while True:
        try:
            return work()
        except Exception as error:
            refusal = error if isinstance(error, OSError) else files.storage_error(error)
            if refusal is None:
                raise
            if time.monotonic() + pause > deadline:
                raise refused(refusal) from error
            report({"doing": f"waiting for storage ({one_sentence(refusal)})"})
            time.sleep(pause)
            pause = min(2 * pause, 30.0)


def refused(error: OSError) -> files.StorageError:
    """The error as one of a storage that was given time."""
    return error if isinstance(error, files.StorageError) else files.StorageError(one_sentence(error))


def what_failed(error: RunError | OSError) -> str:
    """Why a trial leaves without a result for something that is not its own fault, as a sentence."""
    return str(error) if isinstance(error, RunError) else f"the storage does not take what is written ({error})"


def device_failure(error: BaseException) -> DeviceFailure | None:
    """The failure of a GPU of this node that an error tells of, if it does."""
    if isinstance(error, DeviceFailure):
        return error
    cause = device_error(error)
    return DeviceFailure(f"node {platform.node()}: {one_sentence(cause)}") if cause else None


@contextmanager
def gpu_failures_as_sentences() -> Iterator[None]:
    """Raise the failure of a GPU as a RunError, where no other process can go on by itself."""
    try:
        yield
    except Exception as error:
        if failure := device_failure(error):
            raise RunError(
                f"A GPU failed ({failure}). Give the same command with --resume to go on, once it works or elsewhere."
            ) from None
        raise


def one_sentence(error: BaseException) -> str:
    """An error as one line that names its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def say_nothing(metrics: Mapping[str, Any]) -> Command | None:
    """A report to nobody."""
    return None
