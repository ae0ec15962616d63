"""`slime-ray reproduce`: the tables of the paper, at its scale on a cluster or in miniature here."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray.cli.options import add_command, console, quiet_option, show_report, start_options, storage_option

if TYPE_CHECKING:
    from slime_ray.config.experiment import Experiment
    from slime_ray.config.reproduction import Reproduction


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register it."""
    reproduce = add_command(
        commands, "reproduce", "run one of the paper's tables, on a cluster or in miniature",
        examples=[
            "slime-ray reproduce --table 4 --scale demo  # on the embedded task, here",
            "slime-ray reproduce --table 4 --model gemma3-4b --judge gpt-4.1 --plan  # the plan alone",
            "slime-ray reproduce --table 4 --model gemma3-4b --judge gpt-4.1 --write table4.yaml",
            "slime-ray launch table4.yaml --storage s3://bucket/runs  # on a cluster",
        ],
        more="Resolves the recipe of one of the paper's tables, prints what it will run, where paper and code\n"
        "disagree and what it will cost, and runs it.",
    )  # fmt: skip
    reproduce.add_argument("--table", type=int, required=True, metavar="3|4|5", help="which of the paper's tables")
    reproduce.add_argument("--model", metavar="FAMILY", help="llama3.2-3b, qwen3-4b or gemma3-4b")
    reproduce.add_argument(
        "--scale", choices=("paper", "demo"), default="paper", help="`demo` is the same design on the embedded task"
    )
    reproduce.add_argument(
        "--judge", metavar="MODEL", help="a model at an OpenAI-compatible endpoint that compares answers"
    )
    reproduce.add_argument("--questions", type=Path, metavar="FILE", help="of Arena-Hard or MT-Bench, to be answered")
    reproduce.add_argument("--seeds", metavar="N|LIST", help="instead of five: 8 is 0 to 7, or a list such as 0,1,5")
    reproduce.add_argument("--name", help="name of the run (default table4-gemma3-4b, say)")
    storage_option(reproduce)
    reproduce.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set one value; may be repeated",
    )
    then = reproduce.add_mutually_exclusive_group()
    then.add_argument("--plan", action="store_true", help="print the plan and stop")
    then.add_argument("--write", type=Path, metavar="FILE", help="write the experiment to a file instead of running it")
    start_options(reproduce)
    quiet_option(reproduce)
    reproduce.set_defaults(command=_reproduce)


def _reproduce(options: argparse.Namespace) -> None:
    from slime_ray.config.experiment_file import parse_override
    from slime_ray.config.reproduction import reproduction
    from slime_ray.search_spaces import shipped_spaces

    overrides = dict(parse_override(text) for text in options.overrides)
    with tempfile.TemporaryDirectory() as scratch:
        found = reproduction(
            options.table,
            spaces=shipped_spaces(), into=options.write or Path(scratch, "experiment.yaml"), model=options.model,
            scale=options.scale, judge=options.judge, questions=options.questions, seeds=options.seeds,
            overrides=overrides, name=options.name,
        )  # fmt: skip
        if options.plan or not options.quiet:
            print(found.text())
            print(_cost(found, options.storage))
        if options.write:
            print(f"\nWritten to {options.write}: run it with `slime-ray ablate` or `slime-ray launch`.")
        elif not options.plan:
            _run(found.experiment, found.source, options)


def _cost(found: "Reproduction", storage: str) -> str:
    """What it will take: of the paper's scale on its GPUs, of the miniature here."""
    from slime_ray.config.reproduction import GPU, GPUS, LENGTHS, PAIRS
    from slime_ray.on_ray.resources import given_cluster, this_machine
    from slime_ray.planning.estimate import plan_experiment
    from slime_ray.planning.material import DataAssumptions
    from slime_ray.runs.store import RunStore

    if found.scale == "demo":
        cluster, given = this_machine(found.experiment, storage=RunStore.of(storage, "driver")), DataAssumptions()
    else:
        cluster, given = given_cluster(found.experiment, gpus=GPUS, gpu=GPU), DataAssumptions(PAIRS, LENGTHS)
    return "\n" + plan_experiment(found.experiment, cluster=cluster, given=given).text()


def _run(experiment: "Experiment", source: Path, options: argparse.Namespace) -> None:
    from slime_ray.evaluation.questions import check_questions
    from slime_ray.on_ray.sweep import run_sweep
    from slime_ray.runs.store import RunStore

    check_questions(experiment)
    run = run_sweep(
        experiment, source=source, storage=options.storage, seed=0, start=options.start, console=console(options)
    )  # fmt: skip
    show_report(run, None, RunStore.of(options.storage, "driver"), quiet=options.quiet)
