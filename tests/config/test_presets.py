"""What the presets hold, what they become when joined, and how two of them differ."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from slime_ray.cli import main
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.presets import compare_presets, preset_base, preset_names
from slime_ray.config.settings import Settings
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError
from slime_ray.objectives import (
    OBJECTIVES,
    ReleasedSlimeObjective,
    SimpoObjective,
    SlimeObjective,
    build_objective,
    tuned_ranges,
)

FAMILIES = ("arithmetic", "notes", "gemma3-4b", "llama3.2-3b", "qwen3-4b")
RECIPES = {
    "paper": SlimeObjective(),
    "paper-sum-logps": SlimeObjective(normalization="sum"),
    "released-script": SlimeObjective(stabilizer_strength=0.0005),
    "released-config": SlimeObjective(anchor_weight=0.8, stabilizer_strength=0.0005, stabilizer_threshold=0.5),
    "released-exact": ReleasedSlimeObjective(stabilizer_strength=0.0005, micro_batch_pairs=8, times_summed=3),
    "simpo-paper": SimpoObjective(beta=0.1, gamma=0.2, nll_weight=0.0),
    "simpo-released": SimpoObjective(beta=0.1, gamma=2.0, nll_weight=1.0),
    # gamma / beta is 0.5.
    "simpo-recommended": SimpoObjective(beta=2.0, gamma=1.0, nll_weight=0.0),
}
PUBLISHED = {
    "dpo-paper": build_objective("dpo", beta=0.1),
    "dpo-rpo": build_objective("dpo", beta=0.1, nll_weight=1.0),
    "ipo-trl": build_objective("ipo", beta=0.1, normalization="mean"),
    "hinge-trl": build_objective("hinge", beta=0.1),
    "robust-paper": build_objective("robust", beta=0.01, label_smoothing=0.1),
    "exo-paper": build_objective("exo", beta=0.1, label_smoothing=0.001),
    "nca-paper": build_objective("nca", beta=0.01),
    "sppo-released": build_objective("sppo", beta=0.001),
    "apo-zero": build_objective("apo", beta=0.1, variant="zero"),
    "apo-down": build_objective("apo", beta=0.1, variant="down"),
    "dpo_shift-released": build_objective("dpo_shift", beta=0.01, shift=0.7),
    "dpo_shift-increasing": build_objective("dpo_shift", beta=0.01, shift=0.75, schedule="linear", final_shift=1.0),
    "dpo_shift-decreasing": build_objective("dpo_shift", beta=0.01, shift=1.0, schedule="linear", final_shift=0.75),
    "discopop-paper": build_objective("discopop", beta=0.05, temperature=0.05),
    "simpo-trl": build_objective("simpo", beta=0.1, gamma=0.5, nll_weight=1.0),
    "simpo-gemma2": build_objective("simpo", beta=10.0, gamma=5.0),
    "cpo-released": build_objective("cpo", beta=0.1, nll_weight=1.0),
    "orpo-released": build_objective("orpo", beta=0.1, nll_weight=1.0),
}
"""Written anew from the sources that `slime-ray presets` names."""


def settings(name: str) -> Settings:
    return Settings.model_validate(preset_base(name))


@pytest.mark.parametrize(("family", "recipe"), list(itertools.product(FAMILIES, RECIPES)))
def test_a_recipe_joined_to_a_family_is_its_objective_on_that_model_and_data(family: str, recipe: str) -> None:
    joined, alone = settings(f"{family}/{recipe}"), settings(family)
    assert joined.objective.build() == RECIPES[recipe]
    for part in ("model", "data", "sft", "evaluation"):
        assert getattr(joined, part) == getattr(alone, part)
    # Only the paper's recipe has a schedule of its own; the released trainer clips.
    if recipe != "paper":
        clip = 1.0 if recipe == "released-exact" else alone.training.max_grad_norm
        assert joined.training == alone.training.model_copy(update={"max_grad_norm": clip})


def test_every_objective_that_a_preset_names_is_one_of_these() -> None:
    named = {name for name in preset_names() if "objective" in preset_base(name)}
    assert named == {*RECIPES, *FAMILIES, *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_is_its_objective_and_says_nothing_else(name: str) -> None:
    assert preset_base(name).keys() == {"objective"}
    assert settings(f"arithmetic/paper/{name}").objective.build() == PUBLISHED[name]
    assert settings(f"arithmetic/paper/{name}").training == settings("arithmetic/paper").training


def test_what_is_published_lies_where_the_objective_is_tuned() -> None:
    # But for TRL's SimPO, which has DPO's beta on means, and for a shift that starts as DPO.
    outside = {
        f"{kind.name}-{key}: {knob}"
        for kind in OBJECTIVES.values()
        for key, each in getattr(kind, "published", {}).items()
        for knob, (low, high) in tuned_ranges(kind).items()
        if each.knobs.get(knob) and not low <= each.knobs[knob] <= high
    }
    assert outside == {"simpo-trl: beta", "dpo_shift-decreasing: shift"}


def test_a_league_starts_an_entry_from_what_is_published(tmp_path: Path) -> None:
    path = tmp_path / "cup.yaml"
    path.write_text(
        "name: cup\npreset: arithmetic\nleague:\n  trials: 3\n"
        "  entries: {nca: {start_from: [nca-paper]}, orpo: {start_from: [orpo-released]}}\n"
    )
    nca, _ = load_experiment(path).league.entries  # type: ignore[union-attr]
    assert [point["objective.beta"] for point in nca.search["known_points"]] == [0.1, 0.01]


def test_the_text_of_a_published_preset_is_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "show", "apo-down"]) == 0
    assert load_yaml(_written(tmp_path / "mine.yaml", capsys.readouterr().out)).data == {
        "summary": "apo with beta 0.1, variant down, as published: arXiv 2408.06266, section 5.2",
        "base": {"objective": {"name": "apo", "beta": 0.1, "variant": "down"}},
    }


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_of_another_objective_is_no_point_of_the_search(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: first\npreset: arithmetic\nbudget: {trials: 2}\nstart_from: [released-exact]\n"
        "search: {objective.anchor_weight: {uniform: [0, 1]}}\n"
    )
    with pytest.raises(InputError, match=r"released-exact sets objective\.name = slime-released"):
        load_experiment(path)


ABSENT = "absent"


def differing(one: str, other: str) -> dict[str, tuple[Any, Any]]:
    found = compare_presets(one, other)
    return {path: (values.get("one", ABSENT), values.get("other", ABSENT)) for path, values in found.items()}


def test_differences_by_hand() -> None:
    found = differing("gemma3-4b/released-script", "gemma3-4b/paper")
    schedule = {
        "training.schedule": (ABSENT, "linear"),
        "training.warmup_fraction": (ABSENT, 0.0),
        "training.weight_decay": (ABSENT, 0.0),
        "training.max_grad_norm": (ABSENT, None),
    }
    assert found == schedule | {"objective.stabilizer_strength": (0.0005, 0.1)}
    assert differing("arithmetic/released-exact", "arithmetic/released-script") == {
        "objective.name": ("slime-released", "slime"),
        "objective.micro_batch_pairs": (8, ABSENT),
        "objective.times_summed": (3, ABSENT),
    }


def test_knobs_that_a_preset_leaves_are_at_their_defaults() -> None:
    # `arithmetic` says nothing of the objective but its name.
    assert differing("arithmetic", "arithmetic/released-config") == {
        "objective.anchor_weight": (0.1, 0.8),
        "objective.stabilizer_strength": (0.1, 0.0005),
        "objective.stabilizer_threshold": (1.25, 0.5),
    }
    assert "objective.normalization" not in differing("paper", "released-script")
    assert differing("paper", "paper-sum-logps")["objective.normalization"] == ("mean", "sum")


def test_a_preset_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_presets("gemma3-4b/paper", "gemma3-4b/paper") == {}
    assert main(["presets", "diff", "paper", "paper"]) == 0
    assert capsys.readouterr().out == "paper and paper do not differ.\n"


def test_the_command_prints_the_differences_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "diff", "arithmetic/simpo-released", "arithmetic/simpo-recommended"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "                      arithmetic/simpo-released  arithmetic/simpo-recommended",
        "objective.beta        0.1                        2.0",
        "objective.gamma       2.0                        1.0",
        "objective.nll_weight  1.0                        0.0",
    ]
    assert main(["presets", "diff", "mt-bench", "released-exact"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["evaluation.decoding.temperatures.writing", "0.7", "(absent)"] in lines
    assert ["objective.remove", "(absent)", "[]"] in lines


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("released-exat", "Did you mean 'released-exact'?"),
        ("gemma3-4b/papr", "Did you mean 'paper'?"),
        ("", "arithmetic, "),
    ],
)
def test_an_unknown_preset_is_refused_with_the_nearest(
    wrong: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["presets", "diff", "paper", wrong]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"slime-ray: There is no preset {wrong.rpartition('/')[2]!r}.")
    assert near in said


def test_presets_alone_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
