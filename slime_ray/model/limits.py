"""What a model has no numbers for: token ids beyond its embeddings, positions beyond what it computes alike."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from slime_ray.errors import InputError
from slime_ray.model.decoder import decoder_of

_SIZES = {"mpt": "max_seq_len"}
"""Model types whose positions end with a number of their configuration, and no table shows it."""
OFFSETS = range(17)
"""Rows that a table of positions may have beyond them, such as OPT's two."""


@dataclass(frozen=True)
class Limits:
    """Token ids and positions that a model has.

    ids: size of its vocabulary. positions: tokens that a sequence may have; None where any length goes. reason: why, in
    words that follow "than"; empty without a limit.
    """

    ids: int
    positions: int | None = None
    reason: str = ""

    def check_length(self, tokens: int, what: str, remedy: str) -> None:
        """Raise InputError for a sequence of too many tokens. what: its description; remedy: the way out."""
        if self.positions is not None and tokens > self.positions:
            raise InputError(f"{what} has {tokens} tokens, more than {self.reason}. {remedy}")

    def check_answer(self, prompt: int, answer: int, what: str) -> None:
        """Raise InputError where a prompt leaves no room for the longest answer. Both in tokens."""
        self.check_length(
            prompt + answer,
            f"{what} with an answer of {answer} tokens",
            "Set a smaller evaluation.decoding.max_new_tokens, or data.max_prompt_tokens.",
        )

    def check_ids(self, largest: int, place: str, token: str | None = None) -> None:
        """Raise InputError for an id that the model does not have. token: its text, where that is known."""
        if largest >= self.ids:
            name = "a token" if token is None else f"the token {token!r}"
            raise InputError(
                f"{place}: {name} has id {largest}, and the model has {self.ids} ids, 0 to {self.ids - 1}. Use the "
                "tokenizer that belongs to model.source, or give the model embeddings for the added tokens "
                "(resize_token_embeddings) and save it again."
            )


def declared_limits(config: Any) -> Limits:
    """The limits of a whole model's configuration, which alone is at hand.

    An architecture that transformers does not have is taken to have none.
    """
    try:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        return Limits(config.get_text_config().vocab_size)
    return limits_of(lm)


def limits_of(lm: Any) -> Limits:
    """The narrowest of a model's tables of positions, and of the lengths that its configuration says it depends on.

    lm: of transformers, with or without weights.
    """
    config, embeddings = lm.config.get_text_config(), lm.get_input_embeddings()
    ids = embeddings.weight.shape[0]
    size = getattr(config, _SIZES.get(config.model_type, "max_position_embeddings"), None)
    ropes = _ropes(config)
    steady = [
        rope.get("original_max_position_embeddings") or size
        for rope in ropes
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    narrowest = min((length for length in steady if length is not None), default=None)
    table = size if size is not None and (config.model_type in _SIZES or _has_table(lm, embeddings, size)) else None
    if narrowest is not None and (table is None or narrowest <= table):
        kinds = sorted({str(rope["rope_type"]) for rope in ropes if "rope_type" in rope})
        return Limits(
            ids,
            narrowest,
            f"the {narrowest} positions up to which this model's rotary frequencies"
            f"{f' (rope_type {kinds[0]} in its config.json)' if len(kinds) == 1 else ''} do not depend on the longest "
            "sequence of a batch",
        )
    selected = getattr(config, "index_topk", None)
    if selected and (table is None or selected <= table):
        # Beyond them equal scores are chosen among by what stands behind, which padding changes.
        return Limits(ids, selected, f"the {selected} positions up to which its sparse attention (index_topk) sees all")
    return Limits(ids) if table is None else Limits(ids, table, f"the model's {table} positions")


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rotary settings; some models have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(each for each in rope.values() if isinstance(each, dict))]


def _has_table(lm: Any, embeddings: nn.Module, size: int) -> bool:
    """Whether a decoder has an embedding, or a buffer of as many vectors, for each of `size` positions."""
    decoder = decoder_of(lm)
    return any(
        isinstance(module, nn.Embedding) and module is not embeddings and module.weight.shape[0] - size in OFFSETS
        for module in decoder.modules()
    ) or any(
        "pos" in name.rsplit(".", 1)[-1] and table.is_floating_point() and table.dim() == 2 and len(table) == size
        for name, table in decoder.named_buffers()
    )
