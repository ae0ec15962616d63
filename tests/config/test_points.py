"""Spaces: how a knob is drawn, when it exists, what a point may be, and what a user is told of a space that is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.points import Rules, Search, count_points, has_feasible_point, with_values
from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Settings
from slime_ray.config.space import Dimension
from slime_ray.errors import InputError
from slime_ray.objectives import OBJECTIVES, SlimeObjective, differ

BASE = preset_base("arithmetic")
METHODS = {
    "objective.beta[dpo]": {"log_uniform": [0.01, 1], "when": {"objective.name": "dpo"}},
    "objective.beta[simpo]": {"uniform": [1, 4], "when": {"objective.name": ["simpo"]}},
    "objective.gamma": {"uniform": [0, 2], "when": {"objective.name": "simpo"}},
    "objective.name": {"choice": ["slime", "dpo", "simpo"]},
    "objective.anchor_weight": {"log_uniform": [0.01, 2], "when": {"objective.name": "slime"}},
    "training.learning_rate": {"log_uniform": [1e-5, 1e-3]},
}


def search_of(dimensions: dict, **keys: object) -> Search:
    return Search.model_validate({"dimensions": dimensions, **keys})


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50), st.integers(1, 40), st.integers(1, 7))
def test_a_dimension_of_steps_draws_and_contains_just_its_values(quantile, low, steps, step):
    for way, size in (({"integer": [low, low + steps * step], "step": step}, steps + 1),
                      ({"log_integer": [low, low + steps]}, steps + 1),
                      ({"uniform": [low / 10, low / 10 + steps * step / 10], "step": step / 10}, steps + 1)):  # fmt: skip
        dimension = Dimension.model_validate(way)
        values = list(dimension.values)
        assert dimension.size == len(set(values)) == size
        assert (values[0], values[-1]) == pytest.approx(dimension.bounds)
        assert dimension.at(quantile) in values
        assert all(dimension.contains(value) and dimension.snap(value) == value for value in values)
        apart = values[1] - values[0]
        assert not dimension.contains(values[0] + apart / 2)
        assert not dimension.contains(values[0] - apart)
        assert not dimension.contains(values[-1] + apart)


def test_steps_are_the_numbers_that_people_write():
    assert list(Dimension.model_validate({"uniform": [0.1, 0.5], "step": 0.1}).values) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert list(Dimension.model_validate({"integer": [16, 64], "step": 16}).values) == [16, 32, 48, 64]


@pytest.mark.parametrize(
    "way", [{"integer": [3, 6]}, {"uniform": [0.1, 0.4], "step": 0.1}, {"choice": ["a", "b", "c", "d"]}], ids=str
)
def test_each_of_a_few_values_is_drawn_as_often_as_the_others(way):
    dimension = Dimension.model_validate(way)
    drawn = [dimension.at((k + 0.5) / 400) for k in range(400)]
    assert [drawn.count(value) for value in dimension.values] == [100] * 4


def test_a_logarithmic_integer_is_even_on_its_scale():
    drawn = [Dimension.model_validate({"log_integer": [1, 64]}).at(k / 10_000) for k in range(10_000)]
    assert (min(drawn), max(drawn)) == (1, 64)
    # log(8.5 / 0.5) / log(64.5 / 0.5) = 0.583 of all draws are 8 or less.
    assert sum(value <= 8 for value in drawn) / 10_000 == pytest.approx(0.583, abs=0.001)


def test_a_point_has_the_knobs_of_its_objective_and_no_others():
    search = search_of(METHODS)
    scenarios = search.scenarios()
    assert scenarios == [{"objective.name": name} for name in ("slime", "dpo", "simpo")]
    has = {point["objective.name"]: set(point) for point in (search.at([k / 7 % 1] * 6) for k in range(1, 7))}
    always = {"objective.name", "training.learning_rate"}
    assert has == {
        "slime": always | {"objective.anchor_weight"},
        "dpo": always | {"objective.beta"},
        "simpo": always | {"objective.beta", "objective.gamma"},
    }


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_every_point_makes_valid_settings_of_its_own_objective(quantiles):
    search = search_of(METHODS)
    point = search.at(quantiles)
    settings = Settings.model_validate(with_values(BASE, point))
    assert settings.objective.name == point["objective.name"]
    low, high = {"slime": (0, 0), "dpo": (0.01, 1), "simpo": (1, 4)}[settings.objective.name]
    assert low <= point.get("objective.beta", 0) <= high
    # What is drawn in two ways keeps them apart where a sampler learns, and is one knob everywhere else.
    assert {name.partition("[")[0]: value for name, value in search.values_by_name(point).items()} == point
    assert search.locate(point) == point
    assert search.locate({**point, "objective.name": "sft"}) is None


def test_an_objective_that_is_switched_keeps_none_of_the_knobs_below_in_whatever_order():
    for point in (
        {"objective.beta": 0.5, "objective.name": "dpo"},
        {"objective.name": "dpo", "objective.beta": 0.5},
    ):
        assert with_values(BASE, point)["objective"] == {"name": "dpo", "beta": 0.5}


def test_conditions_reach_through_each_other():
    search = search_of(
        {
            "training.warmup_fraction": {"uniform": [0, 0.5], "when": {"training.schedule": "cosine"}},
            "training.schedule": {"choice": ["linear", "cosine"], "when": {"training.pairs_per_update": [8, 16]}},
            "training.pairs_per_update": {"integer": [4, 32], "step": 4},
        }
    )
    assert search.order == ["training.pairs_per_update", "training.schedule", "training.warmup_fraction"]
    # Of the batch sizes those that a condition asks for, and one for all the others.
    assert search.scenarios() == [
        {"training.pairs_per_update": 8, "training.schedule": "linear"},
        {"training.pairs_per_update": 8, "training.schedule": "cosine"},
        {"training.pairs_per_update": 16, "training.schedule": "linear"},
        {"training.pairs_per_update": 16, "training.schedule": "cosine"},
        {"training.pairs_per_update": 4},
    ]


def test_a_requirement_says_nothing_of_a_trial_without_the_knob():
    search = search_of(METHODS, require=["objective.gamma <= objective.beta", "objective.anchor_weight <= 1.0"])
    rules = Rules(search, BASE)
    assert rules.broken({"objective.name": "simpo", "objective.beta": 1.0, "objective.gamma": 1.5}) == [
        "objective.gamma <= objective.beta"
    ]
    assert rules.broken({"objective.name": "dpo", "objective.beta": 0.1}) == []
    # Not searched there, so it is what the objective has by itself, 0.5 for SimPO.
    fixed = search_of({"objective.name": {"choice": ["dpo", "simpo"]}}, require=["objective.gamma <= 0.4"])
    assert [Rules(fixed, BASE).broken({"objective.name": name}) for name in ("dpo", "simpo")] == [
        [],
        ["objective.gamma <= 0.4"],
    ]


def test_points_of_a_finite_space_are_counted_with_their_conditions_and_requirements():
    search = search_of(
        {
            "training.pairs_per_update": {"integer": [8, 32], "step": 8},
            "training.schedule": {"choice": ["linear", "cosine"]},
            "training.warmup_fraction": {"uniform": [0, 0.2], "step": 0.1, "when": {"training.schedule": "cosine"}},
        },
        require=["training.pairs_per_update <= 24"],
    )
    # Three batch sizes, each once with a linear schedule and three times with a cosine.
    assert count_points(search, BASE) == 3 * (1 + 3)
    assert count_points(search_of(METHODS), BASE) is None
    assert has_feasible_point(search, BASE)


def test_the_probe_tells_whether_a_knob_changes_a_gradient():
    for objective in OBJECTIVES.values():
        assert not differ(objective(), objective())
    assert differ(SlimeObjective(hard_margin=1.5), SlimeObjective(hard_margin=1.6))
    gone = {"remove": ("soft_margin",)}
    assert not differ(SlimeObjective(soft_margin=1.0, **gone), SlimeObjective(soft_margin=0.1, **gone))
    assert not differ(
        SlimeObjective(stabilizer_strength=0, stabilizer_exponent=1),
        SlimeObjective(stabilizer_strength=0, stabilizer_exponent=3),
    )


HEAD = "name: mine\npreset: arithmetic\n"


def load(folder: Path, text: str) -> Experiment:
    path = folder / "mine.yaml"
    path.write_text(HEAD + text)
    return load_experiment(path)


SEARCH = """\
search:
  objective.name: {choice: [slime, dpo, simpo]}
  objective.anchor_weight: {log_uniform: [0.01, 2], when: {objective.name: slime}}
  objective.beta:
    - {log_uniform: [0.01, 1], when: {objective.name: dpo}}
    - {uniform: [1, 4], when: {objective.name: simpo}}
  model.lora.rank: {log_integer: [4, 64]}
