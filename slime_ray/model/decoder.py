"""Parts of a causal language model of transformers."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from slime_ray.errors import InputError

WAY_OUT = "docs/models.md lists the architectures that work; use one of them, or open an issue."


def decoder_of(lm: Any) -> Any:
    """The module below the output head, from token ids to last hidden states.

    Raises InputError for a model in which there is none.
    """
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    for part in (lm.get_decoder(), lm.base_model, getattr(lm, "model", None)):
        # Some architectures have the whole model, or the head, under a decoder's name.
        modules = set() if part is None else set(part.modules())
        if embeddings in modules and (head not in modules or head is embeddings):
            return part
    raise InputError(f"{type(lm).__name__} has no decoder that can be found below its output head. {WAY_OUT}")


def empty_model(config: Any) -> Any | None:
    """The model of a configuration without weights; None where transformers has no such architecture."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def settings_of(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary whose text model has transformers' common names, whatever its own are."""
    text = config.get_text_config()
    common = {name: getattr(text, name) for name in text.attribute_map if hasattr(text, name)}
    whole: dict[str, Any] = config.to_dict()
    return whole | common if text is config else whole | {"text_config": text.to_dict() | common}


def matrix_weights(lm: Any) -> int:
    """Weights of a model's matrices and tables, shared ones once, towers of other kinds included."""
    return sum(parameter.numel() for parameter in lm.parameters() if parameter.ndim > 1)
