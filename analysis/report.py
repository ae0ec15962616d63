"""The report of a run: tables and figures as files, and one self-contained page. Reads result files, nothing else."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.files import write

from .drawing import render
from .findings import Findings
from .page import build_page
from .printing import Table
from .sections import Entry, made


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, its tables, and these as a terminal shows them."""

    html: Path
    folder: Path
    files: tuple[Path, ...]
    text: str
    tables: Mapping[str, Table]

    def json(self) -> str:
        """Where it was written and the unrounded numbers of its tables, for a script."""
        numbers = {name: json.loads(table.json()) for name, table in self.tables.items()}
        return json.dumps({"report": str(self.html), "tables": numbers}, indent=1)


def write_report(run_path: str | Path, out: str | Path | None = None) -> ReportFiles:
    """Write all tables, figures and `report.html` of a run to `out` (default: its folder `report`).

    Every file is made whole before the first is moved into place: what fails leaves an older report as it was. The same
    run gives the same bytes. Raises InputError where `run_path` is no run, where nothing has finished, where its judges
    differ, or where `out` cannot be written.
    """
    folder = Path(run_path) / "report" if out is None else Path(out)
    with _memory_frozen():
        files, tables, found = _made(results.load(run_path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(folder / name, content, durable=False)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Give another place with --out.") from None
    written = {entry.name: table for entry, table in tables if len(table.frame) or table is found.main}
    names = tuple(folder / name for name in files)
    return ReportFiles(folder / "report.html", folder, names, _text(found, tables), written)


def _made(run: results.Run) -> tuple[dict[str, bytes], list[tuple[Entry, Table]], Findings]:
    """The content of every file by its name, the tables, and what both were made from."""
    found = Findings(run)
    files: dict[str, bytes] = {}
    placed: list[tuple[Entry, Table | bytes]] = []
    for entry, thing in made(found):
        kinds: Mapping[str, bytes] = {}
        if isinstance(thing, Table):
            placed.append((entry, thing))
            if len(thing.frame) or thing is found.main:
                kinds = _written(thing)
        else:
            kinds = render(thing)
            placed.append((entry, kinds["svg"]))
        files |= {f"{entry.name}.{kind}": content for kind, content in kinds.items()}
    files["report.html"] = build_page(found, placed).encode()
    return files, [(entry, thing) for entry, thing in placed if isinstance(thing, Table)], found


@contextmanager
def _memory_frozen() -> Iterator[None]:
    """Leave what is in memory already out of the garbage collector's rounds, which drawing sets off by the hundred."""
    if gc.get_freeze_count():
        yield  # Whoever froze it thaws it.
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _written(table: Table) -> dict[str, bytes]:
    return {"md": table.markdown().encode(), "csv": table.csv().encode(), "tex": table.latex().encode()}


def _text(found: Findings, tables: Sequence[tuple[Entry, Table]]) -> str:
    """For a terminal. Of a run that only searched, its search trials stand in for the main table."""
    shown = [table for entry, table in tables if entry.terminal]
    if found.main.frame.empty:
        shown = [found.search_trials if table is found.main else table for table in shown]
    return "\n\n\n".join(table.text() for table in shown)
