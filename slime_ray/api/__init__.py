"""The platform as functions: each takes an experiment, and gives a `Run` or a plan. The command line calls these.

An experiment is the path of a YAML file, the name of one that ships, the file's content as a mapping, or an
`Experiment`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.config.experiment import Experiment
from slime_ray.errors import InputError

from .opening import ExperimentLike, open_experiment, read_inputs, require_design, require_league
from .run import Run

if TYPE_CHECKING:
    from slime_ray.planning.plan import Plan
    from slime_ray.runs.folder import Start

__all__ = [
    "Run",
    "ablate",
    "evaluate",
    "league",
    "load",
    "open_experiment",
    "plan",
    "read_inputs",
    "report",
    "sweep",
    "train",
]


def sweep(
    experiment: ExperimentLike,
    *,
    name: str | None = None,
    trials: int | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    storage: str | Path = "runs",
    seed: int = 0,
    start: "Start" = "fresh",
    study: str | None = None,
    quiet: bool = False,
) -> Run:
    """Run an experiment on Ray: its arms, its search, its winners again.

    Args:
        experiment: A path, the name of one that ships, a mapping, or an Experiment.
        name: Of the run; None is the experiment's own.
        trials: Of the search, instead of its budget.
        seeds: Of the arms, instead of its own.
        overrides: Dotted paths, such as `training.updates`, with their values.
        storage: Folder of all runs, or an address such as s3://bucket/runs.
        seed: Of the search and of its trials.
        start: `resume` goes on with an interrupted run, `either` where there is one.
        study: Address of a database that keeps the search's memory.
        quiet: Show no progress.

    Returns:
        The run, whose tables and figures show themselves in a notebook.

    Raises:
        InputError: Something given is wrong; nothing was started.
        RunError: It ended before all trials had. `start="resume"` goes on.
    """
    return _sweep(
        experiment, name=name, trials=trials, seeds=seeds, overrides=overrides, storage=storage, seed=seed,
        start=start, study=study, quiet=quiet,
    )  # fmt: skip


def _sweep(
    experiment: ExperimentLike,
    require: Callable[[Experiment, Path | str], None] | None = None,
    *,
    storage: str | Path = "runs",
    seed: int = 0,
    start: "Start" = "fresh",
    study: str | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """`sweep` of an experiment that has what is required."""
    from slime_ray.runs.folder import check_start
    from slime_ray.runs.store import RunStore

    opened, source = open_experiment(experiment, **changes)
    if require is not None:
        require(opened, source)
    if (store := RunStore.of(str(storage), "driver")).url is None:
        check_start(store.root / opened.name, start)
    read_inputs(opened)
    # Ray takes seconds to import, and an error above need not wait for it.
    from rich.console import Console

    from slime_ray.on_ray.sweep import run_sweep

    say = _say(quiet)
    for line in opened.design.announcement(opened.seeds) if opened.design else ():
        say(line)
    say(f"{opened.name}: getting Ray and the shared stages ready.")
    console = Console(quiet=quiet)
    return Run(run_sweep(opened, source=source, storage=storage, seed=seed, start=start, study=study, console=console))


def ablate(experiment: ExperimentLike, **options: Any) -> Run:
    """Run the design of an experiment, every cell with every seed.

    Args:
        experiment: As for `sweep`; it has a design.
        options: As for `sweep`.

    Returns:
        The run.

    Raises:
        InputError: It has no design, or something given is wrong.
        RunError: It ended before all trials had.
    """
    return _sweep(experiment, require_design, **options)


def league(experiment: ExperimentLike, **options: Any) -> Run:
    """Compare objectives at an equal tuning budget.

    Args:
        experiment: As for `sweep`; it has a league.
        options: As for `sweep`, without trials.

    Returns:
        The run.

    Raises:
        InputError: It has no league, or something given is wrong.
        RunError: It ended before all trials had.
    """
    return _sweep(experiment, require_league, **options)


def train(
    experiment: ExperimentLike,
    trial: str | None = None,
    *,
    name: str | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    storage: str | Path = "runs",
    start: "Start" = "fresh",
    quiet: bool = False,
) -> Run:
    """Run one trial of an experiment in this process, without Ray.

    Args:
        experiment: As for `sweep`.
        trial: Which, such as arm-slime-s0; None is the only one.
        name: Of the run; None is the experiment's, with the trial's behind it.
        seeds: Of the arms, instead of its own.
        overrides: Dotted paths with their values.
        storage: Folder of all runs, or an address.
        start: As for `sweep`.
        quiet: Print nothing.

    Returns:
        The run, of one trial.

    Raises:
        InputError: Something given is wrong; nothing was started.
        RunError: The trial failed, or left early.
    """
    from slime_ray.training.single import find_trial, train_one

    opened, source = open_experiment(experiment, name=name, seeds=seeds, overrides=overrides)
    read_inputs(opened)
    single_trial = find_trial(opened, trial)
    if name is None:
        opened = opened.model_copy(update={"name": f"{opened.name}-{single_trial.trial_id}"})
    return Run(train_one(opened, single_trial, source=source, storage=str(storage), start=start, say=_say(quiet)))


def evaluate(
    experiment: ExperimentLike,
    policies: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    storage: str | Path = "runs",
    start: "Start" = "fresh",
    offline: bool = False,
    quiet: bool = False,
) -> Run:
    """Measure checkpoints, trials or files of answers, without a sweep.

    Args:
        experiment: As for `sweep`; its `base` says how prompts, model and judge are.
        policies: Folders with a checkpoint, folders of trials, Hub ids, or .jsonl files of answers; each makes a row.
        baseline: What they are compared with; None is the SFT checkpoint.
        name: Of the run; None is the experiment's, with `-evaluation` behind it.
        overrides: Dotted paths with their values.
        storage: Folder of all runs, or an address.
        start: As for `sweep`.
        offline: Ask no judge that costs; kept verdicts answer alone.
        quiet: Print nothing.

    Returns:
        The run, a row for each policy.

    Raises:
        InputError: Something given is wrong; nothing was measured.
        RunError: A judge stopped.
    """
    from slime_ray.training.evaluate import evaluate as measure

    opened, source = open_experiment(experiment, name=name, overrides=overrides)
    read_inputs(opened)
    if name is None:
        opened = opened.model_copy(update={"name": f"{opened.name}-evaluation"})
    folder = measure(
        opened, [Path(policy) for policy in policies], baseline=None if baseline is None else Path(baseline),
        source=source, storage=str(storage), start=start, offline=offline, say=_say(quiet),
    )  # fmt: skip
    return Run(folder)


def load(run: str | Path) -> Run:
    """Open a run that is there.

    Args:
        run: Its folder, or its address.

    Returns:
        The run.

    Raises:
        InputError: There is no run.
    """
    from slime_ray.runs.results import read_manifest
    from slime_ray.runs.store import local_folder

    folder = local_folder(str(run))
    read_manifest(folder)
    return Run(folder)


def report(
    run: str | Path | Run,
    out: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    difficulties: str | Path | None = None,
    paper: bool = False,
) -> Path:
    """Write tables, figures and report.html of a run.

    Args:
        run: The run, its folder, or its address.
        out: Folder to write to; None is the run's own folder `report`.
        labels: File with verdicts of people, or of a stronger judge, on some of the answers.
        difficulties: CSV with the prompts' difficulties, for AlpacaEval's length-controlled rate.
        paper: Whether paper.tex is written too, with methods and tables for LaTeX.

    Returns:
        Where report.html is.

    Raises:
        InputError: There is no run, nothing has finished, or `out` cannot be written.
    """
    from slime_ray.analysis.report import write_report

    path = (run if isinstance(run, Run) else load(run)).path
    return write_report(path, out, labels=labels, difficulties=difficulties, paper=paper).html


def plan(
    experiment: ExperimentLike,
    *,
    trials: int | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    storage: str | Path = "runs",
    gpus: int | None = None,
    gpu: str | None = None,
) -> "Plan":
    """Say what an experiment will take; nothing is started.

    Args:
        experiment: As for `sweep`.
        trials: Of the search, instead of its budget.
        seeds: Of the arms, instead of its own.
        overrides: Dotted paths with their values.
        storage: Where it would be written, for the room there.
        gpus: Plan for so many GPUs, without looking at any; None is this machine.
        gpu: Their kind, such as h100.

    Returns:
        The plan: `print(plan.text())`, or `plan.as_dict()`.

    Raises:
        InputError: Something given is wrong, or too little is known.
    """
    from slime_ray.on_ray.resources import given_cluster, this_machine
    from slime_ray.planning.estimate import Planner
    from slime_ray.runs.store import RunStore

    if (gpus is None) != (gpu is None):
        raise InputError("gpus and gpu go together: so many GPUs, and their kind.")
    opened, _ = open_experiment(experiment, trials=trials, seeds=seeds, overrides=overrides)
    read_inputs(opened)
    if gpus is None or gpu is None:
        return Planner(opened).plan(this_machine(opened, storage=RunStore.of(str(storage), "driver")))
    return Planner(opened).plan(given_cluster(opened, gpus=gpus, gpu=gpu))


def _say(quiet: bool) -> Any:
    return (lambda line: None) if quiet else lambda line: print(line, file=sys.stdout, flush=True)
