"""Prints what `--fault-table` collected as the table of docs/benchmarks/reliability.md: python -m tests.faults.table FILE."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median


def main(path: Path) -> None:
    """One row an event: how often it was tried, and medians with the least and the most."""
    found = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        found[entry["event"]].append(entry)
    print("| event | times | finished trials lost | seconds until at work again | worker-seconds computed twice |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for event, entries in found.items():
        lost = sum(entry["finished_trials_lost"] for entry in entries)
        columns = [_range([entry[name] for entry in entries]) for name in ("seconds_to_recover", "computed_twice_s")]
        print(f"| {event} | {len(entries)} | {lost} | {columns[0]} | {columns[1]} |")


def _range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{median(known):.1f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.1f}–{max(known):.1f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
