"""Policies on this process's device: placed and asked for a few log-probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from slime_ray.config.settings import Settings
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.model.footprint import gpu_row
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import find_adapted
from slime_ray.model.memory import free_memory
from slime_ray.model.sharding import is_sharded, shard
from slime_ray.model.train_mode import configured_dropout
from slime_ray.world import World

SMALLER = (
    "Lower data.max_tokens, set training.gradient_checkpointing: true, lower model.lora.rank, or give it more memory."
)
"""Ways out where a GPU is too small."""


def to_device(policy: Policy, *, sharded: bool) -> Policy:
    """The policy on this process's device, whole or in parts, once what has ended there is gone."""
    free_memory()
    if sharded and World.current().size > 1:
        return shard(policy)
    return policy.cuda() if torch.cuda.is_available() else policy


def row_budget(settings: Settings, policy: Policy) -> int:
    """Tokens of one packed row on the policy's device. Raises InputError where a GPU takes none."""
    if policy.device.type != "cuda":
        return settings.data.row_budget(gpu=False)
    return gpu_row_budget(settings, sharded=is_sharded(policy))


def gpu_row_budget(settings: Settings, *, sharded: bool, longest: int = 0) -> int:
    """Tokens of one packed row on this process's GPU, by its memory.

    settings: of the trial, or with the model of another stage. longest: tokens of the longest pair. Raises InputError
    where that, or any row, needs more memory than there is.
    """
    memory = torch.cuda.get_device_properties().total_memory * torch.cuda.get_per_process_memory_fraction()
    try:
        # The trial's own draws come after it.
        with torch.random.fork_rng([]):
            row = gpu_row(settings, memory, workers=World.current().size, sharded=sharded, row=longest)
    except InputError:
        # Its footprint is not known; rows that do not fit are halved then.
        return max(longest, settings.data.row_budget(gpu=True))
    if row is None:
        what = f"one pair of {longest} tokens" if longest else "the smallest row"
        raise InputError(
            f"Training with {what} takes more than the {memory / 2**30:.1f} GiB that a worker has of this GPU, by the "
            f"estimate. {SMALLER}"
        )
    return row


@torch.no_grad()
def chosen_logps(policy: Policy, pairs: Sequence[TokenPair]) -> np.ndarray:
    """(tokens,) log-probabilities (nats) of the chosen completions of a few pairs.

    All ranks of a sharded policy call it.
    """
    policy.eval()
    shared = policy.shares_prompts
    rows = (pack([pair], shared_prompt=shared).to(policy.device) for pair in pairs)
    logps: np.ndarray = torch.cat([policy(row).chosen for row in rows]).double().cpu().numpy()
    return logps


def model_facts(settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """What a manifest keeps of how the checkpoint is trained: where adapters are, and its own dropout.

    No weights are read. Raises InputError for adapters that the model cannot have.
    """
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    stages = {"model.lora": settings.model.lora, "sft.lora": settings.sft_model.lora}
    if settings.model.lora == settings.sft_model.lora:
        del stages["sft.lora"]
    return {
        "adapters": {stage: find_adapted(lm, lora).facts() for stage, lora in stages.items() if lora},
        "dropout": configured_dropout(config.get_text_config()),
        "dropout_on": settings.model.dropout,
    }
