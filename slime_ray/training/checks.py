"""Checks of what a stage made, before it is kept: finite numbers, and a saved model that is the trained one."""

import math
from collections.abc import Mapping

import numpy as np

from slime_ray.config.settings import Settings
from slime_ray.errors import InputError

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean difference, in nats a token, that rounding may cause. Measured on merged adapters: 1e-6 and 0.008."""


def check_update(step: int, metrics: Mapping[str, float], settings: Settings) -> None:
    """Raise InputError at the first update of SFT whose loss or gradient norm is not finite."""
    broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics.get(name, 0.0))]
    if not broken or settings.sft is None:
        return
    first = f"These are the numbers of the model before any training: check the weights of {settings.model.source}"
    later = f"Lower sft.learning_rate ({settings.sft.learning_rate:g}), or set sft.max_grad_norm"
    raise InputError(
        f"The SFT stage was ended at update {step} and is not kept: {broken[0].replace('_', ' ')} became "
        f"{metrics[broken[0]]}. {first if step <= 1 else later}, and model.dtype ({settings.model.dtype})."
    )


def check_finite(chosen: np.ndarray, rejected: np.ndarray, pairs: str, settings: Settings) -> None:
    """Raise InputError where the model that all trials start from gives log-probabilities that are not finite.

    chosen, rejected: (pairs,) sums or means. pairs: what they were measured on, in words.
    """
    if bad := int((~np.isfinite(chosen + rejected)).sum()):
        raise InputError(
            f"{_start(settings)} gives log-probabilities that are not finite, on {bad} of {len(chosen)} {pairs} pairs. "
            f"{_way_out(settings)}"
        )


def no_answers(settings: Settings) -> InputError:
    """What is wrong with a model whose logits are not numbers while it answers."""
    return InputError(
        f"{_start(settings)} gives logits that are not numbers, so the baseline has no answers. {_way_out(settings)}"
    )


def _start(settings: Settings) -> str:
    return "The SFT checkpoint" if settings.sft else f"model.source {settings.model.source}"


def _way_out(settings: Settings) -> str:
    sft = f"Lower sft.learning_rate ({settings.sft.learning_rate:g}), or check" if settings.sft else "Check"
    return f"{sft} the weights of {settings.model.source} and model.dtype ({settings.model.dtype})."


def check_trained(trained: np.ndarray, settings: Settings) -> None:
    """Raise InputError where a trained model's log-probabilities are not finite, before it is saved."""
    if not np.isfinite(trained).all():
        raise InputError(f"{_start(settings)} gives log-probabilities that are not finite. {_way_out(settings)}")


def check_saved(trained: np.ndarray, saved: np.ndarray, settings: Settings) -> None:
    """Raise InputError where a saved model is not the one that was trained.

    trained, saved: (tokens,) log-probabilities of the same tokens, in nats.
    """
    dtype = settings.model.dtype
    difference, tolerance = float(np.abs(trained - saved).mean()), TOLERANCES[dtype]
    if difference <= tolerance:
        return
    raise InputError(
        f"The model that was saved is not the one that was trained: on {len(trained)} tokens of the training data "
        f"their log-probabilities differ by {difference:.3g} nats a token, where {dtype} allows {tolerance:g}. Nothing "
        "of it is kept. Train other layers (lora.targets), or every weight (lora: null)."
    )
