"""Whether trials fit, by the arithmetic and by an exhaustive search on small clusters; and what a sweep has spent."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.config.experiment import Experiment, Resources
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.judge import JudgeBudget
from slime_ray.errors import InputError
from slime_ray.evaluation.verdict_cache import Reply, Verdicts
from slime_ray.on_ray.resources import BudgetMeter, Node, concurrent_trials, earlier_gpu_hours, waiting_for, why_never
from slime_ray.training import attempts
from slime_ray.training.attempts import Attempt


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


@settings(max_examples=60)
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


TEXT = """\
name: spending
preset: arithmetic
base:
  evaluation:
    judge: {name: llm, model: some-model, template: arena-hard, api_key_env: null, prices: {input: 2.0, output: 10.0}}
arms: {slime: {}}
resources: {workers: 2, gpu_per_worker: 1}
"""


def spending(folder: Path, budget: str) -> Experiment:
    path = folder / "spending.yaml"
    path.write_text(TEXT + f"budget: {budget}\n")
    return load_experiment(path)


def meter(folder: Path, budget: str) -> BudgetMeter:
    return BudgetMeter(spending(folder, budget), run=folder, verdicts=Verdicts(folder / ".verdicts", run="it"), now=0.0)


def ask(folder: Path, judge: str, times: int) -> None:
    """Requests of 100,000 tokens in and 10,000 out each: 0.20 and 0.10."""
    verdicts = Verdicts(folder / ".verdicts", run="it")
    for number in range(times):
        request = verdicts.begin(judge, f"{number}", budget=JudgeBudget(), prices=None)
        verdicts.finish(request, Reply("[[A>B]]", "some-model", 100_000, 10_000), "A>B")


def test_gpu_hours_are_those_of_all_workers_of_the_trials_at_work(tmp_path):
    spent = meter(tmp_path, "{gpu_hours: 3, price_per_gpu_hour: 2.5}")
    spent.update([], 600.0)
    assert (spent.spent.gpu_hours, spent.over()) == (0.0, None)
    # Two trials with two GPUs each, for half an hour.
    spent.update(["a", "b"], 600.0 + 1800)
    assert spent.spent.gpu_hours == pytest.approx(2.0)
    assert spent.spent.cost == pytest.approx(5.0)
    assert spent.over() is None
    spent.update(["a"], 600.0 + 1800 + 1800)
    assert spent.over() == "gpu_hours"
    assert spent.sentence("gpu_hours") == "budget.gpu_hours 3 is spent (3)"
    assert str(spent.spent) == "spent: 1.17 hours, 3.00 GPU-hours, cost 7.50"


def test_attempts_of_earlier_starts_count_with_what_they_held(tmp_path):
    resources = spending(tmp_path, "{gpu_hours: 3}").resources
    folder = tmp_path / "trials" / "arm-slime-s0"
    made = [Attempt(0.0, 900.0, 1800.0, "h", 1, 2, "lost"), Attempt(5000.0, 5000.0, 5900.0, "h", 1, 2, "paused")]
    folder.mkdir(parents=True)
    attempts._write(folder, made)
    assert earlier_gpu_hours(tmp_path, resources) == pytest.approx(2 * (1800 + 900) / 3600)
    assert meter(tmp_path, "{gpu_hours: 1.5}").over() == "gpu_hours"


def test_calls_of_the_judge_are_counted_over_the_run_and_cost_what_its_prices_say(tmp_path):
    judge = spending(tmp_path, "{judge_calls: 3}").settings.judge_identity
    spent = meter(tmp_path, "{judge_calls: 3, cost: 1}")
    ask(tmp_path, judge, 2)
    spent.update([], 10.0)
    assert (spent.spent.judge_calls, spent.over()) == (2, None)
    ask(tmp_path, judge, 3)
    spent.update([], 12.0)
    # It is looked at every five seconds.
    assert spent.spent.judge_calls == 2
    spent.update([], 20.0)
    assert spent.spent.judge_calls == 5
    assert spent.spent.cost == pytest.approx(5 * 0.3)
    assert spent.over() == "judge_calls"


def test_what_is_spent_first_ends_the_sweep(tmp_path):
    budget = "{hours: 2, gpu_hours: 100, cost: 6, price_per_gpu_hour: 1}"
    cheap, dear = meter(tmp_path, budget), meter(tmp_path, budget)
    cheap.update(["a"], 7200.0)
    assert cheap.over() == "hours"
    assert cheap.sentence("hours") == "its time, budget.hours 2, is spent"
    # Four trials hold eight GPUs: 6 GPU-hours after 45 minutes.
    dear.update(["a", "b", "c", "d"], 2700.0)
    assert dear.over() == "cost"
