"""From last hidden states to log-probabilities of given tokens, a chunk of positions at a time.

A whole matrix of logits never exists, neither forward nor backward. Three ways lead there:

- a frozen linear head: d logp_t / d h_t = W[y_t] - sum_v p_v W[v] does not depend on the incoming gradient, so one pass
  stores that row beside logp_t and nothing is computed again;
- a trained linear head: the backward pass computes each chunk's logits again, unless all fit into one chunk;
- any other head (adapters on it, a custom module): torch's own checkpointing of each chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Head:
    """An output head: `module` maps (positions, hidden size) to logits, soft-capped at `cap` where the model is.

    chunk: positions whose logits are alive at a time.
    """

    module: nn.Module
    cap: float | None
    chunk: int

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(positions, vocabulary) logits in at least float32."""
        logits = self.module(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(positions,) log-probabilities of `targets` in nats, in at least float32, with their gradients.

        hidden: (positions, hidden size); targets: (positions,).
        """
        linear = plain_linear(self.module)
        if linear is None:
            return torch.cat(
                [
                    checkpoint(self._of_chunk, *piece, use_reentrant=False)
                    if torch.is_grad_enabled() and len(targets) > self.chunk
                    else self._of_chunk(*piece)
                    for piece in zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True)
                ]
            )
        trained = linear.weight.requires_grad or (linear.bias is not None and linear.bias.requires_grad)
        method: Any = _TrainedHead if trained and torch.is_grad_enabled() else _FrozenHead
        return method.apply(hidden, linear.weight, linear.bias, targets, self.cap, self.chunk, hidden.requires_grad)

    def _of_chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.logits(hidden)
        return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def plain_linear(module: nn.Module) -> nn.Linear | None:
    """The linear layer that `module` computes and nothing more; None where there is more to it.

    peft wraps a head that is trained in full; a head with adapters is more than its base layer.
    """
    if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        wrapper: Any = module
        off = wrapper.disable_adapters or wrapper.active_adapter not in wrapper.modules_to_save
        module = wrapper.original_module if off else wrapper.modules_to_save[wrapper.active_adapter]
    hooked = module._forward_hooks or module._forward_pre_hooks
    return module if type(module) is nn.Linear and not hooked else None


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float | None) -> torch.Tensor:
    """(positions, vocabulary) logits in at least float32; the matrix product in the dtype of its inputs."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits += bias
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _probabilities(logits: torch.Tensor, lse: torch.Tensor, cap: float | None) -> torch.Tensor:
    """softmax(logits), written over them, and times the slope of the soft-cap where there is one."""
    if cap is None:
        return logits.sub_(lse[:, None]).exp_()
    slope = 1 - (logits / cap).square_()
    return logits.sub_(lse[:, None]).exp_().mul_(slope)


def _slope_at(target_logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """(positions,) derivative of the soft-capped target logits by the raw ones."""
    return torch.ones_like(target_logits) if cap is None else 1 - (target_logits / cap).square()


class _FrozenHead(torch.autograd.Function):
    """logp_t, and in the same pass d logp_t / d h_t, which backward scales by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        cap: float | None,
        chunk: int,
        needs_gradient: bool,
    ) -> torch.Tensor:
        dtype = _compute_dtype(hidden)
        weight = weight.to(dtype)
        # In inference there is no backward pass to prepare for.
        slopes = torch.empty_like(hidden) if needs_gradient else None
        logps = []
        for start in range(0, len(targets), chunk):
            piece = slice(start, start + chunk)
            logits = _logits(hidden[piece].to(dtype), weight, bias, cap)
            lse = logits.logsumexp(1)
            target = logits.gather(1, targets[piece, None]).squeeze(1)
            logps.append(target - lse)
            if slopes is not None:
                own = weight[targets[piece]] * _slope_at(target, cap)[:, None]
                slopes[piece] = own - _probabilities(logits, lse, cap).to(dtype) @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None]).to(slopes.dtype), None, None, None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """logp_t with gradients for hidden states, weight and bias; logits are computed again where they were many."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        cap: float | None,
        chunk: int,
        needs_gradient: bool,
    ) -> torch.Tensor:
        dtype = _compute_dtype(hidden)
        cast = weight.to(dtype)
        logps, lses, slopes = [], [], []
        probabilities = None
        for start in range(0, len(targets), chunk):
            piece = slice(start, start + chunk)
            logits = _logits(hidden[piece].to(dtype), cast, bias, cap)
            lse = logits.logsumexp(1)
            target = logits.gather(1, targets[piece, None]).squeeze(1)
            logps.append(target - lse)
            lses.append(lse)
            slopes.append(_slope_at(target, cap))
            if len(targets) <= chunk:
                probabilities = _probabilities(logits, lse, cap)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(lses), torch.cat(slopes), probabilities)
        ctx.cap, ctx.chunk, ctx.dtype, ctx.needs_hidden = cap, chunk, dtype, needs_gradient
        return torch.cat(logps)

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, None, None, None, None]:
        hidden, weight, bias, targets, lse, slopes, kept = ctx.saved_tensors
        cast = weight.to(ctx.dtype)
        to_hidden = torch.empty_like(hidden) if ctx.needs_hidden else None
        to_weight = torch.zeros_like(weight)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(targets), ctx.chunk):
            piece = slice(start, start + ctx.chunk)
            states = hidden[piece].to(ctx.dtype)
            if kept is None:
                probabilities = _probabilities(_logits(states, cast, bias, ctx.cap), lse[piece], ctx.cap)
            else:
                probabilities = kept
            incoming = gradient[piece]
            # d loss / d logits = incoming * (onehot - p), written over the probabilities, which serve no more.
            to_logits = probabilities.mul_(-incoming[:, None])
            to_logits.scatter_add_(1, targets[piece, None], (incoming * slopes[piece])[:, None])
            if to_bias is not None:
                to_bias += to_logits.sum(0)
            to_logits = to_logits.to(ctx.dtype)
            if to_hidden is not None:
                to_hidden[piece] = to_logits @ cast
            to_weight.addmm_(to_logits.T, states) if weight.dtype == ctx.dtype else to_weight.add_(to_logits.T @ states)
        return to_hidden, to_weight, to_bias, None, None, None, None
