"""The key `league`: what its entries become, and what is refused, with its line."""

from typing import Any

import pytest
import yaml

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.league import League, entry_of
from slime_ray.errors import InputError
from slime_ray.objectives import OBJECTIVES, tuned_ranges
from slime_ray.planning.trials import extremes, groups_of

TEXT = """\
name: cup
preset: arithmetic
league:
  trials: 4
  seeds: 3
  learning_rate: {log_uniform: [1.0e-4, 1.0e-3]}
  defaults: true
  entries:
    dpo: {search: {objective.beta: {log_uniform: [0.01, 1.0]}}}
    ipo: {}
    strict-dpo:
      set: {objective: {name: dpo, nll_weight: 0.5}}
      search: {objective.beta: {log_uniform: [0.05, 0.5]}}
    sft: {}
seeds: [0, 7]
"""


def league(**changes: Any) -> Experiment:
    """The experiment with changes of the league."""
    data = yaml.safe_load(TEXT)
    data["league"] |= changes
    return load_experiment(data)


def with_entries(**entries: Any) -> Experiment:
    return league(entries={"ipo": {}, "sft": {}, **entries})


def test_an_entry_searches_its_knobs_and_the_same_learning_rate():
    found = load_experiment(yaml.safe_load(TEXT))
    spaces = {part.label: part.search.dimensions for part in found.searches}
    assert list(spaces) == ["dpo", "ipo", "strict-dpo", "sft"]
    assert list(spaces["dpo"]) == ["objective.beta", "training.learning_rate"]
    assert list(spaces["sft"]) == ["training.learning_rate"]
    assert all(space["training.learning_rate"] == spaces["dpo"]["training.learning_rate"] for space in spaces.values())
    assert spaces["ipo"]["objective.beta"].log_uniform == tuned_ranges(OBJECTIVES["ipo"])["beta"]


def test_an_entrys_trials_have_its_objective_and_its_points_are_read_back():
    found = load_experiment(yaml.safe_load(TEXT))
    part = found.searches[2]
    values = part.values({"objective.beta": 0.2, "training.learning_rate": 5e-4})
    settings = found.settings_with(values)
    assert settings.objective.build() == OBJECTIVES["dpo"](beta=0.2, nll_weight=0.5)
    assert settings.training.learning_rate == 5e-4
    assert part.point(values) == {"objective.beta": 0.2, "training.learning_rate": 5e-4}


def test_the_objectives_defaults_come_first_at_the_learning_rate_of_base():
    found = load_experiment(yaml.safe_load(TEXT))
    firsts = {part.label: part.search.known_points[0] for part in found.searches}
    assert firsts["dpo"] == {"objective.beta": 0.1, "training.learning_rate": 3e-4}
    far = league(learning_rate={"log_uniform": [1e-6, 1e-4]})
    assert far.searches[0].search.known_points[0]["training.learning_rate"] == pytest.approx(1e-5)


def test_defaults_are_the_objectives_own_at_the_winners_learning_rate():
    part = load_experiment(yaml.safe_load(TEXT)).searches[0]
    winner = part.values({"objective.beta": 0.7, "training.learning_rate": 2e-4})
    assert part.default_values(winner) == winner | {"objective.beta": 0.1}
    assert league(defaults=False).searches[0].default_values(winner) is None


def test_a_knob_that_an_entry_sets_has_that_value_among_its_defaults():
    part = league(
        entries={
            "ipo": {},
            "dpo-nll": {
                "set": {"objective": {"name": "dpo", "nll_weight": 0.5}},
                "search": {
                    "objective.beta": {"log_uniform": [0.01, 1.0]},
                    "objective.nll_weight": {"log_uniform": [0.1, 1.0]},
                },
            },
        }
    ).searches[1]
    assert part.search.known_points == [
        {"objective.beta": 0.1, "objective.nll_weight": 0.5, "training.learning_rate": 3e-4}
    ]
    winner = part.values({"objective.beta": 0.7, "objective.nll_weight": 0.9, "training.learning_rate": 2e-4})
    settings = load_experiment(yaml.safe_load(TEXT)).settings_with(part.default_values(winner) or {})
    assert settings.objective.build() == OBJECTIVES["dpo"](beta=0.1, nll_weight=0.5)


def test_the_rule_of_winners_names_the_constraints():
    kept = load_experiment(yaml.safe_load(TEXT) | {"constraints": ["stability >= 0.8"]})
    assert kept.league is not None
    assert kept.league.rule.startswith("of an entry's completed trials that keep stability >= 0.8 the one that")


def test_defaults_that_break_an_entrys_requirement_are_not_among_its_trials():
    margins = {f"objective.{name}_margin": {"uniform": [0.1, 5.0]} for name in ("hard", "soft")}
    part = with_entries(
        slime={"search": margins, "require": ["objective.hard_margin <= objective.soft_margin"]}
    ).searches[2]
    assert part.search.known_points == []


def test_the_memory_of_every_entry_is_planned():
    planned = extremes(load_experiment(yaml.safe_load(TEXT)))
    assert {settings.objective.name for settings in planned} == {"slime", "dpo", "ipo", "sft"}


def test_more_trials_seeds_and_entries_leave_what_is_computed_alone():
    one, more = league(), league(trials=9, seeds=5, defaults=False)
    assert one.fingerprint == more.fingerprint
    assert with_entries().fingerprint != with_entries(nca={}).fingerprint


