"""Commands over the files of runs: report, compare, verify, export. They need neither torch nor ray."""

import argparse
from pathlib import Path

from slime_ray.cli.options import show_report
from slime_ray.errors import RunError


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    report = commands.add_parser("report", help="tables, figures and report.html of a run; needs neither torch nor ray")
    report.add_argument("run", help="folder of the run, or its address")
    report.add_argument("--out", type=Path, help="where to write (default RUN/report)")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="the rows of several runs in one table")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="also write the numbers, unrounded, to this file")
    compare.set_defaults(command=_compare)

    verify = commands.add_parser(
        "verify", help="what differs between two runs of one experiment, and whether their numbers agree",
        description="Prints every setting, hash and version in which the manifests of two runs differ, then their rows "
        "side by side. Exit code 0 where the numbers agree within their intervals, 1 where they do not.",
    )  # fmt: skip
    verify.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders of the two runs")
    verify.add_argument("--json", action="store_true", help="print differences and rows as JSON instead")
    verify.set_defaults(command=_verify)

    export = commands.add_parser("export", help="write a run's answers and verdicts as files of Arena-Hard or MT-Bench")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to write; nothing is overwritten")
    export.add_argument(
        "--form", choices=("arena-hard", "mt-bench"), default="arena-hard",
        help="whose files; answers of several turns have room in MT-Bench's alone (default arena-hard)",
    )  # fmt: skip
    export.set_defaults(command=_export)


def _report(options: argparse.Namespace) -> None:
    if "://" not in options.run:
        show_report(Path(options.run), options.out)
        return
    from slime_ray.mirror import Mirror, parted
    from slime_ray.results import CHECKPOINTS, MODEL

    storage, name = parted(options.run)
    mirror = Mirror.of(storage, "reports")
    mirror.check(write=False)
    with mirror.answering():
        mirror.pull(mirror.root / name, skip=(CHECKPOINTS, MODEL))
    show_report(mirror.root / name, options.out or Path(f"{name}-report"))


def _compare(options: argparse.Namespace) -> None:
    from slime_ray import results
    from slime_ray.analysis.comparing import compare

    table = compare([results.load(run) for run in options.runs])
    if options.csv:
        results.write_text(options.csv, table.csv())
    print(table.text())


def _verify(options: argparse.Namespace) -> None:
    from slime_ray import results
    from slime_ray.analysis.comparing import verify

    found = verify(*(results.load(run) for run in options.runs))
    print(found.json() if options.json else found.text())
    if not found.agree:
        raise RunError(f"{options.runs[0]} and {options.runs[1]} do not agree.")


def _export(options: argparse.Namespace) -> None:
    from slime_ray import results
    from slime_ray.evaluation.field_files.export_arena_hard import export_arena_hard
    from slime_ray.evaluation.field_files.export_mt_bench import export_mt_bench

    export = {"arena-hard": export_arena_hard, "mt-bench": export_mt_bench}[options.form]
    print(export(results.load(options.run), options.to))
