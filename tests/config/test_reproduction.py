"""The tables of the paper as experiments: what they resolve to, and what is refused."""

from pathlib import Path

import pytest
from slime_ray.search_spaces import shipped_spaces

from slime_ray import cli
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.reproduction import DISCREPANCIES, FAMILIES, SPACES, reproduction
from slime_ray.errors import InputError
from slime_ray.objectives import SlimeObjective


@pytest.fixture
def into(tmp_path) -> Path:
    return tmp_path / "table.yaml"


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("table", SPACES)
def test_every_table_of_every_family_is_the_papers_recipe(into, table, model):
    found = reproduction(table, model=model, judge="j", spaces=shipped_spaces(), into=into).experiment
    settings = found.settings
    # Section 4.1: AdamW, 5e-7 falling linearly to 0, one epoch, 8 GPUs x 8 pairs x 2, no warm-up, no clipping.
    training = settings.training
    assert (training.learning_rate, training.epochs, training.schedule) == (5e-7, 1, "linear")
    assert (training.pairs_per_update, training.warmup_fraction, training.max_grad_norm) == (128, 0.0, None)
    assert found.resources.workers == 8
    assert settings.sft is not None
    assert settings.sft.learning_rate == (2.5e-6 if model == "qwen3-4b" else 2e-4)
    assert settings.sft.epochs == 3
    lora = settings.model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.train_head) == (64, 128, 0.0, True)
    assert settings.objective.build() == SlimeObjective()
    assert found.seeds == [0, 1, 2, 3, 4]


def test_the_cells_are_those_of_the_papers_tables(into):
    def variants(table: int) -> list[str]:
        design = reproduction(table, scale="demo", spaces=shipped_spaces(), into=into).experiment.design
        assert design is not None
        return [cell.variant for cell in design.cells]

    assert variants(3) == ["sft", "dpo", "simpo", "slime"]
    assert variants(4) == [
        "full", "without-anchor", "without-stabilizer", "without-soft-margin", "without-hard-margin",
        "without-hard-margin-clip",
    ]  # fmt: skip
    assert variants(5) == ["p-1.0", "p-1.5", "p-2.0", "p-2.5", "p-3.0"]


def test_the_file_that_is_written_is_the_experiment(into):
    found = reproduction(
        5,
        model="gemma3-4b",
        judge="j",
        seeds="2",
        overrides={"evaluation.prompts": 64},
        name="mine",
        spaces=shipped_spaces(),
        into=into,
    )
    again = load_experiment(into)
    assert again == found.experiment
    assert (again.name, again.seeds, again.settings.evaluation.prompts) == ("mine", [0, 1], 64)


def test_the_plan_says_where_paper_and_code_disagree_and_what_the_paper_lacks(into):
    said = reproduction(4, model="qwen3-4b", judge="j", spaces=shipped_spaces(), into=into).text()
    assert "The paper has this table for gemma3-4b alone." in said
    assert all(item.what in said for item in DISCREPANCIES)
    miniature = reproduction(4, scale="demo", spaces=shipped_spaces(), into=into).text()
    assert "cannot confirm or refute the paper's numbers" in miniature


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"table": 6}, "--table 6: the tables that can be run are 3, 4, 5"),
        ({"table": 4}, "--model None: give one of llama3.2-3b, qwen3-4b, gemma3-4b, or --scale demo"),
        ({"table": 4, "model": "gemma-4b", "judge": "j"}, "--model gemma-4b: give one of"),
        ({"table": 4, "model": "gemma3-4b"}, "needs a judge. Give --judge MODEL"),
        ({"table": 4, "model": "gemma3-4b", "scale": "demo"}, "Leave one of them out"),
    ],
)
def test_what_cannot_be_run_is_refused(into, given, complaint):
    with pytest.raises(InputError, match=complaint):
        reproduction(spaces=shipped_spaces(), into=into, **given)


def test_the_command_prints_the_plan_and_writes_the_file(into, capsys):
    command = ["reproduce", "--table", "4", "--scale", "demo"]
    assert cli.main([*command, "--write", str(into)]) == 0
    assert "6 cells around base (against full)" in capsys.readouterr().out
    assert load_experiment(into).name == "table4-demo"
    assert cli.main(["reproduce", "--table", "4", "--model", "nope", "--plan"]) == 2


def test_a_table_that_is_run_has_its_design_announced_once(tmp_path, monkeypatch, capsys):
    def unused(*_, **__):
        raise InputError("not run here")

    monkeypatch.setattr("slime_ray.on_ray.sweep.run_sweep", unused)
    command = ["reproduce", "--table", "4", "--scale", "demo", "--seeds", "2", "--storage", str(tmp_path)]
    assert cli.main(command) == 2
    assert cli.main([*command, "--plan"]) == 0
    told = capsys.readouterr().out
    assert told.count("6 cells around base (against full)") == told.count("warning: 2 seeds say") == 2


def test_what_is_wrong_with_a_table_leaves_the_file_as_it_was(into, capsys):
    into.write_text("mine")
    command = ["reproduce", "--table", "4", "--scale", "demo", "--set", "training.nope=1", "--write", str(into)]
    assert cli.main(command) == 2
    assert "training.nope: unknown key" in capsys.readouterr().err
    assert into.read_text() == "mine"
