"""Parts of a causal language model of transformers."""

import copy
from typing import Any

from slime_ray.errors import InputError

UNCAPPED = frozenset({"gemma3"})
"""Models that pass over the soft cap in their text model's configuration."""
WAY_OUT = "docs/models.md lists the architectures that work; use one of them, or open an issue."

WITH_TOWERS = frozenset({"gemma3", "llava", "mistral3"})
"""Vision-language models whose text decoder computes on text what the whole does, to the last bit, as tests hold."""
DECODER_NAMES = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?!lm_head)(?:model\.)?": "model.",
}
"""Names of weights in files of the whole model, as expressions of `from_pretrained`, and in the decoder alone."""


def text_decoder(config: Any) -> Any:
    """Return the configuration of a known vision-language model's text decoder, or `config` of any other model."""
    if config.model_type not in WITH_TOWERS:
        return config
    text = copy.deepcopy(config.get_text_config())
    text.tie_word_embeddings = config.tie_word_embeddings
    if config.model_type in UNCAPPED:
        text.final_logit_softcapping = None
    return text


def decoder_of(lm: Any) -> Any:
    """Return the module below the output head, from token ids to last hidden states.

    Raises InputError for a model in which there is none.
    """
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    for part in (lm.get_decoder(), lm.base_model, getattr(lm, "model", None)):
        # Some architectures have the whole model, or the head, under a decoder's name.
        modules = set() if part is None else set(part.modules())
        if embeddings in modules and (head not in modules or head is embeddings):
            return part
    raise InputError(f"{type(lm).__name__} has no decoder that can be found below its output head. {WAY_OUT}")
