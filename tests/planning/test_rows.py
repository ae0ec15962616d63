"""The tokens of a row follow from the memory of made-up cards, and a plan and a trial agree on them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from slime_ray.errors import InputError
from slime_ray.model.flops import Lengths
from slime_ray.model.footprint import FRAGMENTS, gpu_row, peak_memory
from slime_ray.planning.estimate import Planner
from slime_ray.training.policies import gpu_row_budget

from .conftest import ON_H100, TINY

GIB = 2**30
PAPER = "name: paper\npreset: gemma3-4b/paper\narms: {slime: {}}\ngoals: {stability: maximize}\nresources: {gpu_per_worker: 1}\n"


def test_a_row_is_the_largest_that_fits_nine_tenths_of_a_card(load):
    """Of a tiny model, whose answers take less than its training, so that the peak is that of the row."""
    settings = load(f"{TINY}arms: {{slime: {{}}}}\n").settings

    def peak(row: int) -> float:
        pair = Lengths(180, 250, 250)
        return peak_memory(settings, gpu=True, workers=1, sharded=False, row=row, pair=pair, prompt=1).peak

    for least, row in ((1000, 768), (2500, 2304)):
        assert gpu_row(settings, peak(least) / 0.9) == row
        assert peak(row) <= peak(least)
    assert gpu_row(settings, 4 * peak(8192)) == 8192


def test_a_longer_limit_of_tokens_raises_the_most_and_a_given_row_stays(load):
    settings = load(f"{TINY}arms: {{slime: {{}}}}\n").settings
    long, given = (
        settings.model_copy(update={"data": settings.data.model_copy(update=changes)})
        for changes in ({"max_tokens": 8192}, {"row_tokens": 4096})
    )
    assert gpu_row(long, 500 * GIB) == 16384
    assert gpu_row(given, 500 * GIB) == 4096


def test_a_card_without_room_for_one_pair_is_refused_with_its_size_and_a_setting(load, monkeypatch):
    settings = load(PAPER).settings
    weights = 4.0 * 3.88e9 / 2 + 4 * 4 * 0.7e9
    assert gpu_row(settings, weights / FRAGMENTS) is None
    card = SimpleNamespace(total_memory=48 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    state = torch.get_rng_state()
    assert gpu_row_budget(settings, sharded=False) == gpu_row(settings, 48 * GIB)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match=r"one pair of 20000 tokens takes more than the 48\.0 GiB .* data\.max_tokens"):
        gpu_row_budget(settings, sharded=False, longest=20_000)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.25)
    with pytest.raises(
        InputError, match=r"smallest row takes more than the 12\.0 GiB .*\.gradient_checkpointing: true"
    ):
        gpu_row_budget(settings, sharded=False)


def test_a_plan_says_the_row_and_why(load):
    one = replace(ON_H100, trials=1)
    whole = Planner(load(PAPER)).plan(one)
    assert (whole.row_tokens, whole.row_reason.split(" and ")[1]) == (8192, "they fit 90% of 79.0 GiB")
    half = Planner(load(PAPER, resources__gpu_per_worker=0.6)).plan(one)
    assert half.row_tokens == gpu_row(load(PAPER).settings, 0.6 * 79 * GIB) < 8192
    assert f"{half.row_tokens:,} tokens, since data.row_tokens is null and more would not fit 90% of" in half.text()
    assert not half.refusals
    given = Planner(load(PAPER, data__row_tokens=1024)).plan(one)
    assert "1,024 tokens, as data.row_tokens says" in given.text()
