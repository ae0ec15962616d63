"""The one self-contained page of a report: no file beside it, nothing loaded from anywhere."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from .answer import answer, unbroken
from .drawing import BLUE, GREEN, GREY, ORANGE, VERMILLION
from .examples import examples
from .facts import asked, facts
from .findings import Findings
from .interactive import front_data
from .methods import methods
from .printing import Table, one_line
from .rows import name_of
from .sections import Entry

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
    settled += [unbroken(sentence) for sentence in found.search.sentences()] if found.search else []
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
    """The drawing as part of a page: no XML head, metadata or namespaces, and ids that no other drawing has."""
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
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
