"""The reference says something of every key; the JSON Schema shows the mistakes that an editor can see."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from slime_ray.search_spaces import shipped_spaces

from slime_ray import cli
from slime_ray.config.reference import ID, experiment_schema, reference
from slime_ray.config.yaml_source import load_yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference.md"


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


# ---------------------------------------------------------------------------------------------------------------------
# The JSON Schema

SCHEMA = experiment_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def complaints(file: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(file)]


def test_it_is_a_schema_and_the_one_that_ships():
    Draft202012Validator.check_schema(SCHEMA)
    shipped = (ROOT / "search_spaces" / ID).read_text(encoding="utf-8")
    assert json.loads(shipped) == SCHEMA, f"slime-ray reference --schema > search_spaces/{ID}"


@pytest.mark.parametrize("name", shipped_spaces())
def test_every_shipped_file_fits_and_names_it(name):
    path = shipped_spaces()[name]
    assert complaints(load_yaml(path).data) == []
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# yaml-language-server: $schema={ID}"


@pytest.mark.parametrize("preset", sorted((ROOT / "slime_ray" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_base_that_fits(preset):
    assert complaints({"name": "one", "base": load_yaml(preset).data["base"]}) == []


@pytest.mark.parametrize(
    "base",
    [
        {"evaluation": {"judge": "none"}},
        {"evaluation": {"judge": "exact"}},
        {"evaluation": {"judge": {"name": "llm", "model": "m", "template": "arena-hard"}}},
        {"model": {"lora": {"targets": "all-linear"}}},
        {"model": {"lora": None}, "sft": None},
        {"objective": {"name": "mine:Loss", "sharpness": 2}},
        {"objective": {"anchor_weight": 2}},
    ],
)
def test_shorthands_and_parts_fit(base):
    assert complaints({"name": "one", "base": base}) == []


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ({"nam": "x"}, "'nam'"),
        ({"base": {"training": {"learning_rat": 1e-4}}}, "learning_rat"),
        ({"base": {"training": {"learning_rate": "fast"}}}, "learning_rate"),
        ({"base": {"objective": {"name": "dpo", "anchor_weight": 1}}}, "base.objective"),
        ({"base": {"objective": {"name": "dpoo"}}}, "base.objective"),
        ({"base": {"evaluation": {"judge": "exactly"}}}, "base.evaluation.judge"),
        ({"search": {"training.learning_rate": {"log_uniform": [1e-5]}}}, "search.training.learning_rate"),
        ({"sampler": "grdi"}, "sampler"),
        ({"budget": {"trials": -1}}, "budget.trials"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_a_mistake_is_shown_where_it_stands(file, place):
    [complaint] = complaints({"name": "one"} | file)
    assert place in complaint
