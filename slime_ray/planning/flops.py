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

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Lengths(NamedTuple):
    """Tokens of one pair's parts. Demonstrations for SFT have no rejected completion."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a model: numbers of weights, and of its attention.

    body, adapters: all of the body's. body_first, adapters_first: those among them that read the embeddings and pass no
    gradient on. windows: each layer's window in positions, None for full attention. attention_width: query heads times
    head size.
    """

    body: int
    adapters: int
    body_first: int
    adapters_first: int
    hidden: int
    vocabulary: int
    attention_width: int
    windows: tuple[int | None, ...]


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
        """Padded rows. Padding counts as a token that sees what is before it."""
        completions = sum(each.chosen + each.rejected for each in lengths)
        return cls(
            positions=rows * width,
            real=completions + 2 * sum(each.prompt for each in lengths),
            logits=rows * width if logits_everywhere else completions,
            runs=((0, width),) * rows,
            reference=reference,
        )

    @classmethod
    def of_packed(cls, lengths: Sequence[Lengths]) -> "Layout":
        """Pairs end to end: chosen goes on from the prompt, and rejected again from the prompt."""
        tokens = sum(map(sum, lengths))
        runs = [(0, each.prompt + each.chosen) for each in lengths]
        runs += [(each.prompt, each.prompt + each.rejected) for each in lengths]
        return cls(
            positions=tokens, real=tokens, logits=sum(each.chosen + each.rejected for each in lengths), runs=tuple(runs)
        )

    def seen(self, window: int | None) -> int:
        """Query-key pairs of one layer."""
        return sum(_seen_up_to(last, window) - _seen_up_to(first, window) for first, last in self.runs)


def _seen_up_to(length: int, window: int | None) -> int:
    """Keys that the first `length` positions of a sequence see, themselves included."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full


def linear_flops(sizes: Sizes, layout: Layout, *, head_trained: bool) -> int:
    """FLOPs of a step's matrix products with weights."""
    body = 4 * sizes.body + 6 * sizes.adapters - 2 * (sizes.body_first + sizes.adapters_first)
    one_logit_row = sizes.hidden * sizes.vocabulary
    total = layout.positions * body + layout.logits * one_logit_row * (6 if head_trained else 4)
    if layout.reference:
        total += layout.positions * 2 * sizes.body + layout.logits * one_logit_row * 2
    return total


def attention_flops(sizes: Sizes, layout: Layout) -> int:
    """FLOPs of a step's attention."""
    return (16 if layout.reference else 12) * sizes.attention_width * _seen_in_all(sizes, layout)


def step_flops(sizes: Sizes, layout: Layout, *, head_trained: bool) -> int:
    """FLOPs of a training step over one layout."""
    return linear_flops(sizes, layout, head_trained=head_trained) + attention_flops(sizes, layout)


def forward_flops(sizes: Sizes, layout: Layout) -> int:
    """FLOPs of a forward pass over one layout, adapters included."""
    head = layout.logits * sizes.hidden * sizes.vocabulary * 2
    attention = 4 * sizes.attention_width * _seen_in_all(sizes, layout)
    return layout.positions * 2 * (sizes.body + sizes.adapters) + head + attention


def _seen_in_all(sizes: Sizes, layout: Layout) -> int:
    """Query-key pairs of all layers."""
    return sum(count * layout.seen(window) for window, count in Counter(sizes.windows).items())


def sizes_of(lm: Any) -> Sizes:
    """Sizes of a peft model whose body's linear layers all have adapters."""
    config = lm.get_base_model().config
    body = adapters = body_first = adapters_first = 0
    for name, module in lm.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        down = sum(part.weight.numel() for part in module.lora_A.values())
        body += module.base_layer.weight.numel()
        adapters += down + sum(part.weight.numel() for part in module.lora_B.values())
        if ".layers.0." in name and name.endswith(("q_proj", "k_proj", "v_proj")):
            body_first += module.base_layer.weight.numel()
            adapters_first += down
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return Sizes(
        body=body,
        adapters=adapters,
        body_first=body_first,
        adapters_first=adapters_first,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        attention_width=config.num_attention_heads * config.head_dim,
        windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
    )
