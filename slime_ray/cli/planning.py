"""The command that says what an experiment will cost: plan."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray.cli.options import add_command, checked, experiment_options
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.config.experiment import Experiment
    from slime_ray.planning.estimate import Planner
    from slime_ray.planning.plan import Cluster
    from slime_ray.planning.prices import GpuPrices
    from slime_ray.planning.rates import MeasuredRates


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register it."""
    plan = add_command(
        commands, "plan", "what an experiment will take: time, memory, disk, cost; nothing is started",
        examples=[
            "slime-ray plan mine.yaml",
            "slime-ray plan mine.yaml --probe",
            "slime-ray plan mine.yaml --gpus 64 --gpu h100 --pairs 61135 --lengths 180,250,250",
        ],
        more="Exit code 2 where something does not fit: memory, disk or a budget.",
    )  # fmt: skip
    experiment_options(plan)
    add = plan.add_argument
    add(
        "--probe", action="store_true", help="measure the work of one trial first, for about a minute, where trials run"
    )
    add("--gpus", type=int, metavar="N", help="plan for so many GPUs, without looking at any (with --gpu)")
    add("--gpu", metavar="NAME", help="their kind, by the table of prices, such as h100")
    add("--pairs", type=int, metavar="N", help="pairs of the data set, where it is not read")
    add("--lengths", metavar="P,C,R", help="mean tokens of prompt, chosen and rejected, where the data is not read")
    add("--prices", type=Path, metavar="FILE", help="GPUs and prices of yours, laid over the table that ships")
    add("--json", type=Path, metavar="OUT", help="also write the plan to this file")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> None:
    experiment, _ = checked(options)
    import json

    from slime_ray.planning.estimate import Planner
    from slime_ray.planning.material import DataAssumptions, parse_lengths
    from slime_ray.planning.prices import load_prices

    prices = load_prices(options.prices)
    _check(options, experiment, prices)
    lengths = parse_lengths(options.lengths) if options.lengths else None
    planner = Planner(experiment, given=DataAssumptions(options.pairs, lengths), prices=prices)
    cluster, measured = _look(options, experiment, planner)
    plan = planner.plan(cluster, measured)
    print(plan.text())
    if options.json:
        from slime_ray.runs.results import write_text

        write_text(options.json, json.dumps(plan.as_dict(), indent=1) + "\n")
    plan.refuse()


def _check(options: argparse.Namespace, experiment: "Experiment", prices: "GpuPrices") -> None:
    if (options.gpus is None) != (options.gpu is None):
        raise InputError("--gpus N and --gpu NAME go together: so many GPUs, and their kind.")
    for name in ("gpus", "pairs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least 1.")
    if options.gpu is not None:
        prices.get(options.gpu, option="--gpu")
        if not experiment.resources.gpu_per_worker:
            raise InputError(
                "--gpus: the experiment's trials use none. Add `resources: {gpu_per_worker: 1}` to the file, or "
                "--set resources.gpu_per_worker=1."
            )
    if options.json and not options.json.absolute().parent.is_dir():
        raise InputError(f"--json {options.json}: cannot be written. Name a file in a folder that exists.")


def _look(
    options: argparse.Namespace, experiment: "Experiment", planner: "Planner"
) -> "tuple[Cluster, MeasuredRates | None]":
    """The cluster that the plan is for, and what a probe measured there, if one is wanted."""
    import os
    import time

    from slime_ray.on_ray.resources import given_cluster, this_machine
    from slime_ray.runs.store import RunStore

    storage = RunStore.of(options.storage, "driver")
    given = given_cluster(experiment, gpus=options.gpus, gpu=options.gpu) if options.gpus else None
    remote = os.environ.get("RAY_ADDRESS") not in (None, "", "local")
    if not options.probe and (given or not remote):
        return given or this_machine(experiment, storage=storage), None
    clock = time.perf_counter()
    from slime_ray.on_ray.cluster_state import connected_cluster
    from slime_ray.on_ray.connection import connected

    with connected():
        around = time.perf_counter() - clock
        measured = None
        if options.probe:
            from rich.console import Console

            from slime_ray.on_ray.prepare import probe_on_cluster, show

            measured = probe_on_cluster(
                experiment, planner.probed_sample(), storage=RunStore.of(options.storage, "trials"), around=around
            )
            show(measured, Console())
        found = connected_cluster(experiment, storage=storage) if remote else this_machine(experiment, storage=storage)
        return given or found, measured
