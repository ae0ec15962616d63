"""Arguments and output that the benchmark scripts share."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

from slime_ray.bench.report import Report
from slime_ray.errors import InputError, SlimeRayError


def run(
    name: str, description: str, numbers: dict[str, tuple[int, int, str]], measure: Callable[..., Iterable[Report]]
) -> None:
    """Parse the command line, measure, and print the tables, or with `--json` every measurement.

    Args:
        name: The script.
        description: One line for `--help`.
        numbers: Whole-number options by name: default, least value, help.
        measure: Called with the options and `say`, which takes lines about progress.
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
        reports = list(measure(**options, say=lambda line: print(line, file=sys.stderr, flush=True)))
    except SlimeRayError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(json.dumps(list(map(asdict, reports))) if as_json else "\n\n".join(report.text() for report in reports))
