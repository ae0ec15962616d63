"""The report of a run: tables and figures as files, and one self-contained page that loads nothing."""

import base64
import gc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.files import write

from .answer import answer, asked, facts, methods, unbroken
from .controlled import Difficulties
from .corrected import read_labels
from .differences import pieces
from .figures import BLUE, GREEN, GREY, ORANGE, VERMILLION, render
from .interactive import examples, front_data
from .paper import paper as paper_text
from .printing import Table, one_line
from .rows import name_of
from .sections import SECTIONS, Entry, Findings, made

HERE = Path(__file__).parent
COLOURS = {
    "#ffffff": "page",
    "#000000": "ink",
    "#e4e4e4": "grid",
    GREY: "grey",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    ORANGE: "orange",
}
"""Colours of drawings that are others where a reader prefers a dark page: the variables of web/report.css."""


def build_page(found: Findings, things: Sequence[tuple[Entry, Table | bytes]]) -> str:
    """The page. things: its tables, and its figures as SVG, with their entries and in the order of those."""
    unsettled, settled = answer(found.run, found.main, of_design=found.of_design())
    settled += map(unbroken, found.search.sentences())
    template = _environment().get_template("report.html.jinja")
    front = front_data(found)
    scripts = [_web("vega.min.js"), _web("report.js")] if front else []
    return template.render(
        name=one_line(name_of(found.run)),
        asked=asked(found.run),
        unsettled=unsettled,
        settled=settled,
        sections=[
            {"title": under, "things": [_placed(entry, thing) for entry, thing in group]}
            for under, group in groupby(things, key=lambda item: item[0].under)
        ],
        examples=examples(found.run, found.main),
        methods=methods(found),
        facts=facts(found.run),
        style=_web("report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        front=front,
        front_spec=json.loads(_web("front.vega.json")),
        curves_spec=json.loads(_web("curves.vegalite.json")),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["pieces"] = pieces
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment


def _web(name: str) -> str:
    return (HERE / "web" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """What a browser may do with the page: run these very scripts, and load nothing from anywhere.

    Whatever an answer holds, a script in it is none of these.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def _placed(entry: Entry, thing: Table | bytes) -> dict[str, Any]:
    if isinstance(thing, Table):
        return {"name": entry.name, "table": thing}
    svg = _inline(thing, entry.name)
    return {
        "name": entry.name,
        "table": None,
        "svg": svg if entry.paper else _recoloured(svg),
        "caption": entry.caption,
        "paper": entry.paper,
    }


def _inline(svg: bytes, name: str) -> str:
    """The drawing as part of a page: no XML head, metadata or namespaces, and ids that no other drawing has.

    Coordinates keep a hundredth of a point, and no space is left between tags: of a large search that is a third.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = (
        text.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    )
    text = text.replace("xlink:href=", "href=")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)


def _recoloured(svg: str) -> str:
    """The drawing in the page's colours, which are others on a dark page."""
    for colour, variable in COLOURS.items():
        svg = re.sub(rf"(?<=[ :\"]){colour}(?=[;\"])", f"var(--{variable})", svg, flags=re.IGNORECASE)
    return svg


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


def write_report(
    run_path: str | Path,
    out: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    difficulties: str | Path | None = None,
    paper: bool = False,
) -> ReportFiles:
    """Write all tables, figures and `report.html` of a run to `out` (default: its folder `report`).

    paper: `paper.tex` as well, a methods paragraph and an appendix.

    Every file is made whole before the first is moved into place: what fails leaves an older report as it was. The same
    run gives the same bytes. Raises InputError where `run_path` is no run, where nothing has finished, where its judges
    differ, or where `out` cannot be written. labels: a file of strong verdicts (`corrected.read_labels`). difficulties:
    a file of the prompts' (`controlled.Difficulties.read`).
    """
    folder = Path(run_path) / "report" if out is None else Path(out)
    with _memory_frozen():
        found = Findings(
            results.load(run_path),
            None if labels is None else read_labels(Path(labels)),
            None if difficulties is None else Difficulties.read(Path(difficulties)),
        )
        files, tables = _made(found)
    if paper:
        files["paper.tex"] = paper_text(found, tables).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(folder / name, content, durable=False)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Give another place with --out.") from None
    written = {entry.name: table for entry, table in tables if len(table.frame) or table is found.main}
    names = tuple(folder / name for name in files)
    return ReportFiles(folder / "report.html", folder, names, _text(found, tables), written)


def build_live_page(run_path: str | Path) -> str:
    """The page of a run that goes on: of the drawings only the front, since the others take seconds.

    Raises InputError where nothing has finished, or a file cannot be read.
    """
    found = Findings(results.load(run_path))
    quick = [entry for entry in SECTIONS if not entry.caption or entry.name == "pareto"]
    things = [
        (entry, thing if isinstance(thing, Table) else render(thing, "svg")["svg"])
        for entry, thing in made(found, quick)
    ]
    return build_page(found, things)


def _made(found: Findings) -> tuple[dict[str, bytes], list[tuple[Entry, Table]]]:
    """The content of every file by its name, and the tables."""
    files: dict[str, bytes] = {}
    placed: list[tuple[Entry, Table | bytes]] = []
    for entry, thing in made(found):
        kinds: Mapping[str, bytes] = {}
        if isinstance(thing, Table):
            placed.append((entry, thing))
            if len(thing.frame) or thing is found.main:
                kinds = {"md": thing.markdown().encode(), "csv": thing.csv().encode(), "tex": thing.latex().encode()}
        else:
            kinds = render(thing)
            placed.append((entry, kinds["svg"]))
        files |= {f"{entry.name}.{kind}": content for kind, content in kinds.items()}
    files["report.html"] = build_page(found, placed).encode()
    return files, [(entry, thing) for entry, thing in placed if isinstance(thing, Table)]


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


def _text(found: Findings, tables: Sequence[tuple[Entry, Table]]) -> str:
    """For a terminal. Of a run that only searched, its search trials stand in for the main table."""
    shown = [table for entry, table in tables if entry.terminal]
    if found.main.frame.empty:
        shown = [found.search_trials if table is found.main else table for table in shown]
    return "\n\n\n".join(table.text() for table in shown)
