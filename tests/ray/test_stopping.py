"""ASHA: which trials go on at a rung, worked out by hand."""

from slime_ray.experiment import EarlyStopping
from slime_ray.on_ray.stopping import Asha


def told(value: float | None, step: int, updates: int = 100) -> dict:
    return {"preference_accuracy": value, "step": step, "updates": updates}


def decide(asha: Asha, trial: str, value: float | None, step: int) -> str | None:
    order = asha.decide(trial, told(value, step))
    return order.reason if order else None


def test_rungs_grow_by_the_reduction_and_end_before_the_end():
    assert Asha(EarlyStopping(first=0.1, reduction=3)).rungs == [0.1, 0.30000000000000004, 0.9]


def test_only_the_best_share_of_those_at_a_rung_goes_on():
    asha = Asha(EarlyStopping(first=0.2, reduction=3))
    # Too few at the rung to tell, whatever they reached.
    assert decide(asha, "a", 0.9, 20) is None
    assert decide(asha, "b", 0.1, 20) is None
    # Three: one of them goes on, and a is it.
    reason = decide(asha, "c", 0.8, 20)
    assert reason is not None
    assert "0.8" in reason
    assert "better in 1 of 2 other trials" in reason
    assert decide(asha, "d", 0.95, 20) is None
    # Six: two go on.
    assert decide(asha, "e", 0.2, 25) is not None
    assert decide(asha, "f", 0.93, 20) is None


def test_a_trial_is_judged_once_at_a_rung_and_not_before_it():
    asha = Asha(EarlyStopping(first=0.5, reduction=2))
    for trial in "ab":
        assert decide(asha, trial, 0.9, 50) is None
    assert decide(asha, "c", 0.1, 49) is None
    assert decide(asha, "c", 0.1, 50) is not None
    # It started again after an interruption, and passes the rung again.
    assert decide(asha, "c", 0.1, 50) is None


def test_a_trial_that_says_no_number_goes_on():
    asha = Asha(EarlyStopping())
    assert asha.decide("a", {"doing": "making sft"}) is None
    assert decide(asha, "a", None, 100) is None