budget: {trials: 4}
"""


def test_a_search_over_methods_is_read_with_recipes_and_points_of_each(tmp_path):
    start = "start_from: [paper, {objective.name: dpo, objective.beta: 0.3}]\nbase: {model: {lora: {rank: 8}}}\n"
    search = load(tmp_path, SEARCH + start).search
    assert search is not None
    assert list(search.dimensions)[2:4] == ["objective.beta[dpo]", "objective.beta[simpo]"]
    assert search.known_points == [
        {"objective.name": "slime", "objective.anchor_weight": 0.1, "model.lora.rank": 8},
        {"objective.name": "dpo", "objective.beta": 0.3, "model.lora.rank": 8},
    ]


def test_what_a_trial_trains_changes_nothing_of_the_checkpoint_that_all_start_from(tmp_path):
    experiment = load(tmp_path, SEARCH + "base: {model: {lora: {rank: 8}}}\n")
    other = experiment.settings_with({"model.lora.rank": 64})
    assert (other.model.lora and other.model.lora.rank, other.sft_model.lora and other.sft_model.lora.rank) == (64, 8)
    # Where stage 1 has adapters of its own, or the trial those of base, nothing has to be said.
    assert experiment.settings_with({"objective.anchor_weight": 1.0}).sft == experiment.settings.sft
    without = load(tmp_path, SEARCH + "base: {model: {lora: {rank: 8}}, sft: {lora: null}}\n")
    assert without.settings_with({"model.lora.rank": 64}).sft_model.lora is None


ONE = "search: {objective.hard_margin: {uniform: [0.5, 3.0]}}\nbudget: {trials: 2}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # How a knob is drawn.
        ("search: {training.learning_rate: {uniform: [1e-5, 1e-3], step: 3e-4}}", r"mine.yaml:3: .*miss 0.001. Make the last one"),
        ("search: {training.pairs_per_update: {integer: [8, 16], step: 0.5}}", r"step is 0.5: between integers"),
        ("search: {training.pairs_per_update: {log_integer: [0, 16]}}", r"log_integer starts at 0: .*low above 0"),
        ("search: {training.learning_rate: {log_uniform: [1e-5, 1e-3], step: 1e-5}}", r"step goes with uniform and integer"),
        ("search: {training.learning_rate: 3}", r"mine.yaml:3: training.learning_rate: "),
        ("search: {objective.hard_margin: {uniform: [1, 2]}, objective.anchor_weight: []}", r"mine.yaml:3: objective.anchor_weight is drawn in no way"),
        # Conditions.
        ("search: {objective.gamma: {uniform: [0, 1], when: {objective.name: simpo}}}", r"`when` of objective.gamma: objective.name is not searched"),
        ("search: {objective.name: {choice: [slime, simpo]}, objective.gamma: {uniform: [0, 1], when: {objective.name: sinpo}}}", r"objective.name is never sinpo"),
        ("search: {training.learning_rate: {log_uniform: [1e-5, 1e-3]}, training.pairs_per_update: {integer: [8, 9], when: {training.learning_rate: 1e-4}}}", r"training.learning_rate is continuous, and never has just one"),
        ("search: {training.schedule: {choice: [linear, cosine], when: {training.pairs_per_update: 8}}, training.pairs_per_update: {integer: [8, 16], when: {training.schedule: linear}}}", r"depend on each other in a circle"),
        ("search: {objective.name: {choice: [slime, dpo, simpo]}, objective.gamma: {integer: [0, 1], when: {objective.name: simpo}}, objective.beta: {uniform: [0.1, 1], when: {objective.name: dpo, objective.gamma: 1}}}", r"objective.beta: no trial meets its `when`"),
        ("search: {objective.name: {choice: [dpo, simpo]}, objective.beta: [{uniform: [0.1, 1], when: {objective.name: dpo}}, {uniform: [1, 2]}]}", r"drawn in several ways, so each needs a `when`"),
        ("search: {objective.name: {choice: [dpo, simpo]}, objective.beta: [{uniform: [0.1, 1], when: {objective.name: [dpo, simpo]}}, {uniform: [1, 2], when: {objective.name: simpo}}]}", r"objective.beta is drawn in two ways when objective.name = simpo"),
        # Knobs that are not there, or do nothing.
        ("search: {objective.beta: {uniform: [0.1, 1]}}", r"objective.beta = 0.1: .*beta: unknown key"),
        ("search: {objective.name: {choice: [slime, dpo]}, objective.beta: {uniform: [0.1, 1]}}", r"objective.beta = 0.1 with objective.name = slime: .*unknown key"),
        ("search: {objective.name: {choice: [slime, dppo]}}", r"objective.name = dppo: objective.name is 'dppo'"),
        ("base: {objective: {remove: [anchor]}}\nsearch: {objective.anchor_weight: {uniform: [0.1, 1]}}", r"mine.yaml:4: objective.anchor_weight makes no difference here"),
        ("base: {objective: {stabilizer_strength: 0}}\nsearch: {objective.stabilizer_exponent: {uniform: [1, 3]}}", r"stabilizer_exponent makes no difference here"),
        ("base: {objective: {margin_weight: 0}}\nsearch: {objective.hard_margin: {uniform: [1, 3]}}", r"hard_margin makes no difference here"),
        ("base: {training: {updates: 0}}\nsearch: {objective.hard_margin: {uniform: [1, 3]}}", r"without training no knob matters"),
        ("search: {training.epochs: {uniform: [1, 3]}}", r"training.epochs has no effect beside training.updates"),
        ("search: {training.evaluations: {integer: [1, 3]}}", r"training.evaluations cannot be searched: it changes nothing"),
        ("search: {sft.learning_rate: {uniform: [1e-3, 1e-2]}}", r"sft.learning_rate cannot be searched: the SFT checkpoint .* all trials share"),
        ("search: {evaluation.prompts: {integer: [1, 300]}}", r"evaluation.prompts cannot be searched: it decides how trials are measured"),
        # Requirements.
        (ONE + "require: [objective.hard_margin <= objective.nonsense]", r"mine.yaml:5: objective.nonsense: there is no such setting"),
        (ONE + "require: [objective.hard_margin <= training.schedule]", r"training.schedule is not a number"),
        # Samplers.
        (ONE + "sampler: grid", r"mine.yaml:3: objective.hard_margin is continuous, and the sampler grid needs a list"),
        ("search: {objective.name: {choice: [slime, dpo]}, objective.beta: {uniform: [0.1, 1], when: {objective.name: dpo}}}\nbudget: {trials: 2}\nsampler: gp", r"mine.yaml:5: gp needs every knob in every trial"),
        ("search: {objective.hard_margin: {uniform: [1, 3], step: 1}}\nbudget: {trials: 4}\nsampler: grid", r"budget.trials is 4, and the space has only 3 points"),
        ("search: {objective.hard_margin: {uniform: [0, 3], step: 1e-6}}\nbudget: {trials: 4}\nsampler: grid", r"the grid has 3,000,001 points, more than 100,000\."),
        ("arms: {full: {}}\nsampler: gp", r"`sampler` has no effect without a `search`"),
        # Where it starts.
        (ONE + "sampler: random\nstart_from: [{run: runs/first}]", r"the sampler random learns nothing"),
        (ONE + "start_from: [{run: runs/first, bst: 2}]", r"bst: unknown key. Did you mean 'best'"),
        ("search: {training.schedule: {choice: [linear, cosine]}, training.warmup_fraction: {uniform: [0, 0.5], when: {training.schedule: cosine}}}\nbudget: {trials: 2}\nstart_from: [{training.schedule: linear, training.warmup_fraction: 0.1}]", r"point 1 gives training.warmup_fraction, which it does not have"),
        ("search: {objective.hard_margin: {uniform: [1, 3], step: 1}}\nbudget: {trials: 2}\nstart_from: [paper]", r"hard_margin = 1.5 lies outside \[1.0, 3.0\] in steps of 1"),
        # Budgets.
        (ONE.replace("trials: 2", "trials: 2, hours: 0"), r"budget.hours is 0"),
        (ONE.replace("trials: 2", "trials: 2, gpu_hours: 1"), r"mine.yaml:4: trials hold no GPU"),
        (ONE.replace("trials: 2", "trials: 2, judge_calls: 1"), r"the judge exact makes no calls that are paid"),
        (ONE.replace("trials: 2", "trials: 2, cost: 1"), r"nothing here has a price"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search_is_named_with_its_line(tmp_path, text, message):
    text = text if "budget" in text or "arms" in text else text + "\nbudget: {trials: 2}"
    with pytest.raises(InputError, match=message):
        load(tmp_path, text + "\n")
