"""What a user may write in an experiment's YAML, and what they are told when it is wrong."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from slime_ray.search_spaces import find_space, shipped_spaces

from slime_ray.config.complaints import FOREIGN_KEYS
from slime_ray.config.experiment import with_values
from slime_ray.config.experiment_file import load_experiment, parse_override, parse_seeds
from slime_ray.config.experiment_keys import ExperimentKeys
from slime_ray.config.model import Lora
from slime_ray.config.settings import Settings
from slime_ray.config.space import Dimension, Requirement
from slime_ray.errors import InputError

GOOD = """\
name: first
preset: arithmetic
base:
  training: {updates: 3}
arms:
  full: {}
  no-anchor: {objective.anchor_weight: 0}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(shipped_spaces()))
def test_every_shipped_space_loads(name):
    experiment = load_experiment(find_space(name))
    for arm in experiment.arms:
        experiment.settings_with(arm.set)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seeds: [0, 0]\n", r"mine.yaml:8: seeds: 0 and 0 are equal. Remove one of them"),
        ("seeds: zero\n", r"mine.yaml:8: seeds is 'zero'"),
        ("trails: 3\n", r"mine.yaml:8: trails: unknown key\. .*Allowed: ablate, across, arms, base, budget"),
        ("budget: {trails: 3}\n", r"mine.yaml:8: budget.trails: unknown key\. Did you mean 'trials'\?"),
        ("arms: {}\n", r"mine.yaml:8: the key 'arms' stands here twice"),
        ("goals: {win_rat: maximize}\n", r"mine.yaml:8: goals.win_rat: .*Did you mean 'win_rate'\?"),
        ("goals: {win_rate: bigger}\n", r"mine.yaml:8: goals.win_rate is 'bigger'"),
        ("budget: {trials: 4}\n", r"mine.yaml:8: there are trials to spend but no `search`"),
        ("require: [a.b <= 1]\n", r"mine.yaml:8: `require` has no effect without a `search`"),
        (
            "grid: {training.learning_rat: [1, 2]}\n",
            r"training.learning_rat: unknown key\. Did you mean 'learning_rate'",
        ),
        ("search: {objective.hard_margin: {uniform: [3.0, 0.5]}}\n", r"mine.yaml:8: .*low 3.0 is not below high 0.5"),
        ("search: {objective.hard_margin: {log_uniform: [0, 1]}}\n", r"a logarithmic range needs a low above 0"),
        ("search: {objective.hard_margin: {uniforn: [0, 1]}}\n", r"uniforn: unknown key\. Did you mean 'uniform'"),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 1]}}\n",
            r"mine.yaml: there is a search but `budget.trials` is 0",
        ),
        (
            "search: {objective.stabilizer_exponent: {uniform: [0.5, 3.0]}}\nbudget: {trials: 2}\n",
            r"mine.yaml:8: objective.stabilizer_exponent = 0.5: .*stabilizer_exponent is 0.5: must be",
        ),
        (
            "search: {objective.hard_margins: {uniform: [0.5, 3.0]}}\nbudget: {trials: 2}\n",
            r"mine.yaml:8: .*objective.hard_margins: unknown key\. Did you mean 'hard_margin'\?",
        ),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 3.0]}}\nbudget: {trials: 2}\nrequire: [objective.hard_margin <= 0.2]\n",
            r"mine.yaml:10: no point of the space meets every requirement",
        ),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 3.0]}}\nbudget: {trials: 2}\nrequire: ['__import__(\"os\")']\n",
            r"mine.yaml:10: .* is not understood: write `path <= path`",
        ),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 1.0]}}\nbudget: {trials: 2}\nstart_from: [paper]\n",
            r"mine.yaml:10: paper: objective.hard_margin = 1.5 lies outside \[0.5, 1.0\]",
        ),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 2.0]}}\nbudget: {trials: 2}\nstart_from: [released-script]\n",
            r"mine.yaml:10: released-script sets objective.stabilizer_strength = 0.0005, which is not searched",
        ),
        (
            "search: {objective.hard_margin: {uniform: [0.5, 2.0]}}\nbudget: {trials: 2}\ngoals: {preference_accuracy: maximize}\n",
            r"mine.yaml:10: accuracy and margin rise while a model collapses",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line_and_the_way_out(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, GOOD + change))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("preset: arithmetic", "preset: arithmetik", r"There is no preset 'arithmetik'. Did you mean 'arithmetic'\?"),
        ("updates: 3", "updates: three", r"mine.yaml:4: training.updates is 'three'"),
        ("updates: 3", "updates: -3", r"mine.yaml:4: training.updates is -3: input should be greater"),
        ("updates: 3", "learning_rat: 3", r"mine.yaml:4: training.learning_rat: unknown key.*'learning_rate'"),
        ("updates: 3", "learning_rate: .nan", r"mine.yaml:4: base.training.learning_rate is nan. Give a finite"),
        ("anchor_weight: 0", "anchor_weigth: 0", r"mine.yaml:7: arm no-anchor: .*Did you mean 'anchor_weight'"),
        ("anchor_weight: 0", "anchor_weight: -1", r"mine.yaml:7: arm no-anchor: objective.anchor_weight is -1"),
        ("anchor_weight: 0", "anchor_weight: '0'", r"mine.yaml:7: arm no-anchor: objective.anchor_weight is '0'"),
        ("anchor_weight: 0", "anchor_weight: 0.1", r"mine.yaml:7: arm no-anchor is the same as arm full"),
        ("{objective.anchor_weight: 0}", "{objective: {name: dppo}}", r"objective.name is 'dppo'. Did you mean 'dpo'\?"),
        ("name: first", "name: ../first", r"mine.yaml:1: name is '../first'. Use letters"),
        ("name: first\n", "", r"mine.yaml: name is missing"),
        ("name: first", "name: [first", r"mine.yaml:\d+: not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_base_or_an_arm_is_named_with_its_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("hf://datasets/org/pairs@main/train.parquet", "Give the Hub id org/pairs"),
        ("hf://org/model", "Give the Hub id org/model"),
        ("https://huggingface.co/datasets/org/pairs/resolve/main/a.jsonl?token=secret", "Give the Hub id org/pairs"),
        ("s3://user:secret@bucket/pairs.jsonl", "Download it and give its path"),
    ],
)
@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("data.train", ""),
        ("data.train.0.source", ""),
        ("model.source", ""),
        ("model.tokenizer", ""),
        ("model.chat_template", ".jinja"),
        ("evaluation.questions", ""),
    ],
)
def test_an_address_in_the_place_of_a_file_is_refused_before_anything_starts(key, more, address, way_out):
    value: Any = address + more
    if key.startswith("data.train."):
        key, value = "data.train", [{"source": value}]
    overrides = {"model.source": "org/m", "data.train": "org/p", "evaluation.judge": "none", key: value}
    base = {"name": "x", "preset": "arithmetic", "arms": {"a": {}}, "goals": {"stability": "maximize"}}
    with pytest.raises(InputError, match=rf"{key}.*no address such as {address[:2]}.*{way_out}") as caught:
        load_experiment(base, overrides=overrides)
    assert "secret" not in str(caught.value)


