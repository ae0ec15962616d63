"""What a process still holds on its GPU from one trial to the next. Counted on CPUs, where cycles are the same."""

import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from slime_ray.config.experiment import arm_trials
from slime_ray.runs.store import RunStore
from slime_ray.training import policies, sft, worker
from slime_ray.training.worker import run_trial

from .small_trials import nothing


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> Iterator["weakref.WeakSet[torch.optim.Optimizer]"]:
    """The optimizers that are alive, while only the product collects garbage."""
    alive: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
    init = torch.optim.Optimizer.__init__

    def made(self: torch.optim.Optimizer, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        alive.add(self)

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", made)
    gc.disable()
    yield alive
    gc.enable()


def test_a_trial_has_gone_before_the_next_model_comes_and_its_moments_before_answers(
    experiment, tmp_path, monkeypatch, optimizers
):
    """The SFT stage, which the first trial makes, too."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    placed, answering = [], []
    free, answer, compare = policies.free_memory, worker.answer_prompts, sft.chosen_logps

    def freed() -> None:
        free()
        placed.append((len(alive), len(optimizers)))

    def held(policy: Any) -> tuple[int, int]:
        return sum(len(one.state) for one in optimizers), sum(one.grad is not None for one in policy.parameters())

    def make_policy(*arguments: Any) -> Any:
        alive.add(policy := worker_make(*arguments))
        return policy

    def answer_prompts(trial: Any, stages: Any, policy: Any, report: Any) -> Any:
        answering.append(held(policy))
        return answer(trial, stages, policy, report)

    def chosen_logps(policy: Any, pairs: Any) -> Any:
        answering.append(held(policy))
        return compare(policy, pairs)

    worker_make = worker.make_policy
    monkeypatch.setattr(policies, "free_memory", freed)
    monkeypatch.setattr(worker, "make_policy", make_policy)
    monkeypatch.setattr(worker, "answer_prompts", answer_prompts)
    monkeypatch.setattr(sft, "chosen_logps", chosen_logps)
    for trial in arm_trials(experiment):
        run_trial(trial, run=tmp_path / "run", storage=RunStore(tmp_path), report=nothing)
    # Each trial's own policy is made when its place is freed.
    assert max(policies_alive for policies_alive, _ in placed) == 1
    assert max(optimizers_alive for _, optimizers_alive in placed) == 0
    assert len(answering) > 2
    assert set(answering) == {(0, 0)}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_memory_comes_in_segments_that_grow_unless_the_user_says_otherwise(monkeypatch, own, expected):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    worker.reset_process(seed=0, threads=1)
    assert {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")} == expected
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


@pytest.mark.parametrize(("share", "kept_to"), [(0.25, [0.25]), (1.0, []), (0.0, [])])
def test_a_process_with_a_share_of_a_gpu_keeps_to_that_share_of_its_memory(monkeypatch, share, kept_to):
    set_to: list[float] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    worker.start_gpu(share)
    assert set_to == kept_to