def test_an_experiment_without_a_league_has_the_fingerprint_that_it_had_before_there_were_any():
    plain = load_experiment({"name": "one", "preset": "arithmetic", "arms": {"slime": {}}})
    assert plain.league is None
    assert plain.searches == []
    assert Experiment.model_validate(plain.model_dump(exclude={"league"})).fingerprint == plain.fingerprint


def test_a_manifest_gives_the_league_back():
    found = load_experiment(yaml.safe_load(TEXT))
    again = Experiment.model_validate_json(found.model_dump_json())
    assert again == found
    assert League.of({"experiment": found.model_dump(mode="json")}) == found.league
    assert again.searches == found.searches


def test_a_plan_counts_search_confirmations_and_defaults_of_every_entry():
    counts = {group.name: group.trials for group in groups_of(load_experiment(yaml.safe_load(TEXT)))}
    assert counts["search ipo"] == 4
    assert counts["confirmations ipo"] == 2 * 3
    assert counts["confirmations sft"] == 3  # which has no knobs, and so no defaults


@pytest.mark.parametrize(
    ("trial_id", "label"),
    [
        ("search-0001", ""), ("search-dpo-0012", "dpo"), ("search-a-1234-0001", "a-1234"), ("search-dpo-0001-clone-2", None),
        ("search-0001-clone-1", ""), ("arm-dpo-s0", None), ("arm-x-s0-clone-1", None),
    ],
)  # fmt: skip
def test_a_trials_id_names_its_entry(trial_id, label):
    assert entry_of(trial_id) == label


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"simpoo": {}}, r"league\.entries\.simpoo|simpoo is no objective; .*Did you mean 'simpo'"),
        ({"alphapo": {}}, "alphapo has no published ranges. Give it a `search` of its knobs: beta, gamma, alpha"),
        ({"dpo": {"search": {"objective.gamma": {"uniform": [0.1, 1.0]}}}}, r"objective\.gamma"),
        ({"dpo": {"search": {"training.updates": {"integer": [10, 20]}}}}, "training.updates cannot be an entry's own"),
        (
            {"dpo": {"search": {"training.learning_rate": {"uniform": [0.1, 0.2]}}}},
            r"training.learning_rate cannot be an entry's own: league\.learning_rate is the same for all",
        ),
        ({"dpo": {"search": {"model.lora.rank": {"integer": [2, 8]}}}}, "model.lora.rank cannot be an entry's own"),
        ({"dpo": {"search": {"objective.name": {"choice": ["dpo", "ipo"]}}}}, "an entry is one objective"),
        ({"dpo": {"set": {"training.updates": 20}}}, "training.updates would be dpo's alone"),
        ({"dpo": {"set": {"training": {"pairs_per_update": 4}}}}, "training.pairs_per_update would be dpo's alone"),
        ({"dpo": {"set": {"training.learning_rate": 1e-3}}}, "training.learning_rate is searched for every entry"),
        ({"dpo": {"set": {"data.pairs": 20}}}, "data.pairs would be dpo's alone"),
        ({"dpo": {"trials": 9}}, "trials is the same for all entries, and stands in `league`. Remove it here"),
        ({"dpo": {"start_from": [{"run": "runs/first"}]}}, "an entry starts from points alone"),
        ({"dpo": {"set": {"objective": {"name": "dpo", "beta": -1}}}}, "entry dpo: .*beta"),
        (
            {"slime": {"set": {"objective": {"name": "slime", "remove": ["anchor"]}},
                       "search": {"objective.anchor_weight": {"uniform": [0.1, 1]}}}},
            "anchor",
        ),
        ({"again": {"set": {"objective.name": "ipo"}}}, "again is the same as ipo"),
        ({"a/b": {"set": {"objective.name": "ipo"}}}, "a/b"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_entry_that_cannot_be_compared_is_refused(entry, sentence):
    with pytest.raises(InputError, match=sentence):
        with_entries(**entry)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"search": {"training.learning_rate": {"uniform": [1e-4, 1e-3]}}}, "a league's entries have their own. Remove `search`"),
        ({"ablate": {"design": "leave_one_out"}}, "Remove `ablate`"),
        ({"budget": {"trials": 4}}, "an equal budget for each entry: league.trials"),
        ({"budget": {"confirm": {"best": 1}}}, "league.seeds"),
        ({"goals": {}}, "there is no goal"),
        ({"league": {"trials": 4, "entries": {"dpo": {}}}}, r"league\.entries is .* at least 2"),
    ],
)  # fmt: skip
def test_what_contradicts_a_league_is_refused(more, sentence):
    with pytest.raises(InputError, match=sentence):
        load_experiment(yaml.safe_load(TEXT) | more)


def test_more_trials_than_an_entrys_space_has_points_names_the_leagues_budget():
    with pytest.raises(InputError, match=r"league\.trials is 5, and the space has only 2 points"):
        league(trials=5, learning_rate={"choice": [1e-4, 1e-3]})


def test_a_complaint_names_the_line_of_the_entry(tmp_path):
    file = tmp_path / "cup.yaml"
    file.write_text(
        TEXT.replace("objective.beta: {log_uniform: [0.05, 0.5]}", "objective.beta: {log_uniform: [0.5, 0.05]}")
    )
    with pytest.raises(InputError, match=r"cup\.yaml:13: objective\.beta: low 0\.5 is not below high"):
        load_experiment(file)
