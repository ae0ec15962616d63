"""Attention over packed rows: chosen and rejected see their own prompt and themselves, and nothing else.

transformers calls the function registered here under `ROW_ATTENTION` in every attention layer. Given a row's layout it
computes that attention; without one (generation, one sequence per row) it is plain `sdpa`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slime_ray.data.packing import Segment

ROW_ATTENTION = "slime_ray_rows"
"""The name under which transformers knows `row_attention`."""

_LOCAL = (
    "attention_chunk_size",
    "attention_window_size",
    "index_topk",
    "local_window_size",
    "sliding_window",
    "window_size",
)

Kernel = Literal["segments", "flex"]
"""How a row's attention is computed: a call of sdpa per segment, or flex_attention with a block mask (GPU)."""

SHORT = 128
"""Tokens of a segment up to which one masked call beats a causal call for chosen and a masked one for rejected: above,
what the mask blanks costs more than a second call. Measured on a CPU."""


class RowLayout:
    """Which token of a packed row may see which, as each kernel wants it; masks are made once and serve all layers.

    segments: the pairs of the row in order. A sliding layer's window is measured in positions, not in places of the
    row: rejected stands behind chosen but continues the prompt.
    """

    def __init__(self, segments: Sequence[Segment], kernel: Kernel = "segments"):
        self.segments = tuple(segments)
        self.kernel = kernel
        self._masks: dict[Any, list[torch.Tensor | None]] = {}
        self._block_masks: dict[int | None, Any] = {}

    def masks(self, window: int | None, like: torch.Tensor) -> list[torch.Tensor | None]:
        """Per segment the additive mask of its only call, or None where it is attended in two calls or is causal."""
        if (window, like.dtype) not in self._masks:
            self._masks[window, like.dtype] = [
                segment_mask(segment, window, like) if segment.rejected and sum(segment) <= SHORT else None
                for segment in self.segments
            ]
        return self._masks[window, like.dtype]

    def block_mask(self, window: int | None, device: torch.device) -> Any:
        """flex_attention's BlockMask of the whole row."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._block_masks:
            length = sum(map(sum, self.segments))
            self._block_masks[window] = create_block_mask(
                visible(self.segments, window, device),
                B=None,
                H=None,
                Q_LEN=length,
                KV_LEN=length,
                device=str(device),
                # Compiled, the whole matrix is never laid out; on a CPU, where only tests come, it may be.
                _compile=device.type == "cuda",
            )
        return self._block_masks[window]


def local_setting(config: Any) -> str | None:
    """The setting under which a token sees only some of those before it; None where there is none.

    Short sequences do not show whether an attention function honours it. config: the text model's.
    """
    return next((name for name in _LOCAL if getattr(config, name, None)), None)


@contextmanager
def plain_attention(lm: Any, *, usual: str) -> Iterator[None]:
    """Have a model use transformers' eager attention meanwhile, and `usual` afterwards."""
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(usual)


