"""README and docs: every link leads somewhere, every command line is one, and every page is in the navigation."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slime_ray import cli
from slime_ray.config.experiment_file import load_experiment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```(\w*)(?: title=\"[^\"]*\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = page.parent / target
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), f"{target}#{anchor}"


def commands(page: Path) -> list[str]:
    """Lines of a page's blocks that call slime-ray, without what is said beside them."""
    blocks = [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind in ("", "sh", "bash")]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("slime-ray ") and not re.search(r"[…<>|\\]|RUN|SPACE|&&", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_line_is_one(page):
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        if {"--help", "--version"} & set(words):
            continue
        options = cli.make_parser().parse_args(words)
        assert callable(options.command), line


def pages(entry: Any) -> Iterator[str]:
    """The files of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for inner in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
        yield from pages(inner)


def test_every_page_is_in_the_navigation_once():
    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    there = [path for kind in ("*.md", "*.ipynb") for path in (ROOT / "docs").rglob(kind)]
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in there)


def test_every_decision_is_in_the_list_of_decisions():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\w+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")


def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page, text in {
        "reference": "Every key of the YAML",
        "api": 'id="slime_ray.api.sweep"',
        "sweep": "A sweep from Python",
    }.items():
        assert text in (tmp_path / page / "index.html").read_text(encoding="utf-8")


def test_the_experiments_that_pages_show_are_valid(tmp_path, monkeypatch):
    """Those that have a name. Blocks with a title belong to tests/test_extending.py, which runs them."""
    monkeypatch.chdir(tmp_path)
    names = []
    for page in PAGES:
        for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            if re.search(r"^name: ", text, re.MULTILINE):
                path = tmp_path / "shown.yaml"
                path.write_text(text, encoding="utf-8")
                names.append(load_experiment(path).name)
    assert {"first", "mine", "parts"} <= set(names)
