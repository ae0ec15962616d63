"""The command line: parses, calls, prints. It holds no logic, and imports what a command needs only when it runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray import __version__
from slime_ray.errors import InputError, SlimeRayError

if TYPE_CHECKING:
    from slime_ray.experiment import Experiment
    from slime_ray.mirror import Mirror

DESCRIPTION = """\
Search and ablate SLIME preference fine-tuning (arXiv 2602.02383) on Ray, and report win rate against stability.

  slime-ray demo                                the whole path on an embedded task, about five minutes on a laptop
  slime-ray spaces                              the experiments that ship with the package
  slime-ray check  my.yaml                      validate an experiment; nothing is started
  slime-ray doctor my.yaml                      look at the cluster and the storage that it would use
  slime-ray sweep  my.yaml --name first         run it
  slime-ray sweep  my.yaml --name first --resume   go on after any interruption
  slime-ray train  my.yaml --trial arm-slime-s0   one of its trials in this process, without Ray
  slime-ray evaluate my.yaml CHECKPOINT         measure a checkpoint, a trial or a file of answers, without a sweep
  slime-ray launch my.yaml --storage /shared/runs  the same on a cluster, from here; again to follow it again
  slime-ray report runs/first                   tables, figures and report.html from the result files
  slime-ray export runs/first --to DIR          its answers and verdicts as files of Arena-Hard
  slime-ray bench step                          measure the training step here, beside other recipes

