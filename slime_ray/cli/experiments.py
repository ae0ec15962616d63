"""Commands that run or look at an experiment: sweep, ablate, train, evaluate, launch, demo, doctor, check."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray.cli.options import checked, experiment_options, load, show_report, start_options
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.experiment import Experiment


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    sweep = commands.add_parser("sweep", help="run an experiment: its arms, its search, its winners again")
    sweep.set_defaults(command=_sweep)
    ablate = commands.add_parser("ablate", help="run the design of an experiment, every cell with every seed")
    ablate.set_defaults(command=_ablate)
    for command in (sweep, ablate):
        experiment_options(command)
        command.add_argument("--seed", type=int, default=0, help="seed of the search and of its trials (default 0)")
        start_options(command)
        command.add_argument(
            "--study", metavar="URL", default=os.environ.get("SLIME_RAY_STUDY") or None,
            help="keep the search's study in a database, such as postgresql://user@host/db, instead of the run's "
            "folder; SLIME_RAY_STUDY says the same, and keeps a password out of process lists",
        )  # fmt: skip

    train = commands.add_parser("train", help="run one trial of an experiment in this process, without Ray")
    experiment_options(train)
    train.add_argument("--trial", help="which, such as arm-slime-s0 (default: the only one)")
    start_options(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="measure checkpoints, trials or files of answers, without a sweep")
    experiment_options(evaluate)
    evaluate.add_argument(
        "policies", type=Path, nargs="+", metavar="POLICY",
        help="a folder with a checkpoint, a trial's folder in a run, or a .jsonl file of answers; each makes a row",
    )  # fmt: skip
    evaluate.add_argument(
        "--baseline", type=Path, help="the same for what they are compared with (default: the SFT checkpoint)"
    )
    evaluate.add_argument("--offline", action="store_true", help="ask no judge that costs; kept verdicts answer alone")
    start_options(evaluate)
    evaluate.set_defaults(command=_evaluate)

    launch = commands.add_parser("launch", help="submit a sweep to a cluster and follow it; again to follow it again")
    experiment_options(launch)
    launch.add_argument("--seed", type=int, default=0, help="seed of the search and of its trials (default 0)")
    launch.add_argument("--address", help="Ray's dashboard (default: port 8265 of this machine, where tunnels end)")
    launch.add_argument("--no-follow", dest="follow", action="store_false", help="submit, and do not wait")
    launch.set_defaults(command=_launch)

    demo = commands.add_parser("demo", help="run the shipped demo and print its table")
    demo.add_argument("--storage", default="runs", help="folder of all runs (default ./runs)")
    demo.set_defaults(
        command=_demo, space="demo", trials=None, seeds=None, overrides=[], seed=0, start="fresh",
        study=os.environ.get("SLIME_RAY_STUDY") or None,
    )  # fmt: skip

    doctor = commands.add_parser("doctor", help="look at the cluster, the storage and what an experiment asks of them")
    experiment_options(doctor, optional=True)
    doctor.add_argument("--cluster", type=Path, metavar="FILE", help="check a file for `ray up` or KubeRay, offline")
    doctor.set_defaults(command=_doctor)

    check = commands.add_parser("check", help="validate an experiment; nothing is started")
    experiment_options(check)
    check.set_defaults(command=_check)


def _sweep(options: argparse.Namespace) -> None:
    _run(*checked(options), options)


def _ablate(options: argparse.Namespace) -> None:
    experiment, source = checked(options)
    if experiment.design is None:
        from slime_ray.search_spaces import shipped_designs

        raise InputError(
            f"{source} has no design. Give it one, as `ablate: {{design: leave_one_out}}`, or run it with `slime-ray "
            f"sweep`. Designs that ship: {', '.join(shipped_designs())}."
        )
    _run(experiment, source, options)


def _run(experiment: "Experiment", source: Path, options: argparse.Namespace) -> None:
    from rich.console import Console

    from slime_ray.mirror import Mirror
    from slime_ray.on_ray.sweep import run_sweep

    _describe_design(experiment)
    run = run_sweep(
        experiment, source=source, storage=options.storage, seed=options.seed, start=options.start, console=Console(),
        study=options.study,
    )  # fmt: skip
    show_report(run, None, Mirror.of(options.storage, "driver"))


def _describe_design(experiment: "Experiment") -> None:
    from slime_ray.design import caution
    from slime_ray.expansion import twins

    if experiment.design is not None:
        print(experiment.design.described(experiment.seeds))
        for cell, same in twins(experiment).items():
            print(f"{cell} trains just as {same} does; both are run.")
        if warning := caution(experiment.seeds):
            print(f"warning: {warning}")


def _train(options: argparse.Namespace) -> None:
    experiment, source = checked(options)
    from slime_ray.mirror import Mirror
    from slime_ray.training.single import find_trial, train_one

    trial = find_trial(experiment, options.trial)
    if options.name is None:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}-{trial.trial_id}"})
    run = train_one(experiment, trial, source=source, storage=options.storage, start=options.start, say=print)
    show_report(run, None, Mirror.of(options.storage, "trials"))


def _evaluate(options: argparse.Namespace) -> None:
    experiment, source = checked(options)
    from slime_ray.mirror import Mirror
    from slime_ray.training.evaluate import evaluate

    if options.name is None:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}-evaluation"})
    run = evaluate(
        experiment, options.policies, baseline=options.baseline, source=source, storage=options.storage,
        start=options.start, offline=options.offline, say=print,
    )  # fmt: skip
    show_report(run, None, Mirror.of(options.storage, "trials"))


def _launch(options: argparse.Namespace) -> None:
    experiment, source = load(options)
    from slime_ray.on_ray.launch import DEFAULT_ADDRESS, Submission, launch, sweep_options

    chosen = sweep_options(trials=options.trials, seeds=options.seeds, seed=options.seed, overrides=options.overrides)
    text = source.read_text(encoding="utf-8")
    submission = Submission(experiment.name, text, options.storage, tuple(chosen))
    launch(experiment, submission, address=options.address or DEFAULT_ADDRESS, out=sys.stdout, follow=options.follow)


def _demo(options: argparse.Namespace) -> None:
    number = 1
    while (Path(options.storage) / (name := "demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    options.name = name
    _sweep(options)


def _check(options: argparse.Namespace) -> None:
    experiment, source = checked(options)
    if lack := experiment.settings.evaluation.judge.lacks():
        raise InputError(lack)
    seeds, search = experiment.seeds, experiment.search
    arms = experiment.design is None and f" {len(experiment.arms)} arms x {len(seeds)} seeds."
    trials = search and f" {len(search.dimensions)} searched knobs, {experiment.budget.trials} trials."
    print(f"{source}: fine.{arms or ''}{trials or ''}")
    _describe_design(experiment)
    if experiment.search and experiment.search.earlier_runs:
        from slime_ray.on_ray.earlier import earlier_runs

        for one in earlier_runs(experiment):
            print(one)


def _doctor(options: argparse.Namespace) -> None:
    if options.cluster:
        from slime_ray.on_ray.cluster_file import check_cluster_file

        for line in check_cluster_file(options.cluster):
            print(line)
        return
    from rich.console import Console

    experiment = checked(options)[0] if options.space else None
    from slime_ray.mirror import Mirror
    from slime_ray.on_ray.preflight import doctor

    doctor(experiment, storage=Mirror.of(options.storage, "driver"), console=Console())
