"""The JSON Schema of an experiment's file: shipped files fit it, and mistakes that an editor can show do not."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from slime_ray.search_spaces import shipped_spaces

from slime_ray import cli
from slime_ray.config.reference import ID, experiment_schema
from slime_ray.config.yaml_source import load_yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = experiment_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def complaints(file: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(file)]


def test_it_is_a_schema_and_the_one_that_ships():
    Draft202012Validator.check_schema(SCHEMA)
    shipped = (ROOT / "search_spaces" / ID).read_text(encoding="utf-8")
    assert json.loads(shipped) == SCHEMA, f"slime-ray reference --schema > search_spaces/{ID}"


def test_the_command_prints_it(capsys):
    assert cli.main(["reference", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


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
