"""The key `across`: what leagues and designs become from several SFT checkpoints, and what is refused."""

from typing import Any

import pytest
import yaml

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.planning.trials import groups_of
from tests.config.test_league import TEXT

ACROSS = {"across": {"sft.seed": [4, 0]}}
PARTS = {"name": "parts", "preset": "arithmetic", "ablate": {"design": "leave_one_out", "components": ["anchor"]}}


def league(**changes: Any) -> Experiment:
    return load_experiment(yaml.safe_load(TEXT) | changes)


def test_every_entry_and_arm_is_run_from_every_checkpoint():
    found = league(**ACROSS, arms={"start": {"training.updates": 0}})
    assert found.league is not None
    assert [part.label for part in found.searches] == [
        f"{entry}-sft{seed}" for seed in (4, 0) for entry in ("dpo", "ipo", "strict-dpo", "sft")
    ]
    assert [entry.method for entry in found.league.at(0).entries] == ["dpo", "ipo", "strict-dpo", "sft"]
    for part in found.searches:
        values = part.values({"objective.beta": 0.2, "training.learning_rate": 5e-4} if part.label[0] == "d" else {})
        settings = found.settings_with(values)
        assert settings.sft is not None
        assert f"-sft{settings.sft.seed}" in part.label
    seeds = {(trial.label, trial.settings.sft and trial.settings.sft.seed) for trial in arm_trials(found)}
    assert seeds == {("start-sft4", 4), ("start-sft0", 0)}


def test_stages_are_made_for_every_checkpoint_and_the_plan_counts_all_trials():
    found, plain = league(**ACROSS), league()
    assert [base["sft"]["seed"] for base in found.bases] == [4, 0]
    assert found.settings.sft is not None
    assert found.settings.sft.seed == 4
    assert plain.bases == [plain.base]
    total, alone = (sum(group.trials for group in groups_of(one)) for one in (found, plain))
    assert total == 2 * alone


def test_a_checkpoint_more_leaves_what_is_computed_from_the_others_alone():
    two, three = league(**ACROSS), league(across={"sft.seed": [4, 0, 1]})
    assert two.league is not None
    assert three.league is not None
    kept = three.league.model_copy(update={"entries": three.league.entries[: len(two.league.entries)]})
    assert three.model_copy(update={"league": kept}).fingerprint == two.fingerprint


def test_cells_of_a_design_are_compared_within_their_checkpoint():
    found = load_experiment(PARTS | ACROSS)
    assert found.design is not None
    assert [arm.label for arm in found.arms] == ["full-sft4", "without-anchor-sft4", "full-sft0", "without-anchor-sft0"]
    assert found.design.centers == ["base-sft4", "base-sft0"]
    assert {cell.home for cell in found.design.cells} == {"base"}
    assert [cell.reference for cell in found.design.cells] == ["full-sft4"] * 2 + ["full-sft0"] * 2
    assert len({trial.config_hash for trial in arm_trials(found)}) == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"across": {"training.updates": [1, 2]}}, r"across.training.updates: there is sft.seed alone"),
        ({"across": {"sft.seed": [1]}}, "needs two seeds or more. For one checkpoint set sft.seed in base"),
        ({"across": {"sft.seed": []}}, "needs two seeds or more"),
        ({"across": {"sft.seed": [1, 1]}}, "across.sft.seed: 1 and 1 are equal"),
        ({"across": {"sft.seed": [-1, 0]}}, "across.sft.seed"),
        ({"across": {"sft.seed": 3}}, "across.sft.seed"),
        (ACROSS | {"base": {"sft": None}}, "there are no SFT checkpoints"),
        (ACROSS | {"arms": {"other": {"sft.updates": 3}}}, "arm other has an sft of its own"),
        (ACROSS | {"arms": {"other": {"sft": None}}}, "arm other has an sft of its own"),
    ],
)
def test_what_is_no_set_of_checkpoints_is_refused_with_its_place(changes, complaint, tmp_path):
    file = tmp_path / "cup.yaml"
    texts = (yaml.safe_dump({key: value}, default_flow_style=True)[1:-2] for key, value in changes.items())
    file.write_text("\n".join([TEXT, *texts]), encoding="utf-8")
    with pytest.raises(InputError, match=complaint) as refused:
        load_experiment(file)
    [place] = [n for n, line in enumerate(file.read_text().splitlines(), 1) if line.startswith("across")]
    assert str(refused.value).startswith(f"{file}:{place}: ")


def test_arms_alone_are_not_run_across_checkpoints():
    with pytest.raises(InputError, match="only entries of a `league` and cells of `ablate`"):
        load_experiment({"name": "one", "preset": "arithmetic", "arms": {"slime": {}}} | ACROSS)
