"""Both kernels against the definition of what a token may see, computed in full."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from slime_ray.data.packing import Segment, Spans, pack
from slime_ray.model import attention
from slime_ray.model.attention import RowLayout, row_attention
from slime_ray.model.logprobs import Policy

from .conftest import CONFIGS, all_alone, double_model, gradients, random_pairs

needs_varlen = pytest.mark.skipif(attention.varlen_kernel() is None, reason="needs torch 2.12, as varlen does")

SEGMENTS = (Segment(7, 5, 9), Segment(3, 12, 1), Segment(4, 6, 0), Segment(1, 1, 1), Segment(2, 3, 8))


def tensors(segments, heads: int = 4, key_heads: int = 2):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, segments))
    return [
        torch.randn(1, count, tokens, 8, generator=generator, dtype=torch.float64)
        for count in (heads, key_heads, key_heads)
    ]


def seen_by_definition(segments, window: int | None) -> torch.Tensor:
    """(tokens, tokens) bool, spelled out token by token."""
    tokens = [
        (pair, part, place + (0 if part != 2 else -segment.chosen), place)
        for pair, segment in enumerate(segments)
        for place in range(sum(segment))
        for part in [0 if place < segment.prompt else 1 if place < segment.prompt + segment.chosen else 2]
    ]
    return torch.tensor(
        [
            [
                pair == other
                and place >= other_place
                and other_part in (0, part)
                and (window is None or position - other_position < window)
                for other, other_part, other_position, other_place in tokens
            ]
            for pair, part, position, place in tokens
        ]
    )


def by_definition(segments, window, query, key, value) -> torch.Tensor:
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    mask = seen_by_definition(segments, window)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


def layout(segments, kernel="segments") -> RowLayout:
    return RowLayout(segments, Spans.of(segments), kernel)


def in_rows(segments, window, kernel, query, key, value) -> torch.Tensor:
    row = layout(segments, kernel)
    return row_attention(None, query, key, value, None, scaling=0.3, sliding_window=window, row_layout=row)[0]


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("short", [0, 12, 10**9])
def test_attention_by_segment_is_the_definition(window, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_SEGMENT", short)
    query, key, value = tensors(SEGMENTS)
    found = in_rows(SEGMENTS, window, "segments", query, key, value)
    torch.testing.assert_close(found, by_definition(SEGMENTS, window, query, key, value), rtol=0, atol=1e-13)


def varlen_semantics(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch documents of `varlen_attn`: sequence by sequence, masks aligned to the ends, windows inclusive.

    FlashAttention has no CPU kernel: what is tested is what it is asked for.
    """
    assert (max_q, max_k) == tuple(int(ends.diff().max()) for ends in (cu_q, cu_k))
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    (left, right), attended = window_size, []
    sizes = [ends.diff().tolist() for ends in (cu_q, cu_k, cu_k)]
    for q, k, v in zip(*(x.split(size) for x, size in zip((query, key, value), sizes, strict=True)), strict=True):
        ahead = torch.arange(len(k)) - (torch.arange(len(q)) + len(k) - len(q))[:, None]
        seen = (ahead <= right) & (ahead >= -left if left >= 0 else True)
        groups = q.shape[1] // k.shape[1]
        k, v = (x.transpose(0, 1).repeat_interleave(groups, 0) for x in (k, v))
        weights = (scale * q.transpose(0, 1) @ k.transpose(1, 2)).masked_fill(~seen, -math.inf).softmax(-1)
        attended.append((weights @ v).transpose(0, 1))
    return torch.cat(attended)


def with_gradients(attend, tensors):
    attended = attend(*tensors)
    incoming = torch.linspace(-1, 1, attended.numel(), dtype=attended.dtype).view_as(attended)
    return [attended, *torch.autograd.grad(attended, tensors, incoming)]


