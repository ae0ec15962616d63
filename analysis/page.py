"""The one self-contained page of a report: no file beside it, nothing loaded from anywhere."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from .answer import answer, unbroken
from .examples import examples
from .facts import asked, facts
from .findings import Findings
from .methods import methods
from .printing import Table, one_line
from .rows import name_of
from .sections import Entry


def build_page(found: Findings, things: Sequence[tuple[Entry, Table | bytes]]) -> str:
    """The page. things: its tables, and its figures as SVG, with their entries and in the order of those."""
    unsettled, settled = answer(found.run, found.main, of_design=found.of_design())
    settled += [unbroken(sentence) for sentence in found.search.sentences()] if found.search else []
    template = _environment().get_template("report.html.jinja")
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
    )


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _placed(entry: Entry, thing: Table | bytes) -> dict[str, Any]:
    if isinstance(thing, Table):
        return {"name": entry.name, "table": thing}
    return {"name": entry.name, "table": None, "svg": _inline(thing, entry.name), "caption": entry.caption}


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
