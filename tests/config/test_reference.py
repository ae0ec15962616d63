"""The reference of the YAML is made from the schema, and says something of every key."""

import re
from pathlib import Path

import pytest
import yaml
from slime_ray.search_spaces import find_space, shipped_spaces

from slime_ray import cli
from slime_ray.config.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"


def test_the_committed_page_is_what_the_command_prints(capsys):
    assert cli.main(["reference"]) == 0
    printed = capsys.readouterr().out
    assert printed == PAGE.read_text(encoding="utf-8"), "slime-ray reference > docs/reference.md"


def test_every_key_says_what_it_does():
    """But `name` and `design`, which say what kind a mapping is."""
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", reference(), re.M)
    assert len(rows) > 100
    assert {key for key, text in rows if not text} <= {"name", "design"}


def test_every_link_leads_to_a_section():
    heads = {
        re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^## (.+)$", reference(), re.M)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", reference()))
    assert links
    assert links <= heads


@pytest.mark.parametrize("space", sorted(shipped_spaces()))
def test_every_key_of_every_experiment_that_ships_stands_in_it(space):
    """Mappings by label or path have keys of their own; what those hold is looked for again."""
    known = set(re.findall(r"^\| `(\w+)` \|", reference(), re.M))

    def keys(value, free=False):
        if isinstance(value, dict):
            for key, inner in value.items():
                if not free:
                    yield key
                yield from keys(
                    inner,
                    free=key
                    in ("arms", "grid", "search", "centers", "methods", "knobs", "goals", "when", "entries", "set"),
                )

    found = {key for key in keys(yaml.safe_load(find_space(space).read_text())) if "." not in key}
    assert found <= known | {"preset", "name", "design"}


@pytest.mark.parametrize(
    ("line", "shown", "hidden"),
    [("reference dpo", "`label_smoothing`", "`anchor_weight`"), ("reference training", "pairs_per_update", "rank")],
)
def test_a_part_is_shown_alone(capsys, line, shown, hidden):
    assert cli.main(line.split()) == 0
    said = capsys.readouterr().out
    assert shown in said
    assert hidden not in said


def test_a_part_that_is_not_there_is_refused_with_the_nearest(capsys):
    assert cli.main(["reference", "judges"]) == 2
    assert "Did you mean 'judge'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "number > 0, < 1"),
        ("evaluations", "integer ≥ 1"),
        ("dtype", "`float32`, `bfloat16`"),
        ("lora", "[lora](#basemodellora) or `keep`"),
        ("uniform", "list of 2 numbers"),
        ("grid", "mapping to list of number, flag or word"),
    ],
)
def test_values_say_their_kind_and_bounds(key, value):
    assert f"| `{key}` | {value} |" in reference()
