"""The estimate of a step on an H100 stays what it was, and above what its arithmetic alone takes."""

import pytest

from benchmarks.roofline import PRODUCTS, count_steps
from slime_ray.model.flops import Lengths


@pytest.mark.slow
def test_a_step_of_gemma3_4b_is_estimated_to_reach_two_fifths_of_an_h100():
    frozen, trained, plain = count_steps([Lengths(180, 250, 250)] * 12, say=lambda line: None)
    assert frozen.seconds <= 0.300
    assert frozen.pairs / frozen.seconds >= 34
    assert trained.pairs / trained.seconds >= 29
    assert min(step.flops / step.seconds / 989e12 for step in (frozen, trained)) >= 0.42
    # 126.50 TFLOP of products by hand, and nothing of transformers' own norms saved.
    products = sum(value for part, value in frozen.milliseconds.items() if "products" in part)
    assert 126.5e15 / PRODUCTS <= products <= 1.25 * 126.5e15 / PRODUCTS
    assert plain.milliseconds["norms"] > 3 * frozen.milliseconds["norms"]
    assert plain.seconds > 1.5 * frozen.seconds
