"""Whether trials fit: the arithmetic against an exhaustive search on small clusters, and the sentences."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.config.experiment import Resources
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray.resources import Node, concurrent_trials, waiting_for, why_never


def most(slots: list[int], workers: int, placement: str) -> int:
    """Trials side by side, by trying every way to place one more."""
    ways = {
        "PACK": lambda way: True,
        "SPREAD": lambda way: True,
        "STRICT_PACK": lambda way: sum(count > 0 for count in way) == 1,
        "STRICT_SPREAD": lambda way: max(way) == 1,
    }[placement]
    best = 0
    for way in product(*(range(min(slot, workers) + 1) for slot in slots)):
        if sum(way) == workers and ways(way):
            left = [slot - count for slot, count in zip(slots, way, strict=True)]
            best = max(best, 1 + most(left, workers, placement))
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_as_many_trials_fit_as_can_be_placed(slots, workers, placement):
    nodes = [Node(f"n{index}", cpus=slot) for index, slot in enumerate(slots)]
    wanted = Resources(workers=workers, placement=placement)
    assert concurrent_trials(wanted, nodes) == most(slots, workers, placement)
    assert (why_never(wanted, nodes) is None) == (most(slots, workers, placement) > 0)


@pytest.mark.parametrize(
    ("share", "gpus", "fit"),
    [(0.5, 1, 2), (0.4, 1, 2), (0.4, 2, 4), (0.3, 1, 3), (0.1, 1, 10), (1.0, 3, 3)],
)
def test_a_share_of_a_gpu_is_of_a_single_one(share, gpus, fit):
    wanted = Resources(gpu_per_worker=share, cpu_per_worker=0.5)
    assert Node("n", cpus=64, gpus=gpus).slots(wanted) == fit


@pytest.mark.parametrize(
    ("wanted", "nodes", "words"),
    [
        ({"cpu_per_worker": 9.0}, [Node("n", 8, 2), Node("m", 8, 1)], "the largest node has 8 CPU and 2 GPU"),
        ({"workers": 3}, [Node("n", 2)], "have room for 2"),
        ({"workers": 3, "placement": "STRICT_PACK"}, [Node("n", 2), Node("m", 2)], "more than 2"),
        ({"workers": 3, "placement": "STRICT_SPREAD"}, [Node("n", 2), Node("m", 2)], "only 2 nodes"),
        ({}, [], "0 CPU"),
        ({"workers": 2, "gpu_per_worker": 0.5}, [Node("n", 8, 2)], "gpu_per_worker: 1, or workers: 1"),
    ],
)
def test_a_shape_that_can_never_be_placed_is_told_with_the_arithmetic(wanted, nodes, words):
    sentence = why_never(Resources(**wanted), nodes)
    assert sentence is not None
    assert words in sentence


@pytest.mark.parametrize(("share", "workers"), [(2.0, 2), (1.5, 2), (8.0, 8)])
def test_a_worker_of_several_gpus_is_refused_in_one_sentence(tmp_path, share, workers):
    path = tmp_path / "wide.yaml"
    path.write_text(f"name: x\npreset: arithmetic\narms: {{slime: {{}}}}\nresources:\n  gpu_per_worker: {share}\n")
    with pytest.raises(InputError) as refused:
        load_experiment(path)
    assert str(refused.value) == (
        f"{path}:5: resources.gpu_per_worker: each worker trains on one GPU, not {share:g}. Give 1, and "
        f"resources.workers: {workers} for a trial on so many."
    )


def test_nodes_that_an_autoscaler_may_add_count():
    assert why_never(Resources(workers=3, gpu_per_worker=1.0), [Node("head", 0), Node("spot", 8, 1, count=3)]) is None


def test_what_a_trial_waits_for_is_said_with_what_is_free():
    sentence = waiting_for(Resources(workers=2, gpu_per_worker=1.0), [Node("a", 3, 1), Node("b", 0)])
    assert "2 workers of 1 CPU and 1 GPU" in sentence
    assert "3 CPU and 1 GPU on a" in sentence


@pytest.mark.parametrize(
    ("asked", "free", "end"),
    [
        ({}, [Node("a", 0)], "free now: 0 CPU on a"),
        ({}, [], "free now: nothing"),
        ({}, [Node("a", 1)], "free now: 1 CPU on a, which is enough: Ray has not started it yet"),
        (
            {"cpu_per_worker": 2},
            [Node("a", 1), Node("b", 1)],
            "1 CPU on a, 1 CPU on b, which is enough in all, but in parts that hold 0 of 1 workers",
        ),
        (
            {"workers": 2, "placement": "STRICT_PACK"},
            [Node("a", 1), Node("b", 1)],
            "1 CPU on a, 1 CPU on b, which is enough, but not as placement STRICT_PACK asks",
        ),
        ({"workers": 2, "gpu_per_worker": 1.0}, [Node("a", 9, 1)], "free now: 9 CPU and 1 GPU on a"),
    ],
)
def test_what_is_free_never_reads_as_a_contradiction(asked, free, end):
    assert waiting_for(Resources(**asked), free).endswith(end)
