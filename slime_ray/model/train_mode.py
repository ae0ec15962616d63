"""How a model is while it is trained: its own dropout off, and layers computed again in the backward pass."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from slime_ray.errors import InputError

NOT_OF_THE_DECODER = ("classif", "summary", "seq_")
"""Prefixes of dropout in a configuration that belongs to other heads than the language model's."""


def configured_dropout(config: Any) -> dict[str, float]:
    """List what a configuration draws at random in training, by its names: dropout, dropped layers, routers' jitter.

    config: of the text model. Rates of 0 are left out.
    """
    return {
        name: float(rate)
        for name, rate in config.to_dict().items()
        if ("drop" in name or "jitter" in name)
        and not name.startswith(NOT_OF_THE_DECODER)
        and isinstance(rate, (int, float))
        and not isinstance(rate, bool)
        and rate > 0
    }


def set_train_mode(lm: nn.Module, *, dropout: bool) -> None:
    """Prepare a model, with or without adapters, for a training step.

    dropout: whether the model's own dropout is on. It is off in evaluation mode, whichever way an architecture draws,
    so that a model's log-probabilities are those of its reference. The adapters' dropout is on in either case.
    """
    lm.train(dropout)
    for module in lm.modules():
        if hasattr(module, "lora_dropout"):
            layer: Any = module
            layer.training = True
            layer.lora_dropout.train()


def checkpoint_layers(lm: Any) -> None:
    """Recompute each layer of the decoder in the backward pass, in whatever mode the model is.

    transformers' own switch works in training mode alone. Raises InputError for a model without such layers.
    """
    layers = [module for module in lm.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"training.gradient_checkpointing: {type(lm).__name__} has no layers that can be computed again. Set it to "
            "false, and lower data.row_tokens if memory runs out."
        )
    for layer in layers:
        if not isinstance(layer.forward, partial):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