Exit codes: 0 done, 1 a run ended early or failed, 2 something given was wrong and nothing was started.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    # An error message is for a person; a traceback is for whoever asks for it.
    debug = bool(os.environ.get("SLIME_RAY_DEBUG"))
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except SlimeRayError as error:
        if debug:
            raise
        print(f"slime-ray: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if debug or not error.name or error.name.startswith("slime_ray"):
            raise
        print(
            f"slime-ray: this command needs the package {error.name}, which is not installed here. "
            "Only `slime-ray report` works without the whole installation: pip install slime-ray.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "slime-ray: interrupted. What had finished is kept; give the same command with --resume to go on.",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from slime_ray.benchmarks.command import add_bench_parser

    parser = argparse.ArgumentParser(
        prog="slime-ray", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"slime-ray {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sweep = commands.add_parser("sweep", help="run an experiment: its arms, its search, its winners again")
    _experiment_options(sweep)
    sweep.add_argument("--seed", type=int, default=0, help="seed of the search and of its trials (default 0)")
    _start_options(sweep)
    sweep.add_argument(
        "--study", metavar="URL", default=os.environ.get("SLIME_RAY_STUDY") or None,
        help="keep the search's study in a database, such as postgresql://user@host/db, instead of the run's folder; "
        "SLIME_RAY_STUDY says the same, and keeps a password out of process lists",
    )  # fmt: skip
    sweep.set_defaults(command=_sweep)

    train = commands.add_parser("train", help="run one trial of an experiment in this process, without Ray")
    _experiment_options(train)
    train.add_argument("--trial", help="which, such as arm-slime-s0 (default: the only one)")
    _start_options(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="measure checkpoints, trials or files of answers, without a sweep")
    _experiment_options(evaluate)
    evaluate.add_argument(
        "policies", type=Path, nargs="+", metavar="POLICY",
        help="a folder with a checkpoint, a trial's folder in a run, or a .jsonl file of answers; each makes a row",
    )  # fmt: skip
    evaluate.add_argument(
        "--baseline", type=Path, help="the same for what they are compared with (default: the SFT checkpoint)"
    )
    evaluate.add_argument("--offline", action="store_true", help="ask no judge that costs; kept verdicts answer alone")
    _start_options(evaluate)
    evaluate.set_defaults(command=_evaluate)

    launch = commands.add_parser("launch", help="submit a sweep to a cluster and follow it; again to follow it again")
    _experiment_options(launch)
    launch.add_argument("--seed", type=int, default=0, help="seed of the search and of its trials (default 0)")
    launch.add_argument("--address", help="Ray's dashboard (default: port 8265 of this machine, where tunnels end)")
    launch.add_argument("--no-follow", dest="follow", action="store_false", help="submit, and do not wait")
    launch.set_defaults(command=_launch)

    demo = commands.add_parser("demo", help="run the shipped demo and print its table")
    demo.add_argument("--storage", default="runs", help="folder of all runs (default ./runs)")
    demo.set_defaults(command=_demo)

    doctor = commands.add_parser("doctor", help="look at the cluster, the storage and what an experiment asks of them")
    _experiment_options(doctor, optional=True)
    doctor.add_argument("--cluster", type=Path, metavar="FILE", help="check a file for `ray up` or KubeRay, offline")
    doctor.set_defaults(command=_doctor)

    check = commands.add_parser("check", help="validate an experiment; nothing is started")
    _experiment_options(check)
    check.set_defaults(command=_check)

    report = commands.add_parser("report", help="tables, figures and report.html of a run; needs neither torch nor ray")
    report.add_argument("run", help="folder of the run, or its address")
    report.add_argument("--out", type=Path, help="where to write (default RUN/report)")
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="write a run's answers and verdicts as files of Arena-Hard")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to write; nothing is overwritten")
    export.set_defaults(command=_export)

    spaces = commands.add_parser("spaces", help="list the experiments that ship with the package")
    spaces.set_defaults(command=_spaces)
    add_bench_parser(commands)
    presets = commands.add_parser("presets", help="list the presets")
    presets.set_defaults(command=_presets)
    return parser


def _experiment_options(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "space", metavar="SPACE.yaml", nargs="?" if optional else None,
        help="an experiment file, or the name of one that ships",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the run (default: the file's `name`)")
    parser.add_argument(
        "--storage", default="runs", help="folder of all runs (default ./runs), or an address such as s3://bucket/runs"
    )
    parser.add_argument("--trials", type=int, help="trials of the search, instead of the file's budget")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="set one value, such as training.updates=50 or budget.trials=4; may be repeated",
    )  # fmt: skip


def _start_options(parser: argparse.ArgumentParser) -> None:
    start = parser.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--resume", "resume", "go on with an interrupted run of this name"),
        ("--go-on", "either", "go on with the run of this name if there is one, else start it"),
    ):
        start.add_argument(flag, dest="start", action="store_const", const=value, default="fresh", help=text)


def _load(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    from slime_ray.experiment_file import load_experiment, parse_override
    from slime_ray.search_spaces import find_space

    source = find_space(options.space)
    overrides = dict(parse_override(text) for text in options.overrides)
    if options.trials is not None:
        overrides["budget.trials"] = options.trials
    return load_experiment(source, overrides=overrides, name=options.name), source


def _checked(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    """The same, with the files that it names read: trials run where this process does, or on the same files."""
    experiment, source = _load(options)
    from slime_ray.evaluation.questions import check_questions

    check_questions(experiment)
    return experiment, source


def _sweep(options: argparse.Namespace) -> None:
    from rich.console import Console

    experiment, source = _checked(options)
    from slime_ray.mirror import Mirror
    from slime_ray.on_ray.sweep import run_sweep

    run = run_sweep(
        experiment, source=source, storage=options.storage, seed=options.seed, start=options.start, console=Console(),
        study=options.study,
    )  # fmt: skip
    _write_report(run, None, Mirror.of(options.storage, "driver"))


def _train(options: argparse.Namespace) -> None:
    experiment, source = _checked(options)
    from slime_ray.mirror import Mirror
    from slime_ray.training.single import find_trial, train_one

    trial = find_trial(experiment, options.trial)
    if options.name is None:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}-{trial.trial_id}"})
    run = train_one(experiment, trial, source=source, storage=options.storage, start=options.start, say=print)
    _write_report(run, None, Mirror.of(options.storage, "trials"))


def _evaluate(options: argparse.Namespace) -> None:
    experiment, source = _checked(options)
    from slime_ray.mirror import Mirror
    from slime_ray.training.evaluate import evaluate

    if options.name is None:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}-evaluation"})
    run = evaluate(
        experiment, options.policies, baseline=options.baseline, source=source, storage=options.storage,
        start=options.start, offline=options.offline, say=print,
    )  # fmt: skip
    _write_report(run, None, Mirror.of(options.storage, "trials"))


def _launch(options: argparse.Namespace) -> None:
    experiment, source = _load(options)
    from slime_ray.on_ray.launch import DEFAULT_ADDRESS, Submission, launch, sweep_options

    chosen = sweep_options(trials=options.trials, seed=options.seed, overrides=options.overrides)
    text = source.read_text(encoding="utf-8")
    submission = Submission(experiment.name, text, options.storage, tuple(chosen))
    launch(experiment, submission, address=options.address or DEFAULT_ADDRESS, out=sys.stdout, follow=options.follow)


def _demo(options: argparse.Namespace) -> None:
    number = 1
    while (Path(options.storage) / (name := "demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    main_options = ["sweep", "demo", "--name", name, "--storage", options.storage]
    _sweep(_parser().parse_args(main_options))


def _check(options: argparse.Namespace) -> None:
    experiment, source = _checked(options)
    if lack := experiment.settings.evaluation.judge.lacks():
        raise InputError(lack)
    search = len(experiment.search.dimensions) if experiment.search else 0
    print(
        f"{source}: fine. {len(experiment.arms)} arms x {len(experiment.seeds)} seeds, "
        f"{search} searched knobs, {experiment.budget.trials} trials."
    )


def _doctor(options: argparse.Namespace) -> None:
    if options.cluster:
        from slime_ray.on_ray.cluster_file import check_cluster_file

        for line in check_cluster_file(options.cluster):
            print(line)
        return
    from rich.console import Console

    experiment = _checked(options)[0] if options.space else None
    from slime_ray.mirror import Mirror
    from slime_ray.on_ray.preflight import doctor

    doctor(experiment, storage=Mirror.of(options.storage, "driver"), console=Console())


def _report(options: argparse.Namespace) -> None:
    if "://" not in options.run:
        _write_report(Path(options.run), options.out)
        return
    from slime_ray.mirror import Mirror, parted
    from slime_ray.results import CHECKPOINTS, MODEL

    storage, name = parted(options.run)
    mirror = Mirror.of(storage, "reports")
    mirror.check(write=False)
    with mirror.answering():
        mirror.pull(mirror.root / name, skip=(CHECKPOINTS, MODEL))
    _write_report(mirror.root / name, options.out or Path(f"{name}-report"))


def _write_report(run: Path, out: Path | None, storage: "Mirror | None" = None) -> None:
    """storage: of which `run` is a working copy, if it is one; the report then goes there too."""
    from slime_ray.analysis.report import write_report

    files = write_report(run, out)
    print(files.text)
    print(f"\nReport: {files.html}")
    if storage is not None and storage.url is not None:
        with storage.answering():
            storage.push(files.html.parent)
        print(f"It is in {storage.shown}/{run.name}, too.")


def _export(options: argparse.Namespace) -> None:
    from slime_ray import results
    from slime_ray.evaluation.field_files.export import export_arena_hard

    print(export_arena_hard(results.load(options.run), options.to))


def _spaces(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import describe_spaces

    _print_pairs(describe_spaces())


def _presets(options: argparse.Namespace) -> None:
    from slime_ray.presets import describe_presets

    _print_pairs(describe_presets())


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")


if __name__ == "__main__":
    sys.exit(main())
