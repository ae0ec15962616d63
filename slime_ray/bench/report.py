"""What a benchmark prints: one table of rows, and with `--json` all that was measured."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from slime_ray.planning.tables import table

SCHEMA = 2
"""Of the JSON. It rises when a field changes its meaning."""


@dataclass(frozen=True)
class Report:
    """One run of a benchmark.

    about: the machine, versions, date and options. rows: of the table, by column; a tuple is a median with the least
    and the most, and a list is in the JSON alone. notes: sentences below the table.
    """

    benchmark: str
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    notes: str = ""

    def text(self) -> str:
        """Render the table with what it is about."""
        columns = dict.fromkeys(
            name
            for row in self.rows
            for name, value in row.items()
            if value is not None and not isinstance(value, list)
        )
        about = ", ".join(f"{name} {value}" for name, value in self.about.items() if value not in (None, ()))
        cells = [[_cell(row.get(name)) for name in columns] for row in self.rows]
        return "\n\n".join(filter(None, (f"{self.benchmark}: {about}", table(list(columns), cells), self.notes)))

    def show(self, *, as_json: bool) -> None:
        """Print the table; with `as_json` every measurement, and the table on standard error."""
        print(self.text(), file=sys.stderr if as_json else sys.stdout, flush=True)
        if as_json:
            print(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1))


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Describe this machine, the versions and the date."""
    gpu = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "on": gpu or _processor(),
        "cores": cores,
        "GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(figure)}" for name, figure in value.items())
    if isinstance(value, tuple):
        middle, least, most = map(_cell, value)
        return f"{middle} ({least}-{most})"
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
