"""peft's low-rank layer in fewer passes over memory: y = W x + s B A x with the low-rank part added in place.

peft computes W x, then B A x, then a scaled copy of that, then their sum, and autograd the same backwards: passes over
tensors as large as the activations, which at a small rank cost more than the low-rank products themselves.
"""

from typing import Any

import torch
from peft.tuners import lora
from torch import nn


class FusedLinear(lora.Linear):
    """What peft's layer computes. Anything but one plain adapter over a frozen linear layer is left to peft."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the layer. x: (..., in features); returns (..., out features)."""
        name = None if args or kwargs else self._only_adapter(x)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        flat = x.reshape(-1, x.shape[-1])
        fused: torch.Tensor = _LowRankLinear.apply(flat, base.weight, base.bias, down, up, self.scaling[name])
        # Given its shape out here, for models that change the result in place.
        return fused.view(*x.shape[:-1], -1)

    def _only_adapter(self, x: torch.Tensor) -> str | None:
        """Return the one adapter on the frozen layer; None where there is more to compute, or less."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name, base = self.active_adapters[0], self.base_layer
        if name not in self.lora_A or name in self.lora_variant or type(base) is not nn.Linear:
            return None
        if any(parameter.requires_grad for parameter in base.parameters()) or self.lora_B[name].bias is not None:
            return None
        dropout = self.lora_dropout[name]
        if not isinstance(dropout, nn.Identity) and self.training and getattr(dropout, "p", 1.0) > 0:
            return None
        # Without autocast peft casts between dtypes; that is its affair.
        same_dtype = x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype
        return name if same_dtype or torch.is_autocast_enabled(x.device.type) else None


class _LowRankLinear(torch.autograd.Function):
    """x W' + b + s (x A') B' of (positions, features), with W and b frozen.

    Only x, A, B and the low-rank states are kept for backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        device_type = x.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
        flat = x.to(dtype)
        low = flat @ down.to(dtype).T
        result = flat @ weight.to(dtype).T if bias is None else torch.addmm(bias.to(dtype), flat, weight.to(dtype).T)
        result.addmm_(low, up.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scaling, ctx.dtype = scaling, dtype
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        flat = gradient.to(ctx.dtype)
        low_grad = (flat @ up.to(ctx.dtype)).mul_(ctx.scaling)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (flat @ weight.to(ctx.dtype)).addmm_(low_grad, down.to(ctx.dtype)).to(x.dtype)
        down_grad = up_grad = None
        if ctx.needs_input_grad[3]:
            down_grad = (low_grad.T @ x.to(ctx.dtype)).to(down.dtype)
        if ctx.needs_input_grad[4]:
            up_grad = (flat.T @ low).mul_(ctx.scaling).to(up.dtype)
        return x_grad, None, None, down_grad, up_grad, None


def fuse_lora(lm: nn.Module) -> None:
    """Let every plain low-rank layer of a peft model compute in the fused way; nothing else changes."""
    for module in lm.modules():
        if type(module) is lora.Linear:
            module.__class__ = FusedLinear


def unfuse_lora(lm: nn.Module) -> None:
    """Undo `fuse_lora`."""
    for module in lm.modules():
        if type(module) is FusedLinear:
            module.__class__ = lora.Linear  # type: ignore[assignment]
