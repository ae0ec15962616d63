"""The head's own backward passes against autograd on the whole matrix of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from slime_ray.model.head import ALIGNMENT, Head, _Tiles, plain_linear

POSITIONS, WIDTH, VOCABULARY = 13, 6, 29


def case(dtype=torch.float64, *, bias: bool = False, trained: bool = True):
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype).requires_grad_(trained)
    hidden = torch.randn(POSITIONS, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (POSITIONS,))
    incoming = torch.randn(POSITIONS, dtype=torch.promote_types(dtype, torch.float32))
    return linear, hidden, targets, incoming


def whole(linear, hidden, targets, cap):
    """Log-probabilities by autograd, from all logits at once."""
    logits = linear(hidden)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


# One logit at a time; some of the vocabulary at a time; whole positions but not all; everything in one tile. Of a
# trained head no tile is kept for the backward pass, or some are, or all.
@pytest.mark.parametrize("kept", [0, 200, 10**6], ids="{} kept".format)
@pytest.mark.parametrize("limit", [1, 50, 5 * VOCABULARY, 10**6], ids="{} logits".format)
@pytest.mark.parametrize("cap", [None, 0.7], ids="cap {}".format)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_values_and_gradients_are_those_of_autograd(trained, bias, cap, limit, kept):
    linear, hidden, targets, incoming = case(bias=bias, trained=trained)
    wanted = [hidden, *(linear.parameters() if trained else [])]
    expected = whole(linear, hidden, targets, cap)
    found = Head(linear, cap, VOCABULARY, limit, kept).logps(hidden, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    expected_gradients = torch.autograd.grad(expected, wanted, incoming)
    for mine, theirs in zip(torch.autograd.grad(found, wanted, incoming), expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("limit", "kept"), [(50, 0), (50, 200), (10**6, 0)])
def test_a_second_backward_pass_gives_the_same(limit, kept):
    linear, hidden, targets, incoming = case()
    logps = Head(linear, None, VOCABULARY, limit, kept).logps(hidden, targets)
    first = torch.autograd.grad(logps, [hidden, linear.weight], incoming, retain_graph=True)
    second = torch.autograd.grad(logps, [hidden, linear.weight], incoming)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("trained", [False, True])
def test_under_autocast_products_are_bfloat16_and_all_else_is_float32(trained):
    linear, hidden, targets, incoming = case(torch.float32, trained=trained)
    wanted = [hidden, *(linear.parameters() if trained else [])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Head(linear, None, VOCABULARY, 50).logps(hidden, targets)
    assert found.dtype == torch.float32
    # The same products in bfloat16, then float32 by autograd.
    logits = (hidden.bfloat16() @ linear.weight.bfloat16().T).float()
    expected = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(found, wanted, incoming), torch.autograd.grad(expected, wanted, incoming), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_bfloat16_weights_give_float32_log_probabilities():
    linear, hidden, targets, incoming = case(torch.bfloat16)
    found = Head(linear, None, VOCABULARY, 50).logps(hidden, targets)
    assert found.dtype == torch.float32
    to_hidden, to_weight = torch.autograd.grad(found, [hidden, linear.weight], incoming)
    assert to_hidden.dtype == to_weight.dtype == torch.bfloat16


def test_very_large_logits_overflow_nowhere():
    linear, hidden, targets, incoming = case(torch.float32)
    with torch.no_grad():
        linear.weight.mul_(1e4)
    found = Head(linear, None, VOCABULARY, 50).logps(hidden, targets)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found, hidden, incoming)[0]).all()


def test_a_head_that_is_more_than_a_linear_layer_is_not_taken_for_one():
    linear = nn.Linear(2, 3)
    assert plain_linear(linear) is linear
    assert plain_linear(nn.Sequential(linear)) is None
    hooked = nn.Linear(2, 3)
    hooked.register_forward_hook(lambda module, given, out: out)
    assert plain_linear(hooked) is None
    deep = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)).double()
    _, hidden, targets, incoming = case()
    found, expected = Head(deep, None, VOCABULARY, 50).logps(hidden, targets), whole(deep, hidden, targets, None)
    wanted = [hidden, *deep.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, wanted, incoming), torch.autograd.grad(expected, wanted, incoming), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


@settings(max_examples=100)
@given(positions=st.integers(1, 9000), vocabulary=st.integers(1, 2**18), limit=st.integers(1, 2**28))
def test_a_tile_that_is_not_the_whole_vocabulary_is_aligned_and_keeps_to_the_limit(positions, vocabulary, limit):
    hidden, weight, targets = (
        torch.empty(size, device="meta") for size in ((positions, 1), (vocabulary, 1), positions)
    )
    tiles = _Tiles(hidden, weight, None, targets, Head(nn.Identity(), None, vocabulary, limit), torch.float32)
    assert 1 <= tiles.width * tiles.height <= limit
    assert tiles.width == vocabulary or tiles.width % ALIGNMENT == 0 or limit < ALIGNMENT


# In the first three cases a tile is one position.
@pytest.mark.parametrize(("limit", "kept", "again"), [(50, 0, 13), (50, 240, 5), (50, 10**6, 0), (10**6, 0, 0)])
def test_what_is_kept_is_not_computed_again(limit, kept, again, monkeypatch):
    linear, hidden, targets, incoming = case()
    computed, logits = [], _Tiles._logits

    def counted(*arguments):
        computed.append(logits(*arguments))
        return computed[-1]

    monkeypatch.setattr(_Tiles, "_logits", counted)
    logps = Head(linear, None, VOCABULARY, limit, kept).logps(hidden, targets)
    torch.autograd.grad(logps, [hidden, linear.weight], incoming)
    assert sum(tile.numel() for tile in computed) == (POSITIONS + again) * VOCABULARY


class Products(TorchFunctionMode):
    """The dtypes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.__name__ in ("mm", "matmul", "__matmul__", "addmm", "addmm_"):
            self.dtypes.add(found.dtype)
        return found


@pytest.mark.skipif(torch.__version__ < "2.12", reason="meta tensors of older torch have no such product")
@pytest.mark.parametrize("trained", [False, True])
def test_products_of_bfloat16_are_written_in_float32(trained, monkeypatch):
    """Not rounded and widened again. On a CPU torch has no such product; on meta tensors it has."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    linear, hidden, targets, incoming = case(torch.bfloat16, trained=trained)
    hidden = hidden.detach().to("meta").requires_grad_()
    with Products() as products:
        found = Head(linear.to("meta"), None, VOCABULARY, 50).logps(hidden, targets.to("meta"))
        found.backward(incoming.to("meta"))
    assert products.dtypes == {torch.float32}