LEAGUE = "league: {{trials: 2, seeds: 2, {}}}"


@pytest.mark.parametrize(
    ("wrong", "right", "example"),
    [
        (LEAGUE.format("entries: [dpo, ipo]"), LEAGUE.format("entries: {dpo: {}, ipo: {}}"), "entries: {dpo: {}, ipo: {}}"),
        (LEAGUE.format("entries: [{label: x}]"), LEAGUE.format("entries: {dpo: {}, ipo: {}}"), "entries: {dpo: {}, ipo: {}}"),
        (LEAGUE.format("entries: {dpo: , ipo: {}}"), LEAGUE.format("entries: {dpo: {}, ipo: {}}"), "dpo: {}"),
        ("arms: [dpo]", "arms: {dpo: {objective.name: dpo}}", "arms: {dpo: {objective.name: dpo}}"),
        ("arms: {dpo: dpo}", "arms: {dpo: {objective.name: dpo}}", "dpo: {objective.name: dpo}"),
        ("{arms: {a: {}}, base: {objective: dpo}}", "{arms: {a: {}}, base: {objective: {name: dpo}}}", "objective: {name: dpo}"),
    ],
)  # fmt: skip
def test_what_should_be_a_mapping_is_refused_with_an_example_that_is_taken(wrong, right, example):
    with pytest.raises(InputError, match="and a mapping of keys to values is expected") as caught:
        load_experiment({"name": "x", "preset": "arithmetic", **yaml.safe_load(wrong)})
    assert str(caught.value).endswith(f", such as {example}.")
    assert example in right
    load_experiment({"name": "x", "preset": "arithmetic", **yaml.safe_load(right)})


