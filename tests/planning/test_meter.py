"""What a packed step of the paper's model runs, counted without data: a change that makes it dearer fails here.

Gemma 3 4B in bfloat16 with adapters of rank 64 and a frozen head; 12 pairs of 180 + 250 + 250 tokens. Layers of the two
depths are alike, so that what one adds is the difference.
"""

from importlib.metadata import version

import pytest
import torch
from torch import nn

from slime_ray.config.model import Lora, Model
from slime_ray.model.flops import Layout, Lengths, attention_flops, step_flops
from slime_ray.model.footprint import footprint
from slime_ray.model.meter import Meter, strip, without_data

TRANSFORMERS = tuple(map(int, version("transformers").split(".")[:2]))
PAIRS = [Lengths(180, 250, 250)] * 12
TOKENS = 8_160
LAYERS = 34
COUNTED = pytest.mark.skipif(
    torch.__version__ < "2.13" or TRANSFORMERS < (5, 23), reason="older versions run more kernels"
)
"""Limits are those of the versions of constraints.txt."""


@pytest.fixture(scope="module")
def model():
    return footprint(Model(source="google/gemma-3-4b-pt", dtype="bfloat16", lora=Lora(rank=64, alpha=128.0)))


@pytest.fixture(scope="module")
def depths(model):
    return [model.meter(model.model_of(layers), PAIRS, gpu=True) for layers in (2, 4)]


def whole(few: float, more: float) -> float:
    """A figure of 34 layers, from those of 2 and 4."""
    return few + (more - few) / 2 * (LAYERS - 2)


def test_flops_are_the_formulas(model, depths):
    """126.50 TFLOP of products, counted one by one, and 1.69 of attention, whose kernel is not run."""
    layout = Layout.of_packed(PAIRS)
    counted = whole(*(meter.products.flops for meter in depths))
    assert counted == pytest.approx(126.50e12, rel=1e-4)
    attention = attention_flops(model.sizes, layout)
    assert attention == pytest.approx(1.69e12, rel=5e-3)
    assert counted + attention == pytest.approx(128.19e12, rel=1e-4)
    assert step_flops(model.sizes, layout, head_trained=False) == pytest.approx(counted + attention, rel=1e-5)


@COUNTED
def test_kernels_of_a_layer_are_no_more_than_they_were(depths):
    few, more = depths
    assert (more.products.kernels - few.products.kernels) / 2 <= 56
    assert (more.other_kernels.kernels - few.other_kernels.kernels) / 2 <= 103


@COUNTED
def test_bytes_beside_the_products_are_no_more_than_they_were(depths):
    """Norms, rotations, activations, the head's softmax and adapters' sums: what a step waits for on a GPU."""
    assert whole(*(meter.other_kernels.bytes for meter in depths)) / TOKENS <= 20.5e6


@COUNTED
def test_a_row_of_8160_tokens_takes_no_more_memory_than_it_did(model, depths):
    assert whole(*(meter.peak for meter in depths)) <= 31.3 * 2**30
    again = model.step(TOKENS, PAIRS[0], gpu=True, checkpointing=True)
    assert again <= 3.6 * 2**30


def test_without_compiled_kernels_a_row_takes_more_and_moves_more(model, depths):
    plain = footprint(model.model.model_copy(update={"fused": False}))
    deeper = plain.meter(plain.model_of(4), PAIRS, gpu=True)
    assert deeper.other_kernels.bytes > 3 * depths[1].other_kernels.bytes
    assert deeper.peak > 1.2 * depths[1].peak
    assert deeper.products == depths[1].products


def test_a_fused_function_is_one_kernel_each_way_and_keeps_its_input_alone():
    with without_data():
        x = torch.empty(4, 8, requires_grad=True)
        with Meter() as meter:
            y = meter.fused(lambda x: x.exp().sin() * x)(x)
            assert (meter.other_kernels.kernels, meter.other_kernels.bytes, meter.live) == (1, 2 * 4 * 32, 4 * 32)
            y.backward(torch.empty(4, 8))
            # The gradient and the input are read, and the input's gradient is written.
            assert (meter.other_kernels.kernels, meter.other_kernels.bytes) == (2, 5 * 4 * 32)


def test_the_meter_counts_a_step_by_hand():
    """y = relu(x W): one product forward and two backward of 4 x 8 by 8 x 16, everything in float32."""
    with without_data():
        with torch.device("meta"):
            layer = nn.Linear(8, 16, bias=False)
        strip(layer)
        x = torch.empty(4, 8, requires_grad=True)
        with Meter() as meter:
            y = layer(x).relu()
            # relu keeps what it gives, not what it was given.
            assert meter.live == 4 * 4 * 16
            assert meter.peak == 2 * meter.live
            y.backward(torch.empty(4, 16))
            del y
    assert meter.products.kernels == 3
    assert meter.products.flops == 3 * 2 * 4 * 8 * 16
    x_bytes, w_bytes, y_bytes = 4 * 4 * 8, 4 * 8 * 16, 4 * 4 * 16
    assert meter.products.bytes == 3 * (x_bytes + w_bytes + y_bytes)
    # relu reads and writes, and its derivative reads two and writes one; the gradient that is given is no kernel.
    assert meter.other_kernels.bytes == 5 * y_bytes
    # Both gradients are left.
    assert meter.live == x_bytes + w_bytes
