"""What `ablate` expands into, and what it refuses."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_ray.search_spaces import find_space, shipped_designs

from slime_ray.config.design import COMPONENTS, FEWEST_SEEDS, Design, caution
from slime_ray.config.expansion import lay, policy_hash
from slime_ray.config.experiment import Experiment, arm_trials, with_values
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError
from slime_ray.objectives.slime import REMOVABLE

TWO_CENTERS = "{paper: {}, released: {objective.stabilizer_strength: 0.0005}}"


def write(folder: Path, ablate: str, *, rest: str = "", preset: str = "arithmetic") -> Path:
    path = folder / "mine.yaml"
    path.write_text(f"name: mine\npreset: {preset}\nablate: {ablate}\n{rest}", encoding="utf-8")
    return path


def expand(folder: Path, ablate: str, **options: str) -> tuple[Experiment, Design]:
    experiment = load_experiment(write(folder, ablate, **options))
    assert experiment.design is not None
    assert [arm.label for arm in experiment.arms] == [cell.label for cell in experiment.design.cells]
    return experiment, experiment.design


def sets(experiment: Experiment) -> dict[str, dict]:
    return {arm.label: arm.set for arm in experiment.arms}


def without(*components: str) -> dict:
    return {"objective.remove": list(components)}


# ---------------------------------------------------------------------------------------------------------------------
# What each design expands into


def test_micro_batches_are_told_apart_by_their_knob_where_a_part_is_removed(tmp_path):
    """Not on the batch on which idle knobs are found: its lengths repeat every eight pairs."""
    center = "{objective: {name: slime-released, remove: [anchor]}}"
    _, design = expand(
        tmp_path, f"{{design: sensitivity, knobs: {{objective.micro_batch_pairs: [16]}}, centers: {{a: {center}}}}}"
    )
    assert [cell.variant for cell in design.cells] == ["center", "micro_batch_pairs-16"]


def test_an_objective_that_refuses_the_batch_of_idle_knobs_is_told_by_its_knobs(monkeypatch):
    def refuse(objective):
        raise ValueError("whole groups of five")

    monkeypatch.setattr("slime_ray.config.expansion.probe", refuse)
    settings = [
        Settings.model_validate(with_values(BASE, {"objective.remove": ["anchor"], "objective.hard_margin": height}))
        for height in (1.0, 2.0)
    ]
    assert policy_hash(settings[0]) != policy_hash(settings[1])


def test_leave_one_out_is_the_full_objective_and_it_without_each_part_by_both_readings(tmp_path):
    experiment, design = expand(tmp_path, "{design: leave_one_out}")
    assert sets(experiment) == {
        "full": {},
        "without-anchor": without("anchor"),
        "without-stabilizer": without("stabilizer"),
        "without-soft-margin": without("soft_margin"),
        "without-hard-margin": without("hard_margin"),
        "without-hard-margin-clip": without("hard_margin_clip"),
    }
    assert {cell.reference for cell in design.cells} == {"full"}
    assert {cell.center for cell in design.cells} == {"base"}
    levels = {cell.label: cell.levels for cell in design.cells}
    assert levels["full"] == dict.fromkeys(REMOVABLE, True)
    assert levels["without-soft-margin"] == levels["full"] | {"soft_margin": False}


def test_with_several_centers_labels_name_the_center_and_cells_are_compared_within_it(tmp_path):
    experiment, design = expand(
        tmp_path, f"{{design: leave_one_out, components: [anchor], centers: {TWO_CENTERS}, metric: stability}}"
    )
    weak = {"objective.stabilizer_strength": 0.0005}
    assert sets(experiment) == {
        "paper-full": {},
        "paper-without-anchor": without("anchor"),
        "released-full": weak,
        "released-without-anchor": weak | without("anchor"),
    }
    assert [(cell.variant, cell.reference) for cell in design.around("released")] == [
        ("full", "released-full"), ("without-anchor", "released-full"),
    ]  # fmt: skip
    assert design.metric == "stability"


def test_controls_push_as_hard_as_the_full_objective_where_the_variant_does_not(tmp_path):
    experiment, design = expand(tmp_path, "{design: leave_one_out, controls: gradient_matched}")
    controls = {cell.label: cell for cell in design.cells if cell.control}
    # The clip changes nothing at D = 0, and anchor and stabilizer are no part of the margin term.
    assert list(controls) == ["without-soft-margin-matched", "without-hard-margin-matched"]
    # At D = 0: s = sigmoid(2.5), the full term pushes s + 2.5 * 1.5 * s * (1 - s); h alone pushes 1, s alone the rest.
    s = 1 / (1 + math.exp(-2.5))
    full, gate = s + 2.5 * 1.5 * s * (1 - s), 2.5 * s * (1 - s)
    given = sets(experiment)
    assert given["without-soft-margin-matched"] == without("soft_margin") | {
        "objective.margin_weight": pytest.approx(full)
    }
    assert given["without-hard-margin-matched"] == without("hard_margin") | {
        "objective.margin_weight": pytest.approx(full / gate)
    }
    assert controls["without-hard-margin-matched"].levels["hard_margin"] is False
    assert controls["without-hard-margin-matched"].reference == "full"


def test_a_factorial_has_every_combination_of_four_parts_once(tmp_path):
    experiment, design = expand(tmp_path, "{design: factorial}")
    assert {tuple(cell.levels[part] for part in COMPONENTS) for cell in design.cells} == set(
        itertools.product([True, False], repeat=4)
    )
    given = sets(experiment)
    assert len(given) == 16
    assert given["without-anchor-soft-margin"] == without("anchor", "soft_margin")
    # Where both margins are gone, so is their term; the plain name says so.
    assert given["without-margins"] == without("soft_margin", "hard_margin")
    assert given["without-anchor-stabilizer-margins"] == without(*COMPONENTS)
    for arm, cell in zip(experiment.arms, design.cells, strict=True):
        gone = experiment.settings_with(arm.set).objective.remove
        assert {part for part, there in cell.levels.items() if not there} == set(gone)
    assert design.reference("base").label == "full"


def test_the_names_of_cells_do_not_depend_on_the_order_in_which_components_are_listed(tmp_path):
    one, _ = expand(tmp_path, "{design: factorial, components: [hard_margin, anchor]}")
    assert sets(one) == {
        "full": {},
        "without-anchor": without("anchor"),
        "without-hard-margin": without("hard_margin"),
        "without-anchor-hard-margin": without("anchor", "hard_margin"),
    }


def test_a_sensitivity_moves_one_knob_at_a_time_and_runs_the_center_once(tmp_path):
    knobs = "{objective.anchor_weight: [0.01, 0.1, 1.0], training.schedule: [linear, cosine]}"
    experiment, design = expand(tmp_path, f"{{design: sensitivity, knobs: {knobs}}}")
    # The preset's schedule is cosine, its anchor weight the paper's 0.1.
    assert sets(experiment) == {
        "center": {},
        "anchor_weight-0.01": {"objective.anchor_weight": 0.01},
        "anchor_weight-1.0": {"objective.anchor_weight": 1.0},
        "schedule-linear": {"training.schedule": "linear"},
    }
    assert design.reference("base").levels == {"objective.anchor_weight": 0.1, "training.schedule": "cosine"}
    assert design.cells[1].levels == {"objective.anchor_weight": 0.01}


def test_each_center_of_a_sensitivity_has_its_own_value_as_the_reference(tmp_path):
    knobs = "{objective.stabilizer_strength: [0.0005, 0.1]}"
    experiment, _ = expand(tmp_path, f"{{design: sensitivity, knobs: {knobs}, centers: {TWO_CENTERS}}}")
    assert list(sets(experiment)) == [
        "paper-center", "paper-stabilizer_strength-0.0005", "released-center", "released-stabilizer_strength-0.1",
    ]  # fmt: skip


def test_exponents_are_table_5s_and_their_controls_start_from_the_same_term(tmp_path):
    experiment, design = expand(tmp_path, "{design: exponent}")
    assert list(sets(experiment)) == ["p-1.0", "p-1.5", "p-2.0", "p-2.5", "p-3.0"]
    assert design.reference("base").label == "p-2.5"
    assert sets(experiment)["p-2.5"] == {}
    experiment, design = expand(tmp_path, "{design: exponent, exponents: [1], controls: strength_matched}")
    # softplus(5 - 1.25) ** 1.5 is what p = 2.5 has more of than p = 1.
    strength = 0.1 * math.log1p(math.exp(3.75)) ** 1.5
    assert sets(experiment)["p-1.0-matched"] == {
        "objective.stabilizer_exponent": 1.0,
        "objective.stabilizer_strength": pytest.approx(strength),
    }
    assert [cell.control for cell in design.cells] == [False, True, False]


def test_baselines_are_sft_dpo_simpo_and_slime_to_compare_with(tmp_path):
    experiment, design = expand(tmp_path, "{design: baselines}")
    assert sets(experiment) == {
        "sft": {"training.updates": 0},
        "dpo": {"objective.name": "dpo"},
        "simpo": {"objective.name": "simpo"},
        "slime": {},
    }
    assert {cell.reference for cell in design.cells} == {"slime"}
    kinds = [experiment.settings_with(arm.set).objective.name for arm in experiment.arms]
    assert kinds == ["slime", "dpo", "simpo", "slime"]


def test_a_method_or_center_may_be_a_presets_objective(tmp_path):
    methods = "{mine: {objective.hard_margin: 2.0}, theirs: {preset: released-config, objective.hard_margin: 2.0}}"
    experiment, design = expand(tmp_path, f"{{design: baselines, methods: {methods}, against: theirs}}")
    theirs = experiment.settings_with(sets(experiment)["theirs"])
    # released-config: anchor 0.8, strength 0.0005, threshold 0.5. Its recipe's learning rate is not taken over.
    assert theirs.objective.anchor_weight == 0.8
    assert (theirs.objective.hard_margin, theirs.training.learning_rate) == (2.0, 3e-4)
    assert design.reference("base").label == "theirs"
    # Knobs that stand below `objective` are laid on the preset's as well.
    nested = "{mine: {}, theirs: {preset: released-config, objective: {hard_margin: 2.0}}}"
    experiment, _ = expand(tmp_path, f"{{design: baselines, methods: {nested}, against: theirs}}")
    assert experiment.settings_with(sets(experiment)["theirs"]).objective == theirs.objective
    centers = "{paper: {preset: paper}, config: {preset: released-config}}"
    experiment, _ = expand(tmp_path, f"{{design: exponent, exponents: [1.0], centers: {centers}}}")
    config = experiment.settings_with(sets(experiment)["config-p-1.0"]).objective
    assert (config.anchor_weight, config.stabilizer_exponent) == (0.8, 1.0)


def test_a_method_of_another_objective_keeps_none_of_the_centers_knobs(tmp_path):
    centers = "{a: {objective.hard_margin: 2.0, training.learning_rate: 1e-4}, b: {objective: {name: slime, hard_margin: 1.0}}}"
    methods = "{dpo: {objective: {name: dpo, beta: 0.3}}, slime: {}}"
    experiment, _ = expand(tmp_path, f"{{design: baselines, methods: {methods}, centers: {centers}}}")
    assert sets(experiment) == {
        "a-dpo": {"objective.name": "dpo", "objective.beta": 0.3, "training.learning_rate": 1e-4},
        "a-slime": {"objective.hard_margin": 2.0, "training.learning_rate": 1e-4},
        "b-dpo": {"objective.name": "dpo", "objective.beta": 0.3},
        "b-slime": {"objective.hard_margin": 1.0},
    }


def test_designs_are_crossed_with_seeds_and_every_shipped_one_has_five(tmp_path):
    assert set(shipped_designs()) == {
        "exponent", "factorial", "leave_one_out", "methods", "parts", "sensitivity", "table3", "table4", "table5",
    }  # fmt: skip
    for name in shipped_designs():
        experiment = load_experiment(find_space(name))
        assert experiment.design is not None
        assert len(experiment.seeds) >= FEWEST_SEEDS
        assert len(arm_trials(experiment)) == len(experiment.design.cells) * len(experiment.seeds)
        # A label is a part of trial ids, which name folders.
        assert all(len(trial.trial_id) < 80 for trial in arm_trials(experiment))
    paper_and_released = load_experiment(find_space("leave_one_out")).design
    assert paper_and_released is not None
    assert paper_and_released.centers == ["paper", "released"]


# ---------------------------------------------------------------------------------------------------------------------
# What holds for all of them

SUBSETS = st.lists(st.sampled_from(sorted(REMOVABLE)), min_size=1, max_size=5, unique=True)


@settings(max_examples=10)
@given(SUBSETS, st.integers(1, 3), st.booleans(), st.sampled_from(["leave_one_out", "factorial"]))
def test_every_cell_stands_once_around_each_center_with_one_reference(
    tmp_path_factory, components, centers, controls, design
):
    both = {"hard_margin", "hard_margin_clip"} <= set(components)
    if design == "factorial" and (both or len(components) < 2):
        return
    around = {f"c{number}": {"objective.gate_sharpness": 2.0 + number} for number in range(centers)}
    ablate = {"design": design, "components": components, "centers": around}
    if controls and design == "leave_one_out" and {"soft_margin", "hard_margin"} & set(components):
        ablate["controls"] = "gradient_matched"
    experiment, found = expand(tmp_path_factory.mktemp("space"), str(ablate).replace("'", ""))
    assert found.centers == list(around)
    variants = [[cell.variant for cell in found.around(center)] for center in around]
    assert all(one == variants[0] for one in variants)
    plain = [cell for cell in found.around("c0") if not cell.control]
    assert len(plain) == (1 + len(components) if design == "leave_one_out" else 2 ** len(components))
    assert len({tuple(cell.levels.items()) for cell in plain}) == len(plain)
    for center in around:
        cells = found.around(center)
        assert [cell.label for cell in cells if cell.label == cell.reference] == [found.reference(center).label]
        assert all(found.reference(center).levels.values())
    same = [policy_hash(experiment.settings_with(arm.set)) for arm in experiment.arms[: len(variants[0])]]
    assert len(set(same)) == len(same)


BASE = preset_base("arithmetic")
PATHS = st.dictionaries(
    st.sampled_from(["objective.hard_margin", "objective.soft_margin", "training.warmup_fraction"]), st.floats(0.1, 1.0)
)
WHOLE = st.sampled_from(
    [{}, {"objective": {"name": "dpo", "beta": 0.3}}, {"objective": {"hard_margin": 0.2, "name": "slime"}}]
)


@given(PATHS, WHOLE, PATHS)
def test_what_is_laid_on_a_center_means_the_same_as_one_after_the_other(under, objective, over):
    over = objective | {path: value for path, value in over.items() if not objective or not path.startswith("obj")}
    flat = lay("slime", under, over)
    assert all(not isinstance(value, dict) for value in flat.values())
    one_by_one = with_values(with_values(BASE, under), over)
    assert Settings.model_validate(with_values(BASE, flat)) == Settings.model_validate(one_by_one)


def test_knobs_without_effect_do_not_tell_cells_apart(tmp_path):
    def key(**values: object) -> str:
        return policy_hash(Settings.model_validate(with_values(BASE, {"objective": values})))

    assert key(anchor_weight=0.0) == key(remove=["anchor"]) == key(remove=["anchor"], anchor_weight=3.0)
    idle = {"stabilizer_strength": 9.0, "stabilizer_threshold": 3.0, "stabilizer_exponent": 1.0}
    assert key(remove=["stabilizer"]) == key(remove=["stabilizer"], **idle)
    assert key(remove=["soft_margin"]) == key(remove=["soft_margin"], gate_sharpness=1.0)
    assert key(remove=["soft_margin", "hard_margin"]) == key(margin_weight=0.0, hard_margin=3.0)
    assert key(margin_weight=0.0) == key(margin_weight=0.0, remove=["hard_margin_clip"])
    parts = [[], ["anchor"], ["hard_margin"], ["hard_margin_clip"], ["soft_margin", "hard_margin_clip"]]
    assert len({key(remove=part) for part in parts}) == len(parts)
    assert key(remove=["hard_margin_clip"], hard_margin=1.0) != key(remove=["hard_margin_clip"])


def test_few_seeds_are_said_before_a_design_is_run(tmp_path):
    assert caution(range(FEWEST_SEEDS)) is None
    assert "4 seeds say nothing about other seeds: the tables will be about these checkpoints only" in str(
        caution(range(4))
    )
    assert "without a table of significance" in str(caution([3]))
    _, design = expand(tmp_path, f"{{design: leave_one_out, centers: {TWO_CENTERS}, controls: gradient_matched}}")
    assert design.description(range(5)) == (
        "leave_one_out: 16 cells (4 of them controls) around paper (against paper-full), released (against "
        "released-full), compared by win_rate; 5 seeds, 80 trials."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Objectives other than SLIME

ANY = """
name: mine
preset: arithmetic
base: {{objective: {objective}}}
ablate: {ablate}
"""


def cells_of(folder: Path, objective: str, ablate: str) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text(ANY.format(objective=objective, ablate=ablate), encoding="utf-8")
    design = load_experiment(path).design
    assert design is not None
    return [cell.variant for cell in design.cells]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("{name: simpo}", ["full", "without-length-normalization", "without-target-margin"]),
        ("{name: simpo, nll_weight: 1.0, gamma: 0.0}", ["full", "without-length-normalization", "without-nll"]),
        ("{name: dpo}", ["full", "without-reference"]),
        ("{name: dpop}", ["full", "without-guard"]),
        ("{name: orpo}", ["full", "without-odds-ratio", "without-nll"]),
        (
            "{name: composed, against_reference: true, target: 0.5, anchor: pairs}",
            ["full", "without-reference", "without-length-normalization", "without-margin", "without-target-margin",
             "without-anchor"],
        ),
    ],
)  # fmt: skip
def test_leave_one_out_takes_every_part_that_an_objective_has_and_whose_removal_changes_it(
    tmp_path, objective, expected
):
    assert cells_of(tmp_path, objective, "{design: leave_one_out}") == expected


def test_a_factorial_varies_design_choices_across_methods(tmp_path):
    objective = "{name: composed, against_reference: true, link: hinge, anchor: tokens}"
    cells = cells_of(
        tmp_path, objective, "{design: factorial, components: [anchor, link, length_normalization, reference]}"
    )
    assert len(cells) == 16
    assert cells[-1] == "without-reference-length-normalization-link-anchor"
    with pytest.raises(InputError, match="cell without-link-margin would train just as cell without-margin does"):
        cells_of(tmp_path, objective, "{design: factorial, components: [link, margin]}")


def test_an_objective_of_ones_own_is_ablated_by_the_parts_that_it_declares(tmp_path, monkeypatch):
    (tmp_path / "lifted.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from slime_ray.objectives.pairwise import PairwiseObjective, knob\n\n"
        "@dataclass(frozen=True)\n"
        "class Lifted(PairwiseObjective):\n"
        '    """The margin, and a lift.\n\n    Args:\n        lift: More of it lifts chosen.\n        remove: Parts.\n    """\n\n'
        '    name: ClassVar[str] = "lifted"\n'
        '    parts: ClassVar = {"lift": "no lift", "margin": "no margin"}\n'
        "    lift: float = knob(1.0, at_least=0)\n"
        "    remove: tuple[str, ...] = ()\n\n"
        "    def pair_losses(self, batch, reference):\n"
        "        losses = 0.0 * batch.margins\n"
        '        if not self.without("lift"):\n'
        "            losses = losses - self.lift * batch.chosen_means\n"
        '        return losses if self.without("margin") else losses - batch.margins\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    variants = cells_of(tmp_path, "{name: 'lifted:Lifted'}", "{design: leave_one_out}")
    assert variants == ["full", "without-lift", "without-margin"]


@pytest.mark.parametrize(
    ("objective", "ablate", "sentence"),
    [
        ("{name: sft}", "{design: leave_one_out}", "sft, declares no parts that this design could take away"),
        ("{name: dpo}", "{design: leave_one_out, components: [referense]}", "'referense' is no part of dpo. Did you mean"),
        ("{name: dpo}", "{design: leave_one_out, components: [nll]}", "dpo trains alike with and without nll there"),
        ("{name: dpo}", "{design: factorial}", "a factorial needs two parts or more, and center base has reference"),
        ("{name: dpo, remove: [reference]}", "{design: leave_one_out}", "no full objective to compare with"),
        ("{name: simpo}", "{design: leave_one_out, controls: gradient_matched}", "of a single term Adam takes no notice"),
    ],
)  # fmt: skip
def test_what_an_objective_cannot_be_ablated_by_is_refused(tmp_path, objective, ablate, sentence):
    with pytest.raises(InputError) as raised:
        cells_of(tmp_path, objective, ablate)
    assert sentence in str(raised.value)
