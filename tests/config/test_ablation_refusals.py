"""What `ablate` refuses, with the line and the reason."""

import pytest

from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError

from .test_ablation import write


@pytest.mark.parametrize(
    ("ablate", "message"),
    [
        ("{design: leave_one_outt}", r"mine.yaml:3: ablate.design is 'leave_one_outt'. Did you mean 'leave_one_out'\?"),
        ("{}", r"mine.yaml:3: ablate.design is missing. Give one of: leave_one_out, factorial"),
        ("{design: factorial, component: [anchor]}", r"mine.yaml:3: ablate.component: unknown key. Did you mean 'components'"),
        ("{design: factorial, components: [anchor, stabiliser]}", r"mine.yaml:3: .*'stabiliser' is no part of slime. Did you mean 'stabilizer'\?"),
        ("{design: factorial, components: [anchor, anchor]}", r"ablate.components: 'anchor' and 'anchor' are equal"),
        ("{design: factorial, components: [anchor]}", r"ablate.components is \['anchor'\]: .* at least 2"),
        ("{design: factorial, components: [hard_margin, hard_margin_clip]}", r"two readings of one ablation. Name one"),
        ("{design: leave_one_out, metric: winrate}", r"ablate.metric is 'winrate'. Did you mean 'win_rate'\?"),
        ("{design: leave_one_out, controls: matched}", r"ablate.controls is 'matched'"),
        ("{design: leave_one_out, centers: {a/b: {}}}", r"Use letters, digits"),
        ("{design: leave_one_out,\n centers: {a: {},\n  b: {objective.hard_margni: 1}}}", r"mine.yaml:5: center b: .*Did you mean 'hard_margin'"),
        ("{design: leave_one_out, centers: {a: {}, b: {objective.anchor_weight: 0.1}}}", r"center b would train just as center a does"),
        ("{design: leave_one_out, centers: {a: {objective.remove: [anchor]}}}", r"center a has no full objective to compare with: objective.remove takes anchor away"),
        ("{design: leave_one_out, centers: {a: {objective: {name: sft}}}}", r"the objective of center a, sft, declares no parts"),
        ("{design: leave_one_out, components: [anchor], centers: {a: {objective.anchor_weight: 0}}}", r"center a: slime trains alike with and without anchor there"),
        ("{design: factorial, centers: {a: {objective.margin_weight: 0}}}", r"center a: slime trains alike with and without soft_margin there"),
        ("{design: exponent, centers: {a: {objective.stabilizer_threshold: 1000}}}", r"or one without any effect"),
        ("{design: leave_one_out, centers: {a: {training.updates: 0}}}", r"cell without-anchor would train just as cell full does"),
        ("{design: leave_one_out, centers: {a: {preset: papr}}}", r"mine.yaml:3: There is no preset 'papr'. Did you mean 'paper'\?"),
        ("{design: leave_one_out, centers: {a: {preset: mt-bench}}}", r"the preset mt-bench has no objective"),
        ("{design: leave_one_out, centers: {a: {data.pairs: 64}}}", r"center a has a data of its own, and cells of one design share .* Set data in `base`"),
        ("{design: leave_one_out, centers: {a: {evaluation.decoding.temperature: 0.5}}}", r"center a has a evaluation of its own"),
        ("{design: sensitivity}", r"ablate.knobs is missing"),
        ("{design: sensitivity, knobs: {}}", r"ablate.knobs is \{\}"),
        ("{design: sensitivity, knobs: {objective.hard_margni: [1.0]}}", r"objective.hard_margni: there is no such setting. Did you mean 'objective.hard_margin'\?"),
        ("{design: sensitivity, knobs: {objective.hard_margin: [-1.0]}}", r"mine.yaml:3: cell hard_margin--1.0: objective.hard_margin is -1.0: must be"),
        ("{design: sensitivity, knobs: {objective.hard_margin: [1.0, 1.0]}}", r"1.0 and 1.0 are equal"),
        ("{design: sensitivity, knobs: {objective.hard_margin: [1.5]}}", r"around base there is no cell but the center itself"),
        ("{design: sensitivity, knobs: {objective.remove: [anchor]}}", r"objective.remove is not one number, word or flag"),
        ("{design: sensitivity, knobs: {data.pairs: [64]}}", r"cell pairs-64 has a data of its own"),
        ("{design: sensitivity, knobs: {objective.margin_weight: [0.3]}, centers: {a: {objective.remove: [soft_margin, hard_margin]}}}",
         r"mine.yaml:3: cell margin_weight-0.3 would train just as cell center does"),
        ("{design: sensitivity, knobs: {objective.stabilizer_exponent: [2.0]}, centers: {a: {objective.stabilizer_strength: 0}}}",
         r"cell stabilizer_exponent-2.0 would train just as cell center does"),
        ("{design: exponent, exponents: [0.5]}", r"cell p-0.5: objective.stabilizer_exponent is 0.5: must be"),
        ("{design: exponent, exponents: [2.5]}", r"mine.yaml:3: around base there is no cell but the center"),
        ("{design: exponent, centers: {a: {objective.remove: [stabilizer]}}}", r"center a has no stabilizer, whose exponent"),
        ("{design: baselines, against: slim}", r"compared with 'slim', which is none of them. Did you mean 'slime'\?"),
        ("{design: baselines, methods: {slime: {}}}", r"ablate.methods is .* at least 2"),
        ("{design: baselines, methods: {slime: {}, other: {}}}", r"cell other would train just as cell slime does"),
        ("{design: baselines, methods: {slime: {}, x: {preset: 3}}}", r"There is no preset '3'"),
        ("{design: baselines, centers: {a: {}, a-b: {training.learning_rate: 1e-4}}, methods: {slime: {}, b-slime: {objective.hard_margin: 1.0}}}",
         r"two have the same label"),
    ],
)  # fmt: skip
def test_a_design_that_has_no_sense_is_refused_with_its_line_and_the_reason(tmp_path, ablate, message):
    with pytest.raises(InputError, match=message) as refused:
        load_experiment(write(tmp_path, ablate))
    assert "mine.yaml:" in str(refused.value)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("arms: {full: {}}\n", r"mine.yaml:4: `ablate` makes the arms of its design itself. Remove `arms`"),
        ("grid: {training.learning_rate: [1e-4, 3e-4]}\n", r"mine.yaml:4: .*Remove `grid`"),
        (
            "base: {evaluation: {judge: none}}\ngoals: {stability: maximize}\n",
            r"mine.yaml:3: the design compares cells by win_rate, which needs a judge",
        ),
    ],
)
def test_what_does_not_go_with_a_design_is_refused(tmp_path, rest, message):
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, "{design: leave_one_out}", rest=rest))


def test_a_removed_component_is_not_searched_and_another_knob_may_be(tmp_path):
    search = "search: {objective.anchor_weight: {uniform: [0.1, 1.0]}}\nbudget: {trials: 2}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\npreset: arithmetic\narms: {{full: {{}}}}\nbase: {{objective: {{remove: [anchor]}}}}\n{search}"
    )
    with pytest.raises(InputError, match=r"mine.yaml:5: objective.anchor_weight makes no difference here"):
        load_experiment(path)
    allowed = "{design: leave_one_out, components: [soft_margin]}"
    assert load_experiment(write(tmp_path, allowed, rest=search)).search is not None
