"""What a process still holds on its GPU from one trial to the next. Counted on CPUs, where cycles are the same."""

import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.data.packing import Rows
from slime_ray.model.logprobs import Policy
from slime_ray.runs.store import RunStore
from slime_ray.training import policies, sft, worker
from slime_ray.training.outcome import OutOfMemory
from slime_ray.training.trainer import PreferenceTrainer
from slime_ray.training.worker import run_trial

from .small_trials import changed, computed, nothing


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

    def answer_prompts(trial: Any, stages: Any, policy: Any, report: Any, **options: Any) -> Any:
        answering.append(held(policy))
        return answer(trial, stages, policy, report, **options)

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


def rows_of(trial: Trial, tokens: int) -> Trial:
    return changed(trial, {"data.max_tokens": 64, "data.row_tokens": tokens})


class SmallDevice:
    """Raises what torch raises where a row has too many tokens for it, but for the first so many of training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, after: int = 0):
        self.rows: list[int] = []
        self.refused: set[bool] = set()
        forward = Policy.forward

        def small(policy: Policy, rows: Rows, **how: Any) -> Any:
            training = torch.is_grad_enabled()
            self.rows += [rows.real_tokens] * training
            if rows.real_tokens > tokens and (not training or len(self.rows) > after):
                self.refused.add(training)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(policy, rows, **how)

        monkeypatch.setattr(Policy, "forward", small)


def test_memory_that_runs_out_halves_the_rows_and_changes_no_result(experiment, storage, tmp_path, monkeypatch):
    """It runs out within the first update, whose first row has left gradients, sums and other random numbers."""
    trial = arm_trials(experiment)[0]
    told: list[str] = []
    whole = run_trial(rows_of(trial, 128), run=tmp_path / "small", storage=storage, report=nothing)
    with monkeypatch.context() as patch:
        device = SmallDevice(patch, 128, after=1)
        row = run_trial(
            rows_of(trial, 256), run=tmp_path / "halved", storage=storage,
            report=lambda report: told.append(report.get("notice", "")),
        )  # fmt: skip
    assert [tokens > 128 for tokens in device.rows].count(True) == 2
    assert device.refused == {True, False}
    assert (row["row_tokens"], whole["row_tokens"], row["status"], row["attempts"]) == (128, 128, "completed", 1)
    assert [notice.partition(":")[0] for notice in told if notice] == ["Memory ran out with rows of 256 tokens"]
    halved, small = (computed(tmp_path / name, trial) for name in ("halved", "small"))
    assert halved[1]["value"].tolist() == pytest.approx(small[1]["value"].tolist(), rel=1e-4, abs=1e-5)
    assert halved[1].drop(columns="value").equals(small[1].drop(columns="value"))
    assert halved[3]["chosen_logp"].tolist() == pytest.approx(small[3]["chosen_logp"].tolist(), rel=1e-4, abs=1e-5)


def test_a_device_too_small_for_one_pair_says_what_to_set(experiment, storage, tmp_path, monkeypatch):
    rows: list[int] = []

    def full(trainer: Any, model: Any, batch: Any, counts: Any) -> Any:
        rows.append(batch.rows.counts["pairs"])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PreferenceTrainer, "_loss", full)
    with pytest.raises(OutOfMemory, match=r"with one pair of \d+ tokens in a row: lower data.max_tokens, set training"):
        run_trial(arm_trials(experiment)[0], run=tmp_path, storage=storage, report=nothing)
    assert (rows[0], rows[-1]) == (16, 1)


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
