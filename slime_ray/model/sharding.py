"""Fully sharded policies (FSDP2): every rank holds a part of each parameter, and gathers a layer while it computes."""

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from slime_ray.model.decoder import decoder_of
from slime_ray.model.logprobs import Policy


def shard(policy: Policy) -> Policy:
    """Divide a policy's parameters, layer by layer, then the rest, among the process group's ranks, in place.

    Every rank has to hold the same weights, and from then on to make the same forward passes.
    """
    for layer in decoder_of(policy.causal_lm).layers:
        fully_shard(layer)
    fully_shard(policy)
    for method in ("hidden", "generate", "own_logits"):
        register_fsdp_forward_method(policy, method)
    # Trainer then neither wraps nor moves it. The name is transformers', for models that it shards itself.
    setattr(policy, "is_distributed_loading_by_transformers", True)  # noqa: B010
    return policy


def is_sharded(policy: nn.Module) -> bool:
    """Tell whether `shard` was applied."""
    return isinstance(policy, FSDPModule)


def whole_weights(policy: Policy, *, trained_only: bool) -> dict[str, torch.Tensor]:
    """Gather a sharded policy's parameters by name on rank 0, whole and on the CPU. Every rank calls it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only, strict=False)
    weights: dict[str, Any] = get_model_state_dict(policy, options=options)
    return {name.removeprefix("lm."): weight for name, weight in weights.items()}