def test_overrides_reach_base_and_the_top_level(tmp_path):
    overrides = dict(map(parse_override, ["training.updates=7", "budget.trials=2", "seeds=[3, 4]"]))
    text = GOOD + "search: {objective.hard_margin: {uniform: [1.0, 2.0]}}\nbudget: {trials: 9}\n"
    experiment = load_experiment(write(tmp_path, text), overrides=overrides, name="other")
    assert (experiment.settings.training.updates, experiment.budget.trials) == (7, 2)
    assert (experiment.seeds, experiment.name) == ([3, 4], "other")
    with pytest.raises(InputError, match="write it as key=value"):
        parse_override("training.updates")


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 1e3), st.floats(1.001, 1e3))
def test_a_dimension_contains_every_value_it_draws(quantile, low, ratio):
    for way in ("uniform", "log_uniform"):
        dimension = Dimension.model_validate({way: [low, low * ratio]})
        value = dimension.at(quantile)
        assert low * (1 - 1e-9) <= value <= low * ratio * (1 + 1e-9)
    whole = Dimension.model_validate({"integer": [2, 5]})
    assert whole.contains(whole.at(quantile))


def test_a_requirement_measures_by_how_much_it_is_broken():
    requirement = Requirement.parse("objective.soft_margin <= objective.hard_margin")
    assert requirement.excess({"objective.soft_margin": 2.0, "objective.hard_margin": 1.5}) == 0.5
    assert Requirement.parse("a.b <= 1e-3").excess({"a.b": 0.0}) == pytest.approx(-0.001)
    assert re.match("a.b <= 0.5", str(Requirement.parse("a.b<=.5")))


def test_a_relative_path_means_the_same_wherever_a_trial_runs(tmp_path, monkeypatch):
    """Ray gives every trial a working folder of its own."""
    (tmp_path / "pairs.jsonl").touch()
    (tmp_path / "chat.jinja").touch()
    (tmp_path / "chatml").touch()
    monkeypatch.chdir(tmp_path)
    values = {
        "model": {"source": "org/model", "chat_template": "chat.jinja"},
        "data": {"train": "pairs.jsonl"},
        "objective": {"name": "slime"},
        "training": {"learning_rate": 1e-4},
    }
    settings = Settings.model_validate(values)
    assert settings.data.train == str(tmp_path / "pairs.jsonl")
    assert settings.model.chat_template == str(tmp_path / "chat.jinja")
    # What is no local path stays as it is, and a shipped template's name is never taken for a file.
    assert settings.model.source == "org/model"
    shipped = Settings.model_validate(with_values(values, {"model.chat_template": "chatml"}))
    assert shipped.model.chat_template == "chatml"
    monkeypatch.chdir("/")
    assert Settings.model_validate(settings.model_dump()) == settings


# ---------------------------------------------------------------------------------------------------------------------
# Limits

