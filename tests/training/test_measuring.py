"""Which search trials are judged to the end: decided by hand on small numbers."""

import pytest

from slime_ray.training.measuring import beaten_by


def row(win_rate, prompts=256, stability=0.5, phase="search", trial_id="search-0001", status="completed"):
    return locals()


# At 64 prompts and a rate of 0.4 the standard error is 0.061, at 256 and 0.6 it is 0.031: together 0.0686, times 1.96
# is 0.134.
@pytest.mark.parametrize(
    ("other", "beaten"),
    [
        (row(0.54), True),
        (row(0.53), False),
        (row(0.54, stability=0.49), False),
        (row(0.54, phase="arm"), False),
        (row(None), False),
        (row(0.9, prompts=0), False),
        (row(0.9, status="stopped"), False),
    ],
    ids=["beyond", "within", "less-stable", "no-search-trial", "not-judged", "no-prompts", "stopped-early"],
)
def test_a_trial_is_beaten_only_by_what_is_as_stable_and_clearly_wins_more(other, beaten):
    assert (beaten_by(0.4, 64, 0.5, [row(0.3), other]) is not None) == beaten


def test_rates_at_the_ends_are_not_taken_for_certain():
    assert beaten_by(0.0, 4, 0.0, [row(0.2, prompts=16)]) is None
    assert beaten_by(0.0, 64, 0.0, [row(0.9)]) == "search-0001"