@settings(max_examples=40)
@given(
    segments=st.lists(
        st.builds(Segment, st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5
    ),
    window=st.none() | st.integers(1, 12),
    kernel=st.sampled_from(["segments", "varlen"]),
)
def test_either_kernel_is_the_definition_with_its_gradients(segments, window, kernel):
    inputs = [tensor.requires_grad_() for tensor in tensors(segments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_kernel", lambda: varlen_semantics)
        found = with_gradients(lambda *qkv: in_rows(segments, window, kernel, *qkv), inputs)
    expected = with_gradients(lambda *qkv: by_definition(segments, window, *qkv), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_whole_row_in_one_call_gives_what_each_sequence_alone_gives(architecture, monkeypatch):
    """Log-probabilities and gradients of transformers' own modules, in Gemma3 with windows shorter than sequences."""
    asked = []
    monkeypatch.setattr(
        attention, "varlen_kernel", lambda: lambda *qkv, **how: asked.append(0) or varlen_semantics(*qkv, **how)
    )
    lm, pairs = double_model(CONFIGS[architecture]), random_pairs(4)
    logps = Policy(lm, kernel="varlen")(pack(pairs))
    found, expected = torch.cat([logps.chosen, logps.rejected]), all_alone(lm, pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(*(gradients(each, lm.parameters()) for each in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert asked


@needs_varlen
@pytest.mark.parametrize("window", [None, 1024])
def test_the_real_kernel_takes_what_it_is_given(window, monkeypatch):
    """On meta tensors, which know no autocast: shapes, dtypes and autograd of torch's own operator."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    tokens = sum(map(sum, SEGMENTS))
    inputs = [
        torch.empty(1, heads, tokens, 256, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (8, 4, 4)
    ]
    layout = RowLayout(SEGMENTS, Spans.of(SEGMENTS).to("meta"), "varlen")
    attended, _ = row_attention(None, *inputs, None, scaling=1 / 16, sliding_window=window, row_layout=layout)
    assert attended.shape == (1, tokens, 8, 256)
    assert attended.dtype == torch.bfloat16
    attended.sum().backward()
    assert [tensor.grad.shape for tensor in inputs] == [tensor.shape for tensor in inputs]


class TestAuto:
    """`auto` asks for the kernel where it serves, and only there. A GPU is made believe; nothing is computed on it."""

    @staticmethod
    def asks_for_varlen(monkeypatch, *, dtype=torch.bfloat16, size=64, dropout=0.0, capability=(9, 0), cuda=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(attention, "_attend_row", lambda *inputs: "one call")
        monkeypatch.setattr(attention, "_attend_segments", lambda *inputs, **options: torch.empty(1, 4, 1, size))
        attention._missing_requirement.cache_clear()
        query, key, value = (torch.empty(1, 4, 1, size, dtype=dtype) for _ in range(3))
        query = query.as_subclass(type("OnGpu", (torch.Tensor,), {"is_cuda": cuda}))
        try:
            found, _ = row_attention(
                None, query, key, value, None, dropout=dropout, row_layout=layout(SEGMENTS, "auto")
            )
        finally:
            attention._missing_requirement.cache_clear()
        return isinstance(found, str)

    @needs_varlen
    def test_on_a_gpu_in_bfloat16(self, monkeypatch):
        assert self.asks_for_varlen(monkeypatch)

    @pytest.mark.parametrize(
        "case",
        [
            {"dtype": torch.float32},
            {"size": 12},
            {"size": 264},
            {"dropout": 0.1},
            {"capability": (7, 5)},
            {"cuda": False},
        ],
        ids=str,
    )
    def test_elsewhere_by_segment(self, monkeypatch, case):
        assert not self.asks_for_varlen(monkeypatch, **case)

    @needs_varlen
    def test_with_an_older_torch_by_segment(self, monkeypatch):
        older = lambda query, key, value, cu_q, cu_k, max_q, max_k, is_causal=False: None  # noqa: E731
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
        assert attention.varlen_kernel() is None
        assert not self.asks_for_varlen(monkeypatch)


def test_masks_are_made_once_for_all_layers():
    row, like = layout(SEGMENTS), tensors(SEGMENTS)[0]
    assert row.masks(4, like) is row.masks(4, like)
    assert row.masks(4, like) is not row.masks(None, like)


def test_a_mask_that_inference_made_serves_training():
    """The causal matrix is kept; one made in inference mode could not be saved for a backward pass."""
    attention._causal_mask.cache_clear()
    segments = (Segment(30, 60, 60),)
    query, key, value = (tensor.requires_grad_() for tensor in tensors(segments))
    with torch.inference_mode():
        row_attention(None, query, key, value, None, row_layout=layout(segments))
    attended, _ = row_attention(None, query, key, value, None, row_layout=layout(segments))
    attended.sum().backward()
    assert math.isfinite(float(query.grad.sum()))
