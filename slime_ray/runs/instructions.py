"""What a sweep is asked from elsewhere, as files in its run: stop a trial, run one with other knobs, search on.

    instructions/stop-<trial_id>.json       {"reason": ...}
    instructions/<trial_id>.json            a clone: {"of": ..., "values": ...}
    instructions/extend-<trials>.json       {"trials": how many more than the search's budget that the name has}

The sweep's driver reads the folder again and again. A clone's file stays: a sweep that is gone on with runs it, too.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slime_ray.config.complaints import explain
from slime_ray.config.experiment import Experiment, with_values
from slime_ray.config.search_file import fixed_reason
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError
from slime_ray.runs import files, results
from slime_ray.runs.status import read_status

FOLDER = "instructions"
_TRIAL_ID = re.compile(r"\w[\w.=+,:-]*")
LONGEST_ID = 230
"""Bytes; files of instructions have longer names."""
_STOP = re.compile(r"stop-(.+)")
_EXTEND = re.compile(r"extend-(\d+)")


@dataclass(frozen=True)
class Clone:
    """A trial of the search that a person added. values: all that it sets over base, by path."""

    trial_id: str
    of: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Instructions:
    """All that has been asked of a run.

    stops: reasons by trial id. clones: in the order in which they were asked. extensions: further trials of the search,
    by the budget that they were asked over.
    """

    stops: dict[str, str]
    clones: list[Clone]
    extensions: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> "Instructions":
        """What stands in the folder; a file that cannot be read counts as absent."""
        stops: dict[str, str] = {}
        clones: list[Clone] = []
        extensions: dict[int, int] = {}
        for file in sorted((run / FOLDER).glob("*.json"), key=lambda file: (len(file.stem), file.stem)):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                if match := _STOP.fullmatch(file.stem):
                    stops[match[1]] = str(content["reason"])
                elif match := _EXTEND.fullmatch(file.stem):
                    extensions[int(match[1])] = int(content["trials"])
                elif results.CLONE.fullmatch(file.stem):
                    clones.append(Clone(file.stem, str(content["of"]), dict(content["values"])))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return cls(stops, clones, extensions)


def ask_to_stop(run: Path, trial_id: str, *, running_ids: set[str]) -> Path:
    """Have a running trial end where it is, recorded as stopped. Returns the file that says so.

    running_ids: trials that may run now. Raises InputError where it has finished already or there is none of this id.
    """
    if _finished_row(run, trial_id) is not None:
        raise InputError(f"{trial_id} has finished: there is nothing to stop.")
    if trial_id not in running_ids:
        running_list = ", ".join(sorted(running_ids)) or "none"
        raise InputError(f"{run} has no running trial {trial_id:.100}. Running: {running_list}.")
    path = _folder(run) / f"stop-{trial_id}.json"
    files.write(path, json.dumps({"reason": "stopped by hand"}))
    return path


def forget_stops(run: Path) -> list[Path]:
    """Delete the orders to stop trials whose folders were deleted, so that they run again. Returns their files."""
    stops = [(file, _STOP.fullmatch(file.stem)) for file in (run / FOLDER).glob("stop-*.json")]
    stale = [file for file, match in stops if match and not (run / "trials" / match[1]).is_dir()]
    for file in stale:
        file.unlink(missing_ok=True)
    return stale


def ask_for_more(run: Path, budget: int, trials: int) -> None:
    """Have the search go on after its budget. Raises InputError where that was asked over this budget already."""
    if not _write_new(_folder(run) / f"extend-{budget}.json", {"trials": trials}):
        raise InputError(
            f"{run} was asked to search on after {budget} trials already: its sweep has yet to take it up."
        )


def ask_for_clone(run: Path, experiment: Experiment, trial_id: str, changes: Mapping[str, Any]) -> Clone:
    """Have a trial run again with some knobs changed, as a further trial of the search; returns that one.

    changes: values by path. Raises InputError for a trial without settings, and for values that are not valid.
    """
    values = values_of(run, trial_id) | dict(changes)
    if not changes:
        raise InputError("A clone has to differ from its trial: give --set knob=value.")
    for path in changes:
        # It is ranked among the trials of the search, and may win.
        if (reason := fixed_reason(path)) is not None:
            raise InputError(f"--set: {path} cannot be a clone's own: {reason}. Run an experiment with it in base.")
    try:
        Settings.model_validate(with_values(experiment.base, values))
    except ValidationError as error:
        keys, sentence = explain(error, Settings)[0]
        raise InputError(f"--set: {sentence}{'' if keys else '.'}") from None
    folder = _folder(run)
    clones = [match for file in folder.glob("*.json") if (match := results.CLONE.fullmatch(file.stem))]
    number = 1 + max((int(match[2]) for match in clones), default=0)
    origin = results.CLONE.fullmatch(trial_id)
    while True:
        clone = Clone(f"{origin[1] if origin else trial_id}-clone-{number}", trial_id, values)
        if _write_new(folder / f"{clone.trial_id}.json", {"of": clone.of, "values": clone.values}):
            return clone
        # Somebody else asked at the same moment.
        number += 1


def values_of(run: Path, trial_id: str) -> dict[str, Any]:
    """What a trial sets over base, whether it has finished, runs, or was asked for. Raises InputError for no trial."""
    row = _finished_row(run, trial_id)
    if row is not None:
        return dict(json.loads(row["overrides"] or "{}"))
    for clone in Instructions.read(run).clones:
        if clone.trial_id == trial_id:
            return clone.values
    if (state := read_status(run).trials.get(trial_id)) is not None:
        return dict(state.get("values") or {})
    raise InputError(
        f"{run} has no trial {trial_id:.100} that has begun. `slime-ray status {run}` lists those that run."
    )


def _finished_row(run: Path, trial_id: str) -> dict[str, Any] | None:
    """The row of the run's own finished trial; an id may lead to no other place."""
    if not _TRIAL_ID.fullmatch(trial_id) or len(trial_id.encode()) > LONGEST_ID:
        return None
    return results.finished_trial(run / "trials" / trial_id)


def _write_new(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a file of instructions, whole, unless there is one of this name. Returns whether it was written."""
    partial = files.partial_name(path)
    try:
        files.write(partial, json.dumps(content))
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without links.
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(content, file)
        except FileExistsError:
            return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _folder(run: Path) -> Path:
    """Where instructions are written. Raises InputError where that is not in the run."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, and instructions are written in the run alone. Make it a folder.")
    return folder
