"""The formulas against torch's own count of the operations that run, and against masks counted out."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slime_ray.bench.cases import build_case
from slime_ray.bench.lengths import draw_workload, find_source
from slime_ray.bench.options import RECIPES, Shape
from slime_ray.bench.recipes import Authors, Padded
from slime_ray.bench.stepper import Stepper
from slime_ray.config.model import Lora, Model
from slime_ray.model.flops import Layout, Lengths, attention_flops, forward_flops, linear_flops, sizes_of, step_flops
from slime_ray.model.footprint import footprint

SHAPE = Shape(
    hidden=32, layers=3, heads=4, key_heads=2, head_size=8, intermediate=48, sliding_to_full=2, rank=4,
    vocabulary=97, shrink=1, dtype="float32",
)  # fmt: skip
MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_}


def _product(added, left, right, **_) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.fixture(scope="module")
def case():
    return build_case(SHAPE, vocabulary=97, shrink=1, dtype=torch.float32, device=torch.device("cpu"), seed=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_products_with_weights_are_those_that_run(case, recipe):
    pairs = draw_workload(find_source("ultrafeedback"), pairs=3, steps=1, vocabulary=97, shrink=20, seed=1).drawn[0]
    stepper = Stepper(recipe, case)
    step = stepper.collate(pairs, len(pairs))
    # torch counts every matrix product but the one that adds in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product}) as counter:
        stepper.gradients(step)
    stepper.release()
    counted = counter.get_flop_counts()["Global"]
    ran = sum(flops for operation, flops in counted.items() if operation in MATRIX_PRODUCTS)
    (layout,) = stepper.layouts(pairs, len(pairs))
    by_formula = linear_flops(sizes_of(case.lm), layout, head_trained=stepper.trains_head)
    if recipe == "chunked":
        # Its logits are computed again, which no formula counts.
        ran -= 2 * layout.logits * SHAPE.hidden * 97
    assert by_formula == pytest.approx(ran, rel=0.03 if recipe.startswith(("packed", "unshared")) else 0)
    assert stepper.flops([layout]) > ran


def test_attention_counts_what_masks_leave():
    """Two pairs of (prompt, chosen, rejected), each query's keys counted one by one."""
    lengths = [Lengths(3, 4, 2), Lengths(5, 1, 6)]
    for window in (None, 1, 3):
        seen = 0
        for prompt, chosen, rejected in lengths:
            # Positions of the prompt, of chosen and of rejected; a query sees `position + 1` keys, or the window.
            for position in [*range(prompt + chosen), *range(prompt, prompt + rejected)]:
                seen += min(position + 1, window or position + 1)
        assert Layout.of_packed(lengths).query_key_pairs(window) == seen
    # Rows of 3 + 4 and of 5 + 6 tokens, two each, padded to 11.
    assert Padded.layout(lengths).query_key_pairs(None) == 4 * 11 * 12 // 2
    # The longest prompt of 5 beside the longest completion of 6.
    assert Authors.layout(lengths) == Layout(positions=44, real=29, logits=44, runs=((0, 11),) * 4, reference=True)


def test_attention_flops_by_hand(case):
    """One pair of 2 + 1 + 1 tokens: 6 pairs for prompt and chosen, 3 for rejected, in 3 layers of 4 heads of 8."""
    assert attention_flops(sizes_of(case.lm), Layout.of_packed([Lengths(2, 1, 1)])) == 12 * 32 * 9 * 3


def test_a_forward_pass_is_what_runs_without_gradients(case):
    pairs = draw_workload(find_source("ultrafeedback"), pairs=3, steps=1, vocabulary=97, shrink=20, seed=1).drawn[0]
    stepper = Stepper("packed", case)
    (micro,) = stepper.collate(pairs, len(pairs)).micros
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product})
    with torch.no_grad(), counter:
        stepper.recipe.policy(micro)
    stepper.release()
    ran = sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if operation in MATRIX_PRODUCTS)
    sizes, layout = sizes_of(case.lm), Layout.of_packed([pair.lengths for pair in pairs])
    by_formula = forward_flops(sizes, layout) - attention_flops(sizes, layout) // 3
    assert by_formula == pytest.approx(ran, rel=0.03)


def test_a_pair_of_the_papers_model_costs_what_was_reckoned_by_hand():
    """Gemma 3 4B, rank 64, head trained, 180 + 250 + 250 tokens: 11.35e12.

    N = 34 * (2560 * 2048 * 2 + 2560 * 1024 * 2 + 3 * 2560 * 10240) = 3,208,642,560; A = 34 * 64 * (2 * 4608 + 2 * 3584 +
    3 * 12800) = 119,209,984; the head 6 * 500 * 2560 * 262208 = 2.0138e12; the body 680 * 1.35498e10 = 9.2139e12, less
    what nothing needs of the first layer; attention 12 * 2048 * 34 * 169,040 = 0.1412e12.
    """
    lora = Lora(rank=64, alpha=128.0, train_head=True)
    sizes = footprint(Model(source="google/gemma-3-4b-pt", dtype="bfloat16", lora=lora)).sizes
    assert (sizes.body, sizes.adapters) == (3_208_642_560, 119_209_984)
    layout = Layout.of_packed([Lengths(180, 250, 250)])
    # Of both completions' queries: 430 * 431 / 2, twice, less the prompt's own that are counted once.
    assert layout.query_key_pairs(None) == 2 * (430 * 431 // 2) - 180 * 181 // 2
    flops = step_flops(sizes, layout, head_trained=True)
    first = 2 * 680 * (2560 * 2048 + 2 * 2560 * 1024 + 3 * 64 * 2560)
    hand = 680 * (4 * sizes.body + 6 * sizes.adapters) - first + 6 * 500 * 2560 * 262208
    hand += 12 * 2048 * 34 * layout.query_key_pairs(None)
    assert flops == hand
    assert flops == pytest.approx(11.4e12, rel=0.01)
