"""Commands that say what an experiment will cost: plan, and reproduce for the tables of the paper."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.cli.options import (
    EXPERIMENT,
    QUIET,
    SET,
    START,
    STORAGE,
    add_command,
    describe_design,
    exclusive,
    load_checked,
    option,
    run_and_report,
)  # fmt: skip
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.config.experiment import Experiment
    from slime_ray.config.reproduction import Reproduction
    from slime_ray.planning.estimate import Planner
    from slime_ray.planning.plan import Cluster
    from slime_ray.planning.prices import GpuPrices
    from slime_ray.planning.rates import MeasuredRates


def add_commands(commands: Any) -> None:
    """Register them."""
    add_command(
        commands, "plan", _plan, "what an experiment will take: time, memory, disk, cost; nothing is started",
        [
            "slime-ray plan mine.yaml",
            "slime-ray plan mine.yaml --probe",
            "slime-ray plan mine.yaml --gpus 64 --gpu h100 --pairs 61135 --lengths 180,250,250",
        ],
        *EXPERIMENT,
        option(
            "--probe", action="store_true",
            help="measure the work of one trial first, for about a minute, where trials run",
        ),
        option("--gpus", type=int, metavar="N", help="plan for so many GPUs, without looking at any (with --gpu)"),
        option("--gpu", metavar="NAME", help="their kind, by the table of prices, such as h100"),
        option("--pairs", type=int, metavar="N", help="pairs of the data set, where it is not read"),
        option(
            "--lengths", metavar="P,C,R", help="mean tokens of prompt, chosen and rejected, where the data is not read"
        ),
        option("--prices", type=Path, metavar="FILE", help="GPUs and prices of yours, laid over the table that ships"),
        option("--json", action="store_true", help="print the plan as JSON instead"),
        more="Exit code 2 where something does not fit: memory, disk or a budget.",
    )  # fmt: skip
    add_command(
        commands, "serve-answers", _serve_answers, "serve an SFT checkpoint by vLLM, for evaluation.engine",
        ["slime-ray serve-answers /shared/runs/.stages/sft-1a2b3c --model sft --rank 64"],
        option("checkpoint", type=Path, metavar="CHECKPOINT", help="its folder, which the serving node has to see"),
        option("--model", default="sft", metavar="NAME", help="what it is called (default: sft)"),
        option("--rank", type=int, default=64, metavar="N", help="highest rank of an adapter (default: 64)"),
        option("--adapters", type=int, default=4, metavar="N", help="adapters in use at a time (default: 4)"),
        option("--port", type=int, default=8000, metavar="N", help="its port (default: 8000)"),
        option("--gpus", type=int, default=1, metavar="N", help="GPUs that it takes (default: 1)"),
        more="Needs the extra vllm. Ctrl-C ends it. It is for private networks: it loads any path that it is told.",
    )  # fmt: skip
    add_command(
        commands, "reproduce", _reproduce, "run one of the paper's tables, on a cluster or in miniature",
        [
            "slime-ray reproduce --table 4 --scale demo  # on the embedded task, here",
            "slime-ray reproduce --table 4 --model gemma3-4b --judge gpt-4.1 --plan  # the plan alone",
            "slime-ray reproduce --table 4 --model gemma3-4b --judge gpt-4.1 --write table4.yaml",
            "slime-ray launch table4.yaml --storage s3://bucket/runs  # on a cluster",
        ],
        option("--table", type=int, required=True, metavar="3|4|5", help="which of the paper's tables"),
        option("--model", metavar="FAMILY", help="llama3.2-3b, qwen3-4b or gemma3-4b"),
        option(
            "--scale", choices=("paper", "demo"), default="paper", help="`demo` is the same design on the embedded task"
        ),
        option("--judge", metavar="MODEL", help="a model at an OpenAI-compatible endpoint that compares answers"),
        option("--questions", type=Path, metavar="FILE", help="of Arena-Hard or MT-Bench, to be answered"),
        option("--seeds", metavar="N|LIST", help="instead of five: 8 is 0 to 7, or a list such as 0,1,5"),
        option("--name", help="name of the run (default table4-gemma3-4b, say)"),
        STORAGE, SET,
        exclusive(
            option("--plan", action="store_true", help="print the plan and stop"),
            option("--write", type=Path, metavar="FILE", help="write the experiment to a file instead of running it"),
        ),
        START, QUIET,
        more="Resolves the recipe of one of the paper's tables, prints what it will run, where paper and code\n"
        "disagree and what it will cost, and runs it.",
    )  # fmt: skip


def _plan(options: argparse.Namespace) -> None:
    experiment, _ = load_checked(options)
    from slime_ray.planning.estimate import Planner
    from slime_ray.planning.material import DataAssumptions, parse_lengths
    from slime_ray.planning.prices import load_prices

    prices = load_prices(options.prices)
    _check(options, experiment, prices)
    lengths = parse_lengths(options.lengths) if options.lengths else None
    planner = Planner(experiment, assumptions=DataAssumptions(options.pairs, lengths), prices=prices)
    cluster, measured = _find_cluster(options, experiment, planner)
    plan = planner.plan(cluster, measured)
    print(json.dumps(plan.as_dict(), indent=1) if options.json else plan.text())
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


def _find_cluster(
    options: argparse.Namespace, experiment: "Experiment", planner: "Planner"
) -> "tuple[Cluster, MeasuredRates | None]":
    """The cluster that the plan is for, and what a probe measured there, if one is wanted."""
    from slime_ray.on_ray.resources import given_cluster, this_machine
    from slime_ray.runs.store import RunStore

    storage = RunStore.of(options.storage, "driver")
    planned_cluster = given_cluster(experiment, gpus=options.gpus, gpu=options.gpu) if options.gpus else None
    remote = os.environ.get("RAY_ADDRESS") not in (None, "", "local")
    if not options.probe and (planned_cluster or not remote):
        return planned_cluster or this_machine(experiment, storage=storage), None
    clock = time.perf_counter()
    from slime_ray.on_ray.cluster_state import present_cluster
    from slime_ray.on_ray.connection import connected

    with connected():
        connect_seconds = time.perf_counter() - clock
        rates = None
        if options.probe:
            from rich.console import Console

            from slime_ray.on_ray.prepare import probe_on_cluster, show

            store, material = RunStore.of(options.storage, "trials"), planner.material(experiment.settings)
            rates = probe_on_cluster(experiment, material, storage=store, around=connect_seconds)
            show(rates, Console(stderr=options.json))
        return planned_cluster or present_cluster(experiment, storage=storage), rates


def _reproduce(options: argparse.Namespace) -> None:
    from slime_ray import api
    from slime_ray.config.experiment_file import parse_override
    from slime_ray.config.reproduction import reproduction
    from slime_ray.search_spaces import shipped_spaces

    overrides = dict(parse_override(text) for text in options.overrides)
    with tempfile.TemporaryDirectory() as scratch:
        table = reproduction(
            options.table,
            spaces=shipped_spaces(), into=options.write or Path(scratch, "experiment.yaml"), model=options.model,
            scale=options.scale, judge=options.judge, questions=options.questions, seeds=options.seeds,
            overrides=overrides, name=options.name,
        )  # fmt: skip
        if options.plan or not options.quiet:
            print(table.text())
            if options.plan or options.write:
                # A sweep says it itself.
                describe_design(table.experiment)
            print(_cost(table, options.storage))
        if options.write:
            print(f"\nWritten to {options.write}: run it with `slime-ray ablate` or `slime-ray launch`.")
        elif not options.plan:
            run_and_report(api.sweep, table.source, storage=options.storage, start=options.start, quiet=options.quiet)


def _cost(table: "Reproduction", storage: str) -> str:
    """What it will take: of the paper's scale on its GPUs, of the miniature here."""
    from slime_ray.config.reproduction import GPU, GPUS, LENGTHS, PAIRS
    from slime_ray.on_ray.resources import given_cluster, this_machine
    from slime_ray.planning.estimate import Planner
    from slime_ray.planning.material import DataAssumptions
    from slime_ray.runs.store import RunStore

    if table.scale == "demo":
        cluster, data = this_machine(table.experiment, storage=RunStore.of(storage, "driver")), DataAssumptions()
    else:
        cluster, data = given_cluster(table.experiment, gpus=GPUS, gpu=GPU), DataAssumptions(PAIRS, LENGTHS)
    return "\n" + Planner(table.experiment, assumptions=data).plan(cluster).text()


def _serve_answers(options: argparse.Namespace) -> None:
    from slime_ray.on_ray.answer_server import serve_answers

    serve_answers(
        options.checkpoint, model=options.model, rank=options.rank, adapters=options.adapters, port=options.port,
        gpus=options.gpus, say=print,
    )  # fmt: skip
