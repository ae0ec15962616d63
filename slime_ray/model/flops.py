"""Floating-point operations of a training step, by formula: a multiplication and an addition are two.

N are the weights of the body's linear layers, which are frozen, A those of their adapters, T positions.

    body       T * (4 N + 6 A): each weight once forward (2), once for the gradient of its input (2), and an adapter's
               once for its own (2). Nothing needs the gradient of what the first layer's q, k and v are computed from.
    attention  12 * heads * head size for each query and the key it may see: scores and their product with the values,
               forward (4) and backward (8), in sliding layers only within the window.
    head       positions whose logits are computed * hidden size * vocabulary * 6 where it is trained (2 forward, 2 for
               the hidden states, 2 for its weights), * 4 where it is frozen.
    reference  a forward pass without adapters: T * 2 N, 4 for attention, 2 for the head.

A forward pass alone is T * (2 N + 2 A), 4 for attention and 2 for the head. Where all weights are trained they count as
A, with no first layer that passes nothing on.

What is computed again to save memory (checkpointing, chunks of the head) does not count, nor do scores that a kernel
computes and a mask then blanks, so no share of peak is flattered by them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from slime_ray.errors import InputError

FIRST_TO_READ = re.compile(
    r"(^|\.)0\.[\w.]*\b(q_proj|k_proj|v_proj|qkv_proj|query_key_value|c_attn|Wqkv)(\.base_layer|\.lora_A\.\w+)?$"
)
"""Linear parts of the first layer that read what comes into it, and their adapters' part that does."""


class Lengths(NamedTuple):
    """Tokens of one pair's parts. Demonstrations for SFT have no rejected completion."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a model: numbers of weights, and of its attention.

    body, adapters: all of the body's, frozen and trained. body_first, adapters_first: those among them that read the
    embeddings and pass no gradient on. windows: each layer's window in positions, None for full attention.
    attention_width: query heads times head size.
    """

    body: int
    adapters: int
    body_first: int
    adapters_first: int
    hidden: int
    vocabulary: int
    attention_width: int
    head_size: int
    windows: tuple[int | None, ...]

    @property
    def linear(self) -> int:
        """All weights of the body's linear layers, adapters included."""
        return self.body + self.adapters


@dataclass(frozen=True)
class Layout:
    """What one forward pass over pairs computes.

    positions: through the body, padding included. real: of these, tokens. logits: positions whose logits are computed.
    runs: (first, last) positions of queries that see all of their sequence up to themselves. reference: whether a
    forward pass without adapters follows.
    """

    positions: int
    real: int
    logits: int
    runs: tuple[tuple[int, int], ...]
    reference: bool = False

    @classmethod
    def of_rows(
        cls, *, rows: int, width: int, lengths: Sequence[Lengths], logits_everywhere: bool, reference: bool
    ) -> "Layout":
        """Describe padded rows. Padding counts as a token that sees what is before it."""
        completions = sum(pair.chosen + pair.rejected for pair in lengths)
        return cls(
            positions=rows * width,
            real=completions + 2 * sum(pair.prompt for pair in lengths),
            logits=rows * width if logits_everywhere else completions,
            runs=((0, width),) * rows,
            reference=reference,
        )

    @classmethod
    def of_packed(cls, lengths: Sequence[Lengths]) -> "Layout":
        """Describe packed pairs: chosen and rejected each continue the one prompt."""
        tokens = sum(map(sum, lengths))
        runs = [(0, pair.prompt + pair.chosen) for pair in lengths]
        runs += [(pair.prompt, pair.prompt + pair.rejected) for pair in lengths]
        return cls(
            positions=tokens, real=tokens, logits=sum(pair.chosen + pair.rejected for pair in lengths), runs=tuple(runs)
        )

    def query_key_pairs(self, window: int | None) -> int:
        """Count the query-key pairs of one layer."""
        return sum(_query_key_pairs(last, window) - _query_key_pairs(first, window) for first, last in self.runs)


def _query_key_pairs(length: int, window: int | None) -> int:
    """Count the keys that the first `length` positions of a sequence see."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full


def linear_flops(sizes: Sizes, layout: Layout, *, head_trained: bool) -> int:
    """Count the FLOPs of a step's matrix products with weights."""
    body = 4 * sizes.body + 6 * sizes.adapters - 2 * (sizes.body_first + sizes.adapters_first)
    one_logit_row = sizes.hidden * sizes.vocabulary
    total = layout.positions * body + layout.logits * one_logit_row * (6 if head_trained else 4)
    if layout.reference:
        total += layout.positions * 2 * sizes.body + layout.logits * one_logit_row * 2
    return total


def attention_flops(sizes: Sizes, layout: Layout) -> int:
    """Count the FLOPs of a step's attention."""
    return (16 if layout.reference else 12) * sizes.attention_width * _model_query_key_pairs(sizes, layout)


def step_flops(sizes: Sizes, layout: Layout, *, head_trained: bool) -> int:
    """Count the FLOPs of a training step over one layout."""
    return linear_flops(sizes, layout, head_trained=head_trained) + attention_flops(sizes, layout)


def forward_flops(sizes: Sizes, layout: Layout) -> int:
    """Count the FLOPs of a forward pass over one layout, adapters included."""
    head = layout.logits * sizes.hidden * sizes.vocabulary * 2
    attention = 4 * sizes.attention_width * _model_query_key_pairs(sizes, layout)
    return layout.positions * 2 * (sizes.body + sizes.adapters) + head + attention


def _model_query_key_pairs(sizes: Sizes, layout: Layout) -> int:
    """Count the query-key pairs of all layers."""
    return sum(count * layout.query_key_pairs(window) for window, count in Counter(sizes.windows).items())


def sizes_of(lm: Any) -> Sizes:
    """Count a causal language model's weights, with or without adapters. Raises InputError for unusual attention."""
    base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    config = base.config.get_text_config()
    end_ids = {id(base.get_output_embeddings()), id(base.get_input_embeddings())}
    counts = {(trained, first): 0 for trained in (False, True) for first in (False, True)}
    for name, module in base.get_decoder().named_modules():
        weight: Any = getattr(module, "weight", None)
        # Those of other kinds are norms, embeddings and convolutions; peft's layers hold linear ones.
        not_linear = (
            weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding) or hasattr(module, "base_layer")
        )
        if not_linear or id(module) in end_ids:
            continue
        # Nothing needs the gradient of what the first layer reads, unless the embeddings are trained.
        first = bool(FIRST_TO_READ.search(name)) and not base.get_input_embeddings().weight.requires_grad
        counts[weight.requires_grad, first] += weight.numel()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise InputError(f"A model of type {config.model_type} has no num_attention_heads: its cost is not known.")
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Sizes(
        body=counts[False, False] + counts[False, True],
        adapters=counts[True, False] + counts[True, True],
        body_first=counts[False, True],
        adapters_first=counts[True, True],
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        attention_width=heads * head_size,
        head_size=head_size,
        windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
    )
