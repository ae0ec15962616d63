"""Parts of a causal language model of transformers."""

from typing import Any

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
