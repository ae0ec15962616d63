"""Commands over the files of runs: report, compare, verify, export. They need neither torch nor ray."""

import argparse
from pathlib import Path

from slime_ray.cli.options import add_command, show_report
from slime_ray.errors import RunError


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    report = add_command(
        commands, "report", "tables, figures and report.html of a run; needs neither torch nor ray",
        examples=["slime-ray report runs/first", "slime-ray report runs/first --out elsewhere --json"],
    )  # fmt: skip
    report.add_argument("run", help="folder of the run, or its address")
    report.add_argument("--out", type=Path, help="where to write (default RUN/report)")
    how = report.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="print nothing but where the report is")
    how.add_argument("--json", action="store_true", help="print the numbers of all tables as JSON instead")
    report.set_defaults(command=_report)

    compare = add_command(
        commands, "compare", "the rows of several runs in one table",
        examples=["slime-ray compare runs/first runs/second --csv both.csv"],
    )  # fmt: skip
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="also write the numbers, unrounded, to this file")
    compare.add_argument("--json", action="store_true", help="print the rows as JSON instead")
    compare.set_defaults(command=_compare)

    verify = add_command(
        commands, "verify", "what differs between two runs of one experiment, and whether their numbers agree",
        examples=["slime-ray verify runs/first runs/again"],
        more="Prints every setting, hash and version in which the manifests of two runs differ, then their rows side\n"
        "by side. Exit code 0 where the numbers agree within their intervals, 1 where they do not.",
    )  # fmt: skip
    verify.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders of the two runs")
    verify.add_argument("--json", action="store_true", help="print differences and rows as JSON instead")
    verify.set_defaults(command=_verify)

    export = add_command(
        commands, "export", "write a run's answers and verdicts as files of Arena-Hard or MT-Bench",
        examples=["slime-ray export runs/first --to arena", "slime-ray export runs/first --to bench --form mt-bench"],
    )  # fmt: skip
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to write; nothing is overwritten")
    export.add_argument(
        "--form", choices=("arena-hard", "mt-bench"), default="arena-hard",
        help="whose files; answers of several turns have room in MT-Bench's alone (default arena-hard)",
    )  # fmt: skip
    export.set_defaults(command=_export)


def _report(options: argparse.Namespace) -> None:
    if "://" not in options.run:
        show_report(Path(options.run), options.out, quiet=options.quiet, as_json=options.json)
        return
    from slime_ray.runs.results import CHECKPOINTS, MODEL
    from slime_ray.runs.store import copied

    run, _ = copied(options.run, skip=(CHECKPOINTS, MODEL))
    show_report(run, options.out or Path(f"{run.name}-report"), quiet=options.quiet, as_json=options.json)


def _compare(options: argparse.Namespace) -> None:
    from slime_ray.analysis.comparing import compare
    from slime_ray.runs import results

    table = compare([results.load(run) for run in options.runs])
    if options.csv:
        results.write_text(options.csv, table.csv())
    print(table.json() if options.json else table.text())


def _verify(options: argparse.Namespace) -> None:
    from slime_ray.analysis.comparing import verify
    from slime_ray.runs import results

    found = verify(*(results.load(run) for run in options.runs))
    print(found.json() if options.json else found.text())
    if not found.agree:
        raise RunError(f"{options.runs[0]} and {options.runs[1]} do not agree.")


def _export(options: argparse.Namespace) -> None:
    from slime_ray.evaluation.field_files.export_arena_hard import export_arena_hard
    from slime_ray.evaluation.field_files.export_mt_bench import export_mt_bench
    from slime_ray.runs import results

    export = {"arena-hard": export_arena_hard, "mt-bench": export_mt_bench}[options.form]
    print(export(results.load(options.run), options.to))
