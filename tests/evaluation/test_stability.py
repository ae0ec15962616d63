"""The measured parts of stability-v1, each on numbers small enough to do by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.evaluation import stability
from slime_ray.evaluation.held_out import HeldOut


def held_out(chosen: list[list[float]], rejected: list[list[float]], entropy: float = 1.0) -> HeldOut:
    return HeldOut(
        chosen=np.concatenate([np.array(pair) for pair in chosen]),
        rejected=np.concatenate([np.array(pair) for pair in rejected]),
        chosen_lengths=np.array([len(pair) for pair in chosen]),
        rejected_lengths=np.array([len(pair) for pair in rejected]),
        entropy=np.full(sum(map(len, chosen)), entropy),
        top_probability=np.full(sum(map(len, chosen)), 0.5),
    )


BEFORE = held_out([[-1.0, -3.0], [-1.0]], [[-1.0, -1.0, -1.0], [-2.0]])


def test_unlearning_counts_what_fell_and_not_what_rose():
    # Means before: -2 and -1. The first falls by 0.5, the second rises by 0.9: (0.5 + 0) / 2.
    after = held_out([[-2.0, -3.0], [-0.1]], [[-1.0] * 3, [-2.0]])
    assert stability.unlearning(BEFORE, after) == pytest.approx(0.25)
    assert stability.unlearning(BEFORE, BEFORE) == 0


def test_collapse_is_the_share_of_tokens_that_fell_more_than_tenfold():
    # ln 10 = 2.3026: one of four rejected tokens falls by 2.31, one by 2.30.
    after = held_out([[-1.0, -3.0], [-1.0]], [[-3.31, -3.30, -1.0], [-2.0]])
    assert stability.rejected_collapse(BEFORE, after) == 0.25


def test_entropy_shift_is_the_same_up_and_down():
    double, half = (held_out([[-1.0]], [[-1.0]], entropy) for entropy in (2.0, 0.5))
    one = held_out([[-1.0]], [[-1.0]], 1.0)
    assert stability.entropy_shift(one, double) == pytest.approx(math.log(2))
    assert stability.entropy_shift(one, half) == pytest.approx(math.log(2))
    assert stability.entropy_shift(one, held_out([[-1.0]], [[-1.0]], 0.0)) == math.inf


def test_entropy_is_a_mean_over_tokens_whatever_the_pair():
    # The pairs have two tokens and one: (1 + 1 + 4) / 3 is twice the entropy before, (1 + 4) / 2 would be 2.5 times.
    after = replace(BEFORE, entropy=np.array([1.0, 1.0, 4.0]))
    assert stability.entropy_shift(BEFORE, after) == pytest.approx(math.log(2))
    assert stability.entropy_shift(after, BEFORE) == pytest.approx(math.log(2))


def test_broken_outputs_count_only_what_was_added():
    assert stability.broken_outputs([True, True, False, False], [True, False, False, False]) == 0.25
    assert stability.broken_outputs([False] * 4, [True] * 4) == 0


def test_length_shift_is_of_log_lengths_and_survives_an_empty_answer():
    # ln(4/2) = ln 2 and ln(1/2) = -ln 2 cancel; ln(2/1) and ln(2/1) do not.
    assert stability.length_shift([4, 1], [2, 2]) == pytest.approx(0)
    assert stability.length_shift([2, 2], [1, 1]) == pytest.approx(math.log(2))
    assert stability.length_shift([0], [1]) == 0


def test_a_spike_is_seen_in_the_loss_and_in_the_gradient_norm_after_the_first_twenty_updates():
    steady = [1.0 + 0.01 * (-1) ** step for step in range(70)]
    assert stability.training_spikes(steady, steady) == 0
    jump = list(steady)
    jump[40] = 2.0
    # One update of the fifty that count.
    assert stability.training_spikes(jump, steady) == pytest.approx(1 / 50)
    assert stability.training_spikes(steady, jump) == pytest.approx(1 / 50)
    early = list(steady)
    early[10] = 9.0
    assert stability.training_spikes(early, steady) == 0
    assert stability.training_spikes(steady[:20], steady[:20]) == 0


def test_pairs_hold_what_unlearning_collapse_and_entropy_shift_are_made_of():
    after = held_out([[-2.0, -3.0], [-0.1]], [[-3.31, -3.30, -1.0], [-2.0]], 0.5)
    rows = stability.pair_rows(BEFORE, after, {"trial_id": "t", "seed": 3})
    assert [(row["trial_id"], row["seed"], row["pair"]) for row in rows] == [("t", 3, 0), ("t", 3, 1)]
    assert [(row["chosen_tokens"], row["rejected_tokens"], row["rejected_collapsed"]) for row in rows] == [
        (2, 3, 1),
        (1, 1, 0),
    ]
    assert [(row["chosen_logp0"], row["chosen_logp"]) for row in rows] == [(-2.0, -2.5), (-1.0, -0.1)]
    assert [row["rejected_logp"] for row in rows] == pytest.approx([-7.61 / 3, -2.0])
    assert [(row["entropy0"], row["entropy"]) for row in rows] == [(1.0, 0.5), (1.0, 0.5)]


@given(st.lists(st.integers(-50, 50), min_size=21, max_size=80), st.integers(-3, 3), st.integers(-100, 100))
def test_spikes_do_not_depend_on_the_scale_or_offset_of_the_loss(losses, power, offset):
    # Powers of two and whole numbers keep the arithmetic exact, so that equality is what is tested.
    moved = [2.0**power * value + 2.0**power * offset for value in losses]
    norms = [1.0] * len(losses)
    assert stability.training_spikes(losses, norms) == stability.training_spikes(moved, norms)


def test_accuracy_counts_a_tie_half():
    pairs = held_out([[-1.0], [-1.0], [-2.0]], [[-2.0], [-1.0], [-1.0]])
    assert pairs.accuracy == 0.5
    assert pairs.margins.tolist() == [1.0, 0.0, -1.0]


def test_held_out_measurements_survive_saving_and_cutting(tmp_path):
    BEFORE.save(tmp_path / "held_out.npz")
    read = HeldOut.load(tmp_path / "held_out.npz")
    assert read.chosen_means.tolist() == [-2.0, -1.0]
    assert read.of([0]).rejected.tolist() == [-1.0, -1.0, -1.0]
