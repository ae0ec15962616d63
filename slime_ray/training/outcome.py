"""How a trial ends: its row, written whatever happened, and the errors that say it is not over yet.

Nothing heavy is imported here: the driver of a trial of several workers needs it, and trains nothing itself.
"""

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray import results
from slime_ray.experiment import Trial
from slime_ray.training import attempts
from slime_ray.training.orders import Order, Report

if TYPE_CHECKING:
    from slime_ray.evaluation.judges import Summary

CHECKPOINTS, MODEL, JUDGING = results.CHECKPOINTS, results.MODEL, results.JUDGING


class RanksDiffer(Exception):
    """The ranks of a trial do not hold the same configuration or the same version of this package."""


class OutOfMemory(Exception):
    """A trial ran out of memory for the first time; a fresh process may try once more."""


def blank_row(trial: Trial, started: datetime) -> dict[str, Any]:
    """The row of a trial of which nothing is measured yet: what it is, and where and when it began."""
    return results.trial_row(
        trial_id=trial.trial_id,
        phase=trial.phase,
        label=trial.label,
        seed=trial.seed,
        objective=trial.settings.objective.name,
        settings=trial.values,
        config=trial.settings.model_dump(mode="json"),
        config_hash=trial.config_hash,
        prompt_set=trial.prompt_set,
        judge=trial.settings.judge_identity,
        started=started.isoformat(timespec="seconds"),
        host=platform.node(),
    )


def record_failure(trial: Trial, run: Path, reason: str, *, workers: int = 1) -> dict[str, Any]:
    """Write the row of a trial that cannot go on, and return it."""
    row = blank_row(trial, datetime.now(UTC)) | {
        "status": "failed", "reason": reason, "healthy": False, "stability": 0.0, "workers": workers
    }  # fmt: skip
    finish(trial, run, row, [], [], [], say_nothing, storage_minutes=1.0)
    return row


def finish(
    trial: Trial,
    run: Path,
    row: dict[str, Any],
    answers: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    report: Report,
    *,
    storage_minutes: float,
) -> None:
    """Write a trial's result, for as long as the storage may need to take it, and drop its checkpoints.

    Raises OSError where it has not taken it for so long.
    """
    folder = run / "trials" / trial.trial_id
    made = attempts.read(folder)
    row |= {"attempts": max(1, len(made)), "lost_seconds": sum(attempt.lost_seconds for attempt in made[:-1])}
    patiently(
        lambda: results.write_trial(run, row=row, answers=answers, curves=curves, pairs=pairs),
        seconds=60 * storage_minutes,
        say=waiting_for_storage(report),
    )
    attempts.note(folder, ended="failed" if row["status"] == "failed" else "finished")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def write_judging(summary: "Summary | None", folder: Path, *, seconds: float, say: Callable[[str], object]) -> None:
    """Write what the judge took, if there was one, beside the trial's other files, as `patiently` does."""
    if summary is not None:
        text = json.dumps(asdict(summary), indent=1)
        patiently(lambda: results.write_text(folder / JUDGING, text), seconds=seconds, say=say)


def waiting_for_storage(report: Report) -> Callable[[str], object]:
    """Tells `report` why a result is not written yet."""
    return lambda error: report({"doing": f"waiting for storage ({error})"})


def patiently(work: Callable[[], None], *, seconds: float, say: Callable[[str], object]) -> None:
    """Do what a storage may refuse for a while, again and again. Raises its OSError when it has refused for so long."""
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            work()
        except OSError as error:
            if time.monotonic() + pause > deadline:
                raise
            say(one_sentence(error))
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
        else:
            return


def one_sentence(error: BaseException) -> str:
    """An error as one line that names its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def say_nothing(told: Mapping[str, Any]) -> Order | None:
    """A report to nobody."""
    return None
