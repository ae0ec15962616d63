"""Both kernels against the definition of what a token may see, computed in full."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from slime_ray.data.packing import Segment
from slime_ray.model import attention
from slime_ray.model.attention import RowLayout, row_attention, visible

SEGMENTS = (Segment(7, 5, 9), Segment(3, 12, 1), Segment(4, 6, 0), Segment(1, 1, 1), Segment(2, 3, 8))


def tensors(segments, heads: int = 4, key_heads: int = 2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, segments))
    return [
        torch.randn(1, count, tokens, 8, generator=generator, dtype=dtype) for count in (heads, key_heads, key_heads)
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


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("short", [0, 12, 10**9])
def test_attention_by_segment_is_the_definition(window, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    query, key, value = tensors(SEGMENTS)
    found, _ = row_attention(
        None, query, key, value, None, scaling=0.3, sliding_window=window, row_layout=RowLayout(SEGMENTS)
    )
    torch.testing.assert_close(found, by_definition(SEGMENTS, window, query, key, value), rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    segments=st.lists(
        st.builds(Segment, st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5
    ),
    window=st.none() | st.integers(1, 12),
)
def test_the_block_mask_is_the_definition(segments, window):
    places = torch.arange(sum(map(sum, segments)))
    sees = visible(segments, window, torch.device("cpu"))
    found = sees(0, 0, places[:, None], places[None, :])
    assert torch.equal(found, seen_by_definition(segments, window))


@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_is_the_definition(window):
    """On a CPU flex_attention has neither float64 nor a backward pass; the mask and the call are what is tested."""
    query, key, value = tensors(SEGMENTS, dtype=torch.float32)
    with torch.no_grad():
        found, _ = row_attention(
            None, query, key, value, None, scaling=0.3, sliding_window=window, row_layout=RowLayout(SEGMENTS, "flex")
        )
        expected = by_definition(SEGMENTS, window, query, key, value)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_masks_are_made_once_for_all_layers():
    layout = RowLayout(SEGMENTS)
    like = tensors(SEGMENTS)[0]
    assert layout.masks(4, like) is layout.masks(4, like)
    assert layout.masks(4, like) is not layout.masks(None, like)
    assert layout.block_mask(4, like.device) is layout.block_mask(4, like.device)


def test_a_mask_that_inference_made_serves_training():
    """The causal matrix is kept; one made in inference mode could not be saved for a backward pass."""
    attention._causal_mask.cache_clear()
    segments = (Segment(30, 60, 60),)
    query, key, value = (tensor.requires_grad_() for tensor in tensors(segments))
    with torch.inference_mode():
        row_attention(None, query, key, value, None, row_layout=RowLayout(segments))
    attended, _ = row_attention(None, query, key, value, None, row_layout=RowLayout(segments))
    attended.sum().backward()
    assert math.isfinite(float(query.grad.sum()))
