"""Arguments and output that the benchmark scripts share."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from slime_ray.bench.tables import show
from slime_ray.errors import InputError, SlimeRayError


def run(
    name: str,
    description: str,
    numbers: dict[str, tuple[int, int, str]],
    measure: Callable[..., Any],
    table: Callable[[Any], str],
) -> None:
    """Parse the command line, measure, and print the table, or with `--json` every measurement.

    Args:
        name: The benchmark, as its JSON names it.
        description: One line for `--help`.
        numbers: Whole-number options by name: default, least value, help.
        measure: Called with the options and `say`, which takes lines about progress.
        table: Renders the report.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    for option, (default, least, text) in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{text} (default {default}, least {least})")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON instead of the table")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    try:
        for option, (_, least, _) in numbers.items():
            if options[option] < least:
                raise InputError(f"--{option} {options[option]}: must be at least {least}.")
        report = measure(**options, say=lambda line: print(line, file=sys.stderr, flush=True))
        show(name, report, table(report), as_json=as_json)
    except SlimeRayError as error:
        sys.exit(f"{parser.prog}: {error}")