SEARCH = "budget: {trials: 2}\nsearch: {objective.hard_margin: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"arms: {{{'x' * 121}: {{}}}}", r"mine.yaml:8: arms.x{15}: x{40}\.\.\. has 121 characters, and 120 are the limit"),
        (f"grid: {{training.learning_rate: [1e-4], {'a' * 90}.b: [1]}}", "unknown key"),
        ("grid: {model.revision: [" + "r" * 119 + "]}", r"mine.yaml:\d: the arm full-revision=r.* and 120 are the limit"),
        ("grid: {training.learning_rate: []}", r"mine.yaml:8: grid.training.learning_rate is \[\]. Give it 1 or more, or leave it out"),
        ("grid: {training.updates: [1, 1.0]}", "grid.training.updates: 1 and 1.0 are equal"),
        ("grid: {training.updates: [3, 4, 3]}", "grid.training.updates: 3 and 3 are equal"),
        ("seeds: [4294967296]", "mine.yaml:8: seeds.0 is 4294967296: .* less than or equal to 4294967295"),
        ("seeds: [-1]", "mine.yaml:8: seeds.0 is -1: .*greater than or equal to 0"),
        ("seeds: [99999999999999999999]", "mine.yaml:8: seeds.0 is 99999999999999999999. Give a whole number of at most"),
        ("base: {data: {seed: 4294967296}}", "data.seed is 4294967296"),
        ("base: {sft: {seed: 4294967296, learning_rate: 1e-4}}", "sft.seed is 4294967296"),
        (f"{SEARCH}{{uniform: [1, 2]}}}}\nbudget: {{trials: 100001}}", "budget.trials is 100001: .*100000"),
        (f"{SEARCH}{{choice: [1, 1.0]}}}}", "mine.yaml:9: .*choice: 1 and 1.0 are equal. Remove one"),
        (f"{SEARCH}{{choice: [true, 1]}}}}", "choice: True and 1 are equal"),
        (f"{SEARCH}{{choice: [0.1, 0.10]}}}}", "choice: 0.1 and 0.1 are equal"),
        (f"{SEARCH}{{choice: [1, 2, 0x1]}}}}", "choice: 1 and 1 are equal"),
        (f"{SEARCH}{{choice: [1]}}}}", "choice needs at least two values. Give one value in base"),
        (f"{SEARCH}{{uniform: [1, 1]}}}}", "low 1.0 is not below high 1.0"),
        (f"{SEARCH}{{integer: [2, 2]}}}}", "low 2 is not below high 2"),
        (f"{SEARCH}{{uniform: [0, 1], step: 1e-320}}}}", "from 0 to 1 is more than a number can tell"),
        (f"{SEARCH}{{uniform: [-1e308, 1e308]}}}}", "is more than a number can tell. Narrow it"),
    ],
)  # fmt: skip
def test_what_a_file_system_numpy_or_a_sampler_would_refuse_is_refused_before(tmp_path, change, message):
    good = GOOD
    for key in ("arms", "base"):
        # A key that the change has stands there once.
        if change.startswith(f"{key}:"):
            good = re.sub(rf"^{key}:\n( .*\n)+", "", good, flags=re.MULTILINE)
            message = message.replace("mine.yaml:8", r"mine.yaml:\d")
    if "trials: 100001" in change:
        change = change.replace("budget: {trials: 2}\n", "")
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, good + change + "\n"))


def test_a_grid_of_a_hundred_million_arms_is_refused_with_their_number(tmp_path):
    values = ", ".join(map(str, range(1, 101)))
    grid = "".join(
        f"  {path}: [{values}]\n" for path in ("training.updates", "data.pairs", "data.max_tokens", "data.seed")
    )
    with pytest.raises(InputError, match=r"mine\.yaml:8: the grid makes 200,000,000 arms, and 100,000 are the limit"):
        load_experiment(write(tmp_path, GOOD + "grid:\n" + grid))


def test_arms_of_a_grid_never_share_a_label_and_labels_name_folders(tmp_path):
    grid = "grid: {training.learning_rate: [1.0000001e-4, 1e-4, 1.0000002e-4]}\n"
    labels = [arm.label for arm in load_experiment(write(tmp_path, GOOD + grid)).arms]
    assert labels[:3] == [
        "full-learning_rate=0.00010000001", "full-learning_rate=0.0001", "full-learning_rate=0.00010000002"
    ]  # fmt: skip
    labels = [
        arm.label for arm in load_experiment(write(tmp_path, GOOD + "grid: {model.revision: [a/b, ../c]}\n")).arms
    ]
    assert labels == [f"{arm}-revision={value}" for arm in ("full", "no-anchor") for value in ("a-b", "..-c")]
    with pytest.raises(InputError, match="two arms are called full-revision=a-b"):
        load_experiment(write(tmp_path, GOOD + "grid: {model.revision: [a/b, a-b]}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99999999999999999999", "99999999999999999999 is more than the largest seed, 4294967295"),
        ("4294967296,", "4294967296 is more than the largest seed"),
        ("0,9999999999999999999999999", "is more than the largest seed"),
        ("9" * 5000, "is more than the largest seed"),
        ("10001", "10,000 seeds are the limit"),
        *((text, "give how many, such as 8, or a list") for text in ("0", "-1", "a", "1,,2", "", ",", "1.5", "3-5")),
    ],
)
def test_what_are_no_seeds_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("8", list(range(8))), ("1", [0]), ("0,1,5", [0, 1, 5]), ("7,", [7]), ("4294967295,", [2**32 - 1])],
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert parse_seeds(text) == seeds


