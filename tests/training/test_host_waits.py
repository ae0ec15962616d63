"""What a micro-batch asks of the host: a GPU that has to answer is a GPU that waits.

The real trainer's step runs on meta tensors. They hold no numbers, so whatever would read one back raises: `item`,
`tolist`, a truth value, `nonzero`, a mask as an index, `repeat_interleave` without its output's size.
"""

import collections
import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, TrainingArguments

from slime_ray.config.model import Lora
from slime_ray.config.settings import Schedule
from slime_ray.model import attention
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.objectives import DpoObjective, SlimeObjective
from slime_ray.training.trainer import GO_ON, PreferenceTrainer

from .rank_worker import draw_pairs

CONFIG = Gemma3TextConfig(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
)
META = torch.device("meta")


class Copies(TorchFunctionMode):
    """Counts tensors that go from the host to the device: those that were made on the host, by what made them."""

    def __init__(self):
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        made_there = name in ("new_tensor", "tensor", "as_tensor") and torch.is_tensor(found) and found.is_meta
        moved = name in ("to", "cuda", "copy_") and torch.is_tensor(found) and found.is_meta and not args[0].is_meta
        if made_there or moved:
            self.counts[name] += 1
        return found


@pytest.mark.skipif(attention.varlen_kernel() is None, reason="needs torch 2.12, as varlen does")
@pytest.mark.parametrize("train_head", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(
    ("objective", "copies"),
    # Ids, positions, places and targets; keys and the bounds of the sequences; lengths of either side.
    [(SlimeObjective(), 9), (DpoObjective(), 9 + 2)],
    ids=["slime", "dpo with its reference"],
)
def test_a_micro_batch_never_waits_for_the_device(tmp_path, monkeypatch, objective, copies, train_head):
    lm = add_lora(AutoModelForCausalLM.from_config(CONFIG), Lora(rank=2, alpha=4, train_head=train_head))
    policy = Policy(lm, kernel="varlen", chunk_logits=200)
    policy.shares_prompts = True
    trainer = PreferenceTrainer(
        policy=policy,
        objective=objective,
        pairs=draw_pairs(12),
        schedule=Schedule(learning_rate=1e-3, updates=1),
        pairs_per_update=12,
        row_tokens=60,
        seed=0,
        scratch=tmp_path,
        after_update=lambda step, metrics: GO_ON,
    )
    update = next(iter(trainer.loader))
    assert len(update.batches) > 2
    policy.to(META)
    monkeypatch.setattr(TrainingArguments, "device", META)
    # Of meta tensors autocast knows nothing.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *settings, **options: contextlib.nullcontext())
    with Copies() as watched:
        loss = trainer.training_step(policy, {"update": update})
    assert loss.is_meta
    assert sum(watched.counts.values()) == copies * len(update.batches), watched.counts
    assert all(parameter.grad is not None for parameter in policy.parameters() if parameter.requires_grad)