def visible(
    segments: Sequence[Segment], window: int | None, device: torch.device
) -> Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The definition, as flex_attention's mask_mod: may the token at `query` see the token at `key`?

    A token sees itself, and what comes before it in its own segment if that is the prompt or its own completion, and in
    a sliding layer only what is less than `window` positions before it.
    """
    lengths = torch.tensor([tuple(segment) for segment in segments], device=device)
    owner = torch.repeat_interleave(torch.arange(len(segments), device=device), lengths.sum(1))
    part = torch.repeat_interleave(
        torch.tensor([0, 1, 2], device=device).repeat(len(segments)), lengths.flatten(), output_size=len(owner)
    )
    starts = (lengths.sum(1).cumsum(0) - lengths.sum(1))[owner]
    place = torch.arange(len(owner), device=device) - starts
    position = torch.where(part == 2, place - lengths[owner, 1], place)

    def sees(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = (query >= key) & (owner[query] == owner[key]) & ((part[key] == 0) | (part[key] == part[query]))
        return seen if window is None else seen & (position[query] - position[key] < window)

    return sees


def row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    row_layout: RowLayout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it.

    query: (1, heads, tokens, head size); key, value: (1, key heads, tokens, head size); returns (1, tokens, heads,
    head size). Without `row_layout` it is transformers' sdpa.
    """
    if row_layout is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **options,
        )
    if row_layout.kernel == "flex":
        attended = _compiled_flex(query.device.type)(
            query,
            key,
            value,
            block_mask=row_layout.block_mask(sliding_window, query.device),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended.transpose(1, 2).contiguous(), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    attended = _by_segment(query, key, value, row_layout, sliding_window, scale=scaling, dropout_p=dropout)
    return attended.transpose(1, 2).contiguous(), None


def _by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    window: int | None,
    **options: Any,
) -> torch.Tensor:
    attend: Callable[..., torch.Tensor] = functools.partial(functional.scaled_dot_product_attention, **options)
    lengths = [sum(segment) for segment in layout.segments]
    # `split` rather than slices throughout: its backward pass is one concatenation.
    pieces = zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True)
    attended = []
    for segment, mask, (q, k, v) in zip(layout.segments, layout.masks(window, query), pieces, strict=True):
        if mask is not None:
            attended.append(attend(q, k, v, attn_mask=mask))
            continue
        prompt, chosen, rejected = segment
        first = prompt + chosen
        q_first, q_rejected = q.split((first, rejected), 2)
        k_first, k_rejected = k.split((first, rejected), 2)
        v_first, v_rejected = v.split((first, rejected), 2)
        banded = causal_mask(first, window, q) if window is not None and first > window else None
        attended.append(attend(q_first, k_first, v_first, attn_mask=banded, is_causal=banded is None))
        if rejected:
            k_all = torch.cat((k_first.split((prompt, chosen), 2)[0], k_rejected), 2)
            v_all = torch.cat((v_first.split((prompt, chosen), 2)[0], v_rejected), 2)
            mask = causal_mask(prompt + rejected, window, q)[prompt:]
            attended.append(attend(q_rejected, k_all, v_all, attn_mask=mask))
    return torch.cat(attended, 2)


def segment_mask(segment: Segment, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(tokens, tokens) additive mask, 0 or -inf, of one whole segment in the dtype of `like`."""
    prompt, chosen, rejected = segment
    causal = causal_mask(prompt + max(chosen, rejected), window, like)
    first = prompt + chosen
    mask = torch.full((sum(segment), sum(segment)), -math.inf, dtype=like.dtype, device=like.device)
    mask[:first, :first] = causal[:first, :first]
    mask[first:, :prompt] = causal[prompt : prompt + rejected, :prompt]
    mask[first:, first:] = causal[prompt : prompt + rejected, prompt : prompt + rejected]
    return mask


def causal_mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(length, length) additive mask of one sequence: 0 for itself and up to `window` - 1 tokens before, else -inf."""
    size = 1 << max(7, (length - 1).bit_length())
    return _causal_mask(size, window, like.dtype, like.device)[:length, :length]


@lru_cache(maxsize=8)
def _causal_mask(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Made outside inference mode, so that a later training step may save it for its backward pass.
    with torch.inference_mode(False):
        distance = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)[None, :]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~seen, -math.inf)


def forget_masks() -> None:
    """Drop the masks that are kept from call to call, such as those without data."""
    _causal_mask.cache_clear()


@lru_cache(maxsize=2)
def _compiled_flex(device: str) -> Callable[..., torch.Tensor]:
    """flex_attention: fused on a GPU; as it stands on a CPU, where it serves to test the block mask."""
    from torch.nn.attention.flex_attention import flex_attention

    function: Any = flex_attention
    return torch.compile(function) if device == "cuda" else function


AttentionInterface.register(ROW_ATTENTION, row_attention)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