def test_everything_that_is_wrong_in_a_file_is_said_at_once_in_its_order(tmp_path):
    text = (
        "name: many\npreset: arithmetic\nbase:\n  training: {updates: three, learning_rat: 1e-4}\n  model: {lora: {r: 8}}\n"
        "seeds: zero\n"
    )
    with pytest.raises(InputError) as error:
        load_experiment(write(tmp_path, text))
    assert [line.removeprefix(f"{tmp_path}/mine.yaml:")[:38] for line in str(error.value).splitlines()] == [
        "4: training.learning_rat: unknown key.",
        "4: training.updates is 'three': input ",
        "5: model.lora.r: unknown key. Here it ",
        "6: seeds is 'zero': input should be a ",
    ]


def test_arms_goals_and_budget_are_all_refused_at_once(tmp_path):
    text = GOOD.replace("full: {}", "full: {training.updates: -1}") + (
        "goals: {win_rat: maximize}\nbudget: {trials: 4, gpu_hours: 1}\n"
    )
    with pytest.raises(InputError) as error:
        load_experiment(write(tmp_path, text))
    lines = [line.removeprefix(f"{tmp_path}/mine.yaml:").partition(":")[0] for line in str(error.value).splitlines()]
    assert lines == ["6", "8", "9", "9"]


@pytest.mark.parametrize(
    ("lines", "ours"),
    [
        ("per_device_train_batch_size: 8", "training.pairs_per_update"),
        ("report_to: wandb", "trackers"),
        ("n_trials: 8", "budget.trials"),
        ("search: {training.learning_rate: {low: 1e-5, high: 1e-3, log: true}}", "log_uniform: [low, high]"),
        ("search: {training.learning_rate: {loguniform: [1e-5, 1e-3]}}", "log_uniform: [low, high]"),
    ],
)
def test_a_key_of_another_library_is_answered_with_ours(tmp_path, lines, ours):
    with pytest.raises(InputError, match=rf"unknown key\. Here it is .*{re.escape(ours)}"):
        load_experiment(write(tmp_path, GOOD + lines + "\n"))


def test_the_answer_to_a_key_of_another_library_is_a_key_that_there_is():
    tops = {**ExperimentKeys.model_fields, **Settings.model_fields, **Dimension.model_fields, "objective": None}
    for ours in FOREIGN_KEYS.values():
        path = re.match(r"[a-z_.]+", ours)[0].rstrip(".:").split(".")
        assert path[0] in tops, ours
        field = Settings.model_fields.get(path[0]) or ExperimentKeys.model_fields.get(path[0])
        if len(path) > 1 and path[0] != "objective":
            assert path[1] in field.annotation.model_fields, ours
        if path[:2] == ["model", "lora"]:
            assert path[2] in Lora.model_fields, ours


@pytest.mark.parametrize("path", ["~nobody-of-this-name/pairs.jsonl", "x" * 5000])
@pytest.mark.parametrize("key", ["data.train", "model.source", "evaluation.questions", "model.tokenizer"])
def test_a_path_that_no_machine_could_look_for_is_refused_with_a_sentence(key, path):
    with pytest.raises(InputError, match=rf"{key}: .* is no path of this machine: "):
        load_experiment({"name": "one", "preset": "arithmetic", "arms": {"a": {}}}, overrides={key: path})
