"""What is done to a run that is there, from wherever: a trial is stopped or cloned, a search goes on.

The commands and the live page call the same functions, on a folder or on a copy of what an object store has.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from slime_ray.config.experiment import MOST_TRIALS, Experiment
from slime_ray.config.points import count_points, with_values
from slime_ray.errors import InputError
from slime_ray.runs.folder import read_experiment, refuse_other_inputs
from slime_ray.runs.inputs import hashes_of
from slime_ray.runs.instructions import FOLDER, Clone, ask_for_clone, ask_for_more, ask_to_stop
from slime_ray.runs.results import finished_trials, read_manifest
from slime_ray.runs.status import read_status
from slime_ray.runs.store import RunStore, copy_run, is_url, split_address


@contextmanager
def open_run(address: str, run_store: RunStore | None = None) -> Iterator[tuple[Path, RunStore]]:
    """Yield a run's folder on this machine, up to date but for models, with its storage.

    Args:
        address: Folder of the run, or its address.
        run_store: The storage of an earlier call, which knows what it has fetched.
    """
    if not is_url(address):
        run = Path(address).resolve()
        local_store = RunStore(run.parent)
        with local_store.raise_store_errors():
            yield run, local_store
        return
    storage, name = split_address(address)
    run_store = run_store or RunStore.of(storage, "reports")
    run_store.root.mkdir(parents=True, exist_ok=True)
    # Bringing the copy up to date deletes what another command has yet to send.
    with FileLock(run_store.root / f".{name}.lock"):
        run, _ = copy_run(address, run_store)
        with run_store.raise_store_errors():
            yield run, run_store


def stop_trial(run: Path, run_store: RunStore, trial: str) -> str:
    """Have a running trial end at its next report, and say so. Raises InputError where none is at work on it."""
    read_manifest(run)
    status = read_status(run)
    if not status.at_work:
        raise InputError(f"No sweep is at work on {run}: there is nothing to stop.")
    ask_to_stop(run, trial, running_ids=set(status.trials))
    run_store.push(run / FOLDER)
    return f"{trial} will end at its next report and be recorded as stopped."


def clone_trial(run: Path, run_store: RunStore, trial: str, changes: Mapping[str, Any]) -> Clone:
    """Have a trial run again with some knobs changed. Raises InputError where that cannot be done."""
    experiment, status = read_experiment(run), read_status(run)
    # Of a league no clone wins.
    if status.at_work and experiment.league is None and any(name.startswith("confirm-") for name in status.trials):
        raise InputError(
            f"{run} confirms its winners, and a clone may win. Clone {trial} when the sweep has ended: "
            f"`slime-ray extend {run}` then runs it."
        )
    refuse_other_inputs(run, read_manifest(run), hashes_of(experiment), experiment)
    clone = ask_for_clone(run, experiment, trial, changes)
    run_store.push(run / FOLDER)
    return clone


def extend_experiment(experiment: Experiment, trials: int, run: str) -> Experiment:
    """Give the experiment more trials of each search. run: as it is called. Raises InputError."""
    if max((part.trials for part in experiment.searches), default=0) + trials > MOST_TRIALS:
        raise InputError(f"--trials {trials}: {MOST_TRIALS:,} trials of a run are the limit.")
    if trials < 0:
        raise InputError(f"--trials {trials}: give the number of further trials.")
    if trials and not experiment.searches:
        raise InputError(f"{run} has no search that could have more trials.")
    for part in experiment.searches if trials else ():
        points = count_points(part.search, with_values(experiment.base, part.set))
        if points is not None and part.trials + trials > points:
            raise InputError(
                f"{run} has {part.trials} trials{f' of {part.label}' if part.label else ''}, and its space "
                f"only {points} points, each of which is tried once. Give --trials {points - part.trials} at most."
            )
    if league := experiment.league:
        return experiment.model_copy(update={"league": league.model_copy(update={"trials": league.trials + trials})})
    budget = experiment.budget
    return experiment.model_copy(update={"budget": budget.model_copy(update={"trials": budget.trials + trials})})


def extend_search(run: Path, run_store: RunStore, budget: int, trials: int) -> None:
    """Have a search that is at work go on after its budget. Raises InputError where it cannot.

    Args:
        run: Its folder.
        run_store: Its storage.
        budget: Trials of the search as whoever asks knows them: who asks twice is refused.
        trials: How many more.
    """
    if not read_status(run).at_work:
        raise InputError(f"No sweep is at work on {run}. `slime-ray extend {run} --trials {trials}` goes on with it.")
    experiment = read_experiment(run)
    if experiment.league is not None:
        raise InputError(f"{run} is a league. When its sweep has ended, `slime-ray extend {run}` gives it more trials.")
    if experiment.budget.trials != budget:
        raise InputError(f"The search has {experiment.budget.trials} trials by now, not {budget}. Look again.")
    if trials < 1:
        raise InputError("Give the number of further trials, 1 or more.")
    if any(row.get("phase") == "confirm" for row in finished_trials(run).values()):
        raise InputError(f"The search is over. When its sweep has ended, `slime-ray extend {run}` goes on with it.")
    extend_experiment(experiment, trials, str(run))
    ask_for_more(run, budget, trials)
    run_store.push(run / FOLDER)
