"""What a sweep has spent, from attempts and from a clock of the test's own, and which part of the budget is spent first."""

from pathlib import Path

import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.judge import JudgeBudget
from slime_ray.evaluation.verdict_cache import Reply, Verdicts
from slime_ray.on_ray.resources import Meter, held_before
from slime_ray.training import attempts
from slime_ray.training.attempts import Attempt

TEXT = """\
name: spending
preset: arithmetic
base:
  evaluation:
    judge: {name: llm, model: some-model, template: arena-hard, api_key_env: null, prices: {input: 2.0, output: 10.0}}
arms: {slime: {}}
resources: {workers: 2, gpu_per_worker: 1}
"""


def experiment(folder: Path, budget: str) -> Experiment:
    path = folder / "spending.yaml"
    path.write_text(TEXT + f"budget: {budget}\n")
    return load_experiment(path)


def meter(folder: Path, budget: str) -> Meter:
    return Meter(experiment(folder, budget), run=folder, verdicts=Verdicts(folder / ".verdicts", run="it"), now=0.0)


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
    resources = experiment(tmp_path, "{gpu_hours: 3}").resources
    folder = tmp_path / "trials" / "arm-slime-s0"
    made = [Attempt(0.0, 900.0, 1800.0, "h", 1, 2, "lost"), Attempt(5000.0, 5000.0, 5900.0, "h", 1, 2, "paused")]
    folder.mkdir(parents=True)
    attempts._write(folder, made)
    assert held_before(tmp_path, resources) == pytest.approx(2 * (1800 + 900) / 3600)
    assert meter(tmp_path, "{gpu_hours: 1.5}").over() == "gpu_hours"


def test_calls_of_the_judge_are_counted_over_the_run_and_cost_what_its_prices_say(tmp_path):
    judge = experiment(tmp_path, "{judge_calls: 3}").settings.judge_identity
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
