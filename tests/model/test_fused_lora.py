"""The fused low-rank layer against peft's own, on what it takes over and on what it leaves to peft."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn

from slime_ray.config.model import Lora
from slime_ray.model.fused_lora import FusedLinear, fuse_lora
from slime_ray.model.lora import add_lora

from .families import tiny_family


class Net(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=bias), nn.Linear(8, 5, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def nets(*, bias: bool = False, dtype=torch.float64, **options):
    """The same adapted net twice: peft's, and fused."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["first", "second"], **options)
    theirs = get_peft_model(Net(bias), config, autocast_adapter_dtype=False).to(dtype)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ours = copy.deepcopy(theirs)
    fuse_lora(ours)
    assert sum(isinstance(module, FusedLinear) for module in ours.modules()) == 2
    return ours, theirs


def compare(ours, theirs, x, *, tolerance=1e-12):
    results = []
    for net in (ours, theirs):
        given = x.clone().requires_grad_()
        out = net(given)
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad((out * weights).sum(), [given, *trained])])
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)])
def test_values_and_gradients_are_pefts(bias, shape):
    ours, theirs = nets(bias=bias)
    compare(ours, theirs, torch.randn(*shape, dtype=torch.float64))


def test_it_really_takes_over(monkeypatch):
    ours, _ = nets()
    monkeypatch.setattr(lora.Linear, "forward", None)
    ours(torch.randn(3, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_rslora": True}, {"lora_bias": True}], ids=str
)
def test_what_is_not_plain_is_left_to_peft(options):
    ours, theirs = nets(**options)
    x = torch.randn(4, 6, dtype=torch.float64)
    for net in (ours, theirs):
        net.train()
    torch.manual_seed(1)
    mine = ours(x)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, theirs(x), rtol=0, atol=1e-12)


def test_adapters_switched_off_or_merged_are_pefts_too():
    ours, theirs = nets()
    x = torch.randn(4, 6, dtype=torch.float64)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    adapted = theirs(x)
    torch.testing.assert_close(ours.merge_and_unload()(x), adapted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_rounds_as_peft_does(dtype):
    ours, theirs = nets(dtype=dtype)
    for net in (ours, theirs):
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    x = torch.randn(9, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(ours, theirs, x, tolerance=0.05)


def test_an_input_that_needs_no_gradient_gets_none():
    ours, _ = nets()
    ours(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters() if parameter.requires_grad)


def test_a_result_may_be_changed_in_place():
    """As Gemma 3n and Llama 4 do with what their projections give."""
    lm = add_lora(tiny_family("llama"), Lora(rank=2, targets=["q_proj"]))
    fuse_lora(lm)
    layer = next(module for module in lm.modules() if isinstance(module, FusedLinear))
    x = torch.randn(2, 3, 32, requires_grad=True)
    changed = layer(x)
    changed.mul_(2)
    (changed**2).sum().backward()
    ours, x.grad = x.grad, None
    ((2 * layer(x)) ** 2).sum().backward()
    torch.testing.assert_close(ours, x.grad)
