"""Commands over the files of a run: report, export. They need neither torch nor ray."""

import argparse
from pathlib import Path

from slime_ray.cli.options import show_report


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    report = commands.add_parser("report", help="tables, figures and report.html of a run; needs neither torch nor ray")
    report.add_argument("run", help="folder of the run, or its address")
    report.add_argument("--out", type=Path, help="where to write (default RUN/report)")
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="write a run's answers and verdicts as files of Arena-Hard")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to write; nothing is overwritten")
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


def _export(options: argparse.Namespace) -> None:
    from slime_ray import results
    from slime_ray.evaluation.field_files.export import export_arena_hard

    print(export_arena_hard(results.load(options.run), options.to))
