"""Packed rows give the numbers of every sequence run alone, in float64, however a step is divided."""

import pytest

from .exactness import MODELS, compare, double_model, random_pairs


@pytest.mark.parametrize("architecture", MODELS)
def test_log_probabilities_and_gradients_equal_those_of_each_sequence_alone(architecture):
    checks = compare(double_model(MODELS[architecture](), seed=0), random_pairs(8, seed=0))
    assert [check for check in checks if not check.passed] == []
