"""Attention over packed rows: chosen and rejected see their own prompt and themselves, and nothing else.

transformers calls the function registered here under `ROW_ATTENTION` in every attention layer. Given a row's layout it
computes that attention; without one (generation, one sequence per row) it is plain `sdpa`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slime_ray.data.packing import Segment, Spans

ROW_ATTENTION = "slime_ray_rows"
"""The name under which transformers knows `row_attention`."""

_LOCAL_SETTINGS = (
    "attention_chunk_size",
    "attention_window_size",
    "index_topk",
    "index_topk_blocks",
    "keep_window_size",
    "local_window_size",
    "sliding_window",
    "window_size",
)

Kernel = Literal["auto", "segments", "varlen"]
"""How a row's attention is computed: a call or two of sdpa per segment, or one call of FlashAttention's variable-length
kernel for the whole row. `auto` takes the latter where it can."""

HEAD_SIZE = 256
"""The largest head that FlashAttention's kernels take; sizes are multiples of 8."""

SHORT_SEGMENT = 128
"""Tokens of a segment up to which one masked call beats a causal call for chosen and a masked one for rejected: above,
what the mask blanks costs more than a second call. Measured on a CPU."""


class RowLayout:
    """Which token of a packed row may see which, as each kernel wants it; masks are made once and serve all layers.

    segments: the pairs of the row in order; spans: the same as sequences, on the row's device. A sliding layer's window
    is measured in positions, not in places of the row: rejected stands behind chosen but continues the prompt.
    """

    def __init__(self, segments: Sequence[Segment], spans: Spans, kernel: Kernel = "auto"):
        self.segments = tuple(segments)
        self.spans = spans
        self.kernel = kernel
        self._masks: dict[Any, list[torch.Tensor | None]] = {}

    def masks(self, window: int | None, like: torch.Tensor) -> list[torch.Tensor | None]:
        """Return each segment's additive mask; None for one that is attended in two calls, or without a mask."""
        if (window, like.dtype) not in self._masks:
            self._masks[window, like.dtype] = [
                segment_mask(segment, window, like) if segment.rejected and sum(segment) <= SHORT_SEGMENT else None
                for segment in self.segments
            ]
        return self._masks[window, like.dtype]


def local_setting(config: Any) -> str | None:
    """Return the setting that limits attention to a local window; None without one.

    Short sequences do not show whether an attention function honours it. config: the text model's.
    """
    return next((name for name in _LOCAL_SETTINGS if getattr(config, name, None)), None)


def varlen_kernel() -> Callable[..., Any] | None:
    """Return torch's variable-length attention; None where torch lacks it, or windows or shared key heads in it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= parameters.keys() else None


def why_no_varlen(dtype: torch.dtype, head_size: int, dropout: float) -> str | None:
    """Say what the variable-length kernel lacks; None where nothing. dropout: of attention."""
    if requirement := _missing_requirement():
        return requirement
    if dtype not in (torch.bfloat16, torch.float16):
        return f"bfloat16; model.dtype is {str(dtype).removeprefix('torch.')}"
    if head_size > HEAD_SIZE or head_size % 8:
        return f"heads of a multiple of 8 up to {HEAD_SIZE}; this model's have {head_size}"
    if dropout:
        return f"attention without dropout; model.dropout is on, and this model's is {dropout}"
    return None


@cache
def _missing_requirement() -> str | None:
    if not torch.cuda.is_available():
        return "a GPU; this is a CPU"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"a GPU of compute capability 8.0 or newer; this one has {'.'.join(map(str, capability))}"
    if varlen_kernel() is None:
        return f"torch 2.12 or newer; this is {torch.__version__}"
    return None


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
    """Compute one layer's attention, as transformers calls it.

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
    query, key, value = _cast_to_autocast(query, key, value)
    size = query.shape[-1]
    varlen_fits = query.is_cuda and size == value.shape[-1] and why_no_varlen(query.dtype, size, dropout) is None
    if row_layout.kernel == "varlen" or (row_layout.kernel == "auto" and varlen_fits):
        return _attend_row(query, key, value, row_layout.spans, sliding_window, scaling), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = _attend_segments(query, key, value, row_layout, sliding_window, scale=scaling, dropout_p=dropout)
    return output.transpose(1, 2).contiguous(), None


def _cast_to_autocast(*tensors: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cast tensors to autocast's dtype, as torch does for sdpa but not for the variable-length kernel."""
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type) or tensors[0].dtype == torch.float64:
        return iter(tensors)
    return (tensor.to(torch.get_autocast_dtype(device_type)) for tensor in tensors)


def _attend_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Compute a row's attention in one call, its masks aligned to the ends, so that rejected sees its prompt."""
    attend: Any = varlen_kernel()
    # Views alone: the gradient of an index would be written into zeros and copied.
    query, key, value = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    output: torch.Tensor = attend(
        query,
        key.index_select(0, spans.keys),
        value.index_select(0, spans.keys),
        spans.cu_q,
        spans.cu_k,
        spans.max_q,
        spans.max_k,
        scale=scale,
        # Tokens seen to the left of the query's own and to the right.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def _attend_segments(
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
    outputs = []
    for segment, mask, (q, k, v) in zip(layout.segments, layout.masks(window, query), pieces, strict=True):
        if mask is not None:
            outputs.append(attend(q, k, v, attn_mask=mask))
            continue
        prompt, chosen, rejected = segment
        first = prompt + chosen
        q_first, q_rejected = q.split((first, rejected), 2)
        k_first, k_rejected = k.split((first, rejected), 2)
        v_first, v_rejected = v.split((first, rejected), 2)
        window_mask = causal_mask(first, window, q) if window is not None and first > window else None
        outputs.append(attend(q_first, k_first, v_first, attn_mask=window_mask, is_causal=window_mask is None))
        if rejected:
            k_all = torch.cat((k_first.split((prompt, chosen), 2)[0], k_rejected), 2)
            v_all = torch.cat((v_first.split((prompt, chosen), 2)[0], v_rejected), 2)
            mask = causal_mask(prompt + rejected, window, q)[prompt:]
            outputs.append(attend(q_rejected, k_all, v_all, attn_mask=mask))
    return torch.cat(outputs, 2)


def segment_mask(segment: Segment, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Build the (tokens, tokens) additive mask of one segment, 0 or -inf. like: a tensor of its dtype and device."""
    prompt, chosen, rejected = segment
    causal = causal_mask(prompt + max(chosen, rejected), window, like)
    first = prompt + chosen
    mask = torch.full((sum(segment), sum(segment)), -math.inf, dtype=like.dtype, device=like.device)
    mask[:first, :first] = causal[:first, :first]
    mask[first:, :prompt] = causal[prompt : prompt + rejected, :prompt]
    mask[first:, first:] = causal[prompt : prompt + rejected, prompt : prompt + rejected]
    return mask


def causal_mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return one sequence's (length, length) mask: 0 for itself and up to `window` - 1 tokens before, else -inf."""
    size = 1 << max(7, (length - 1).bit_length())
    return _causal_mask(size, window, like.dtype, like.device)[:length, :length]


@lru_cache(maxsize=8)
def _causal_mask(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Made outside inference mode, so that a later training step may save it for its backward pass.
    with torch.inference_mode(False):
        distance = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)[None, :]
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~visible, -math.inf)


def forget_masks() -> None:
    """Drop the masks that are kept from call to call, such as those without data."""
    _causal_mask.cache_clear()


AttentionInterface.register(ROW_ATTENTION, row_attention)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
