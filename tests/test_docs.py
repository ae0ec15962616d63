"""README and docs: every link leads somewhere, and every command line that they show is one."""

import re
import shlex
from pathlib import Path

import pytest
from slime_ray.search_spaces import find_space

from slime_ray import cli
from slime_ray.experiment_file import load_experiment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


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


def test_the_readmes_yaml_is_the_demos():
    [shown] = [text for kind, text in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "yaml"]
    assert shown == (ROOT / "search_spaces" / "demo.yaml").read_text(encoding="utf-8")
    assert load_experiment(find_space("demo")).name == "demo"
