"""Callbacks of the user's, which transformers' Trainer calls while a trial trains."""

import importlib
from collections.abc import Sequence

from transformers import TrainerCallback

from slime_ray.errors import InputError


def load_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """Import callbacks and make one of each.

    Args:
        names: `package.module:Class` of each.

    Returns:
        A new callback for each name.

    Raises:
        InputError: One cannot be imported, is no TrainerCallback, or cannot be made without arguments.
    """
    return [_made(name) for name in names]


def _made(name: str) -> TrainerCallback:
    module, _, kind = name.partition(":")
    where = f"training.callbacks: {name}"
    try:
        callback = getattr(importlib.import_module(module), kind)
    except Exception as error:  # whatever the user's own file raises
        raise InputError(
            f"{where} cannot be imported: {error}. Write package.module:Class, with its folder on PYTHONPATH."
        ) from None
    if not (isinstance(callback, type) and issubclass(callback, TrainerCallback)):
        raise InputError(f"{where} is no transformers.TrainerCallback. Derive its class from that.")
    try:
        return callback()
    except Exception as error:  # whatever the user's own class raises
        raise InputError(f"{where} cannot be made without arguments: {error}. Give them defaults.") from None
