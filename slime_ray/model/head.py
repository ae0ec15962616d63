"""From last hidden states to log-probabilities of given tokens, a tile of positions and vocabulary at a time.

A whole matrix of logits never exists, neither forward nor backward. Three ways lead there:

- a frozen linear head: d logp_t / d h_t = W[y_t] - sum_v p_v W[v] does not depend on the incoming gradient, so one pass
  stores that row beside logp_t and nothing is computed again;
- a trained linear head: the backward pass takes the tiles that were kept, and computes the logits of the others again;
- any other head (adapters on it, a custom module): torch's own checkpointing, some positions at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from slime_ray.model.decoder import UNCAPPED
from slime_ray.model.fused_ops import compiled, head_gradient, runs_fused, softmax_tile

_DIVISORS = {
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
        "logits_scaling",
    ),
    "inkling_text": "logits_mup_width_multiplier",
    "minicpm3": "logits_scaling",
}
_FACTORS = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), "logit_scale"),
    "falcon_h1": "lm_head_multiplier",
    "hyperclovax": "logits_scaling",
}
_CAPS = {"recurrent_gemma": "logits_soft_cap", "xlstm": "output_logit_soft_cap"}
ALIGNMENT = 128
"""Width of a tile, in logits, is a multiple of it, so that all matrices that are multiplied start at whole vectors."""


def logit_scale(config: Any) -> float:
    """Return the factor of a model's logits. config: the whole model's: a multimodal wrapper may not scale."""
    model_type, text = config.model_type, config.get_text_config()
    if model_type in _DIVISORS:
        return 1.0 / getattr(text, _DIVISORS[model_type])
    factor = getattr(text, _FACTORS[model_type], None) if model_type in _FACTORS else None
    return 1.0 if factor is None else float(factor)


def logit_cap(config: Any) -> float | None:
    """Return the soft cap of a model's logits, after any scale; None without one. config: the whole model's."""
    if config.model_type in UNCAPPED:
        return None
    return getattr(config.get_text_config(), _CAPS.get(config.model_type, "final_logit_softcapping"), None)


@dataclass(frozen=True)
class Head:
    """An output head: `module` maps (positions, hidden size) to logits, times `scale`, then soft-capped at `cap`.

    vocabulary: logits a position. limit: logits alive at a time, at least those of one position for a head that is no
    plain linear layer. cache_limit: logits on top of them that a trained linear head keeps for the backward pass, in
    tiles of an eighth of it. fused: whether elementwise work is compiled where it can be.
    """

    module: nn.Module
    cap: float | None
    vocabulary: int
    limit: int
    cache_limit: int = 0
    scale: float = 1.0
    fused: bool = False

    @property
    def positions(self) -> int:
        """Positions whose whole logits stay within the limit."""
        return max(1, self.limit // self.vocabulary)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute (positions, vocabulary) logits in at least float32."""
        logits = self.module(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute log-probabilities of `targets` in nats, (positions,), in at least float32, with gradients.

        hidden: (positions, hidden size); targets: (positions,).
        """
        linear = plain_linear(self.module)
        if linear is not None:
            trained = linear.weight.requires_grad or (linear.bias is not None and linear.bias.requires_grad)
            method: Any = _TrainedHead if trained and torch.is_grad_enabled() else _FrozenHead
            bias = None if linear.bias is None else linear.bias * self.scale
            scaled = hidden if self.scale == 1.0 else hidden * self.scale
            logps: torch.Tensor = method.apply(scaled, linear.weight, bias, targets, self)
            return logps
        recompute = torch.is_grad_enabled() and len(targets) > self.positions
        pieces = zip(hidden.split(self.positions), targets.split(self.positions), strict=True)
        return torch.cat(
            [
                checkpoint(self._piece_logps, *piece, use_reentrant=False) if recompute else self._piece_logps(*piece)
                for piece in pieces
            ]
        )

    def _piece_logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.logits(hidden)
        return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def plain_linear(module: nn.Module) -> nn.Linear | None:
    """Return the linear layer that `module` is; None where it computes more.

    peft wraps a head that is trained in full; a head with adapters is more than its base layer.
    """
    if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        wrapper: Any = module
        disabled = wrapper.disable_adapters or wrapper.active_adapter not in wrapper.modules_to_save
        module = wrapper.original_module if disabled else wrapper.modules_to_save[wrapper.active_adapter]
    hooks = module._forward_hooks or module._forward_pre_hooks
    return module if type(module) is nn.Linear and not hooks else None


_TileCache = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
"""Tiles that wait for the backward pass, by where they start: exponentials, and the largest logits, above them."""


class _Tiles:
    """The logits of a linear head, tile after tile in one buffer: fresh memory for each would cost more than its use.

    A tile is as many positions as there are, or as fit, and as much of the vocabulary as `limit` then leaves; so the
    weights, which are larger than any cache, are read once. hidden: (positions, hidden size); weight: (vocabulary,
    hidden size). Products are computed in autocast's dtype where that is on, else in that of `hidden`; all that follows
    in float32 or wider.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        dtype: torch.dtype,
    ):
        positions, vocabulary, limit, min_width = len(targets), len(weight), head.limit, 4096
        if head.cache_limit and positions * vocabulary > limit:
            # As fast on a CPU as larger ones.
            limit, min_width = min(limit, max(1, head.cache_limit // 8)), 1024
        self.hidden, self.weight, self.bias = hidden.to(dtype), weight.to(dtype), bias
        self.targets, self.cap, self.dtype = targets, head.cap, dtype
        self.fused = head.fused and runs_fused(hidden)
        self.width = min(vocabulary, max(limit // max(positions, 1), min(limit, min_width)))
        if ALIGNMENT <= self.width < vocabulary:
            self.width -= self.width % ALIGNMENT
        self.height = max(1, min(positions, limit // self.width))
        self.wide_dtype = torch.promote_types(dtype, torch.float32)
        # One tile that holds everything takes no more when it is kept.
        self.is_single = self.height >= positions and self.width >= vocabulary
        self.cache_room = self.height * self.width if self.is_single else head.cache_limit

    @cached_property
    def buffer(self) -> torch.Tensor:
        """Where the logits of a tile are until the next one's."""
        return self.hidden.new_empty(self.height * self.width, dtype=self.wide_dtype)

    def blocks(self) -> Iterator[slice]:
        """Split the positions into blocks of a tile's height."""
        return (slice(start, start + self.height) for start in range(0, len(self.targets), self.height))

    def across(self, block: slice, cache: _TileCache | None = None) -> Iterator["_Tile"]:
        """Iterate over the tiles of a block of positions. Each is overwritten by the next.

        cache: tiles of the forward pass, taken out of it instead of computed again.
        """
        targets = self.targets[block]
        for start in range(0, len(self.weight), self.width):
            piece = slice(start, min(start + self.width, len(self.weight)))
            entry = cache.pop((block.start, start), None) if cache else None
            logits, top = entry or (self._logits(self.hidden[block], piece), None)
            inside = (targets >= piece.start) & (targets < piece.stop)
            column = (targets - start).clamp(0, logits.shape[1] - 1)
            yield _Tile(piece, self.weight[piece], logits, inside[:, None], column[:, None], top)

    def _logits(self, states: torch.Tensor, piece: slice) -> torch.Tensor:
        weight = self.weight[piece]
        logits = self.buffer[: len(states) * len(weight)].view(len(states), len(weight))
        _product(logits, states, weight.T)
        if self.bias is not None:
            logits += self.bias[piece]
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def softmax(
        self, tile: "_Tile", top: torch.Tensor, dtype: torch.dtype | None
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Compute `softmax_tile`, in place of the logits where that is not compiled."""
        if self.fused:
            result: tuple[Any, torch.Tensor, torch.Tensor] = compiled(softmax_tile)(tile.logits, top, self.cap, dtype)
            return result
        slope = None if dtype is None else self.slope(tile.logits)
        largest = torch.maximum(top, tile.logits.amax(1, keepdim=True))
        exponentials = tile.logits.sub_(largest).exp_()
        total = exponentials.sum(1, keepdim=True)
        if dtype is None:
            return None, total, largest
        return (exponentials if slope is None else exponentials.mul_(slope)).to(dtype), total, largest

    def gradient(
        self, tile: "_Tile", normaliser: torch.Tensor, upstream: torch.Tensor, target_gradient: torch.Tensor
    ) -> torch.Tensor:
        """Compute the gradient by raw logits, upstream * (onehot - p), over the logits where that is not compiled.

        target_gradient: upstream times the cap's derivative at the target.
        """
        target_gradient = torch.where(tile.inside, target_gradient, 0.0)
        if tile.top is not None:
            return tile.logits.mul_((tile.top - normaliser).exp_().mul_(-upstream)).scatter_add_(
                1, tile.column, target_gradient
            )
        if self.fused:
            dtype = self.dtype if self.bias is None else self.wide_dtype
            result: torch.Tensor = compiled(head_gradient)(
                tile.logits, normaliser, upstream, target_gradient, tile.column, self.cap, dtype
            )
            return result
        slope = self.slope(tile.logits)
        probabilities = tile.logits.sub_(normaliser).exp_()
        probabilities = probabilities if slope is None else probabilities.mul_(slope)
        return probabilities.mul_(-upstream).scatter_add_(1, tile.column, target_gradient)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return the derivative of the capped by the raw logits, given the capped; None without a cap."""
        return None if self.cap is None else (logits / self.cap).square_().neg_().add_(1)


class _Tile(NamedTuple):
    """vocabulary: which part. weight: (width, hidden size). logits: (height, width). inside: (height, 1), whether a
    position's target is in this part; column: (height, 1), where, and anything for one that is not. top: (height, 1),
    the largest logits, of a tile that was kept and holds exponentials below them, times the cap's derivative.

    Masks instead of indices, whose number would have to come from the device first.
    """

    vocabulary: slice
    weight: torch.Tensor
    logits: torch.Tensor
    inside: torch.Tensor
    column: torch.Tensor
    top: torch.Tensor | None = None

    def pick(self, target: torch.Tensor) -> torch.Tensor:
        """Return the targets' (height, 1) logits: this tile's where they are in it, else those of `target`."""
        return torch.where(self.inside, self.logits.gather(1, self.column), target)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


class _FrozenHead(torch.autograd.Function):
    """logp_t, and in the same pass d logp_t / d h_t, which backward scales by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> torch.Tensor:
        tiles = _Tiles(hidden, weight, bias, targets, head, _compute_dtype(hidden))
        logps = hidden.new_empty(len(targets), dtype=tiles.wide_dtype)
        # Without a backward pass to come there is nothing to prepare.
        hidden_gradients = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for block in tiles.blocks():
            count = len(targets[block])
            target = hidden.new_empty(count, 1, dtype=tiles.wide_dtype)
            # Softmax, one tile after another (Milakov and Gimelshein 2018): the largest logit so far, the sum of the
            # exponentials below it, and the rows of the weights in these proportions.
            top = torch.full_like(target, -math.inf)
            total = torch.zeros_like(target)
            expected = (
                hidden.new_zeros(count, hidden.shape[1], dtype=tiles.wide_dtype)
                if hidden_gradients is not None
                else None
            )
            for tile in tiles.across(block):
                target = tile.pick(target)
                rescale = top
                exponentials, tile_total, top = tiles.softmax(tile, top, None if expected is None else tiles.dtype)
                rescale = (rescale - top).exp_()
                total.mul_(rescale).add_(tile_total)
                if expected is not None:
                    _add_product(expected.mul_(rescale), exponentials, tile.weight)
            logps[block] = (target - top - total.log()).squeeze(1)
            if hidden_gradients is not None and expected is not None:
                target_weight, slope = tiles.weight[targets[block]], tiles.slope(target)
                hidden_gradients[block] = (target_weight if slope is None else target_weight * slope) - expected.div_(
                    total
                )
        if hidden_gradients is not None:
            ctx.save_for_backward(hidden_gradients)
        return logps

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (hidden_gradients,) = ctx.saved_tensors
        return (hidden_gradients * gradient[:, None]).to(hidden_gradients.dtype), None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """logp_t with gradients for hidden states, weight and bias; backward computes tiles again that were not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> torch.Tensor:
        tiles = _Tiles(hidden, weight, bias, targets, head, _compute_dtype(hidden))
        target = hidden.new_empty(len(targets), 1, dtype=tiles.wide_dtype)
        normaliser = torch.full_like(target, -math.inf)
        cache: _TileCache = {}
        for block in tiles.blocks():
            for tile in tiles.across(block):
                target[block] = tile.pick(target[block])
                lowest = torch.full_like(target[block], -math.inf)
                keep = tile.logits.numel() <= tiles.cache_room
                exponentials, total, top = tiles.softmax(tile, lowest, tiles.wide_dtype if keep else None)
                normaliser[block] = torch.logaddexp(normaliser[block], top + total.log())
                if keep:
                    if tiles.is_single:
                        # Probabilities, which cost one pass less than exponentials to be scaled later.
                        exponentials, top = exponentials.div_(total), normaliser[block]
                    cache[block.start, tile.vocabulary.start] = exponentials, top
                    tiles.cache_room -= tile.logits.numel()
                    del tiles.buffer
        ctx.save_for_backward(hidden, weight, bias, targets, target, normaliser)
        ctx.head, ctx.dtype, ctx.cache = head, tiles.dtype, cache
        return (target - normaliser).squeeze(1)

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, None, None]:
        hidden, weight, bias, targets, target, normaliser = ctx.saved_tensors
        tiles = _Tiles(hidden, weight, bias, targets, ctx.head, ctx.dtype)
        # Sums over tiles are kept wide; over none, where autograd would have none either.
        hidden_grad = hidden.new_zeros(hidden.shape, dtype=tiles.wide_dtype) if ctx.needs_input_grad[0] else None
        weight_grad = (weight.new_empty if len(targets) else weight.new_zeros)(weight.shape, dtype=tiles.wide_dtype)
        bias_grad = None if bias is None else bias.new_zeros(bias.shape, dtype=tiles.wide_dtype)
        target_slope = tiles.slope(target)
        upstream = gradient[:, None].to(tiles.wide_dtype)
        target_gradient = upstream if target_slope is None else upstream * target_slope
        for block in tiles.blocks():
            for tile in tiles.across(block, ctx.cache):
                logits_grad = tiles.gradient(tile, normaliser[block], upstream[block], target_gradient[block])
                if bias_grad is not None:
                    bias_grad[tile.vocabulary] += logits_grad.sum(0)
                logits_grad = logits_grad.to(tiles.dtype)
                add = _add_product if block.start else _product
                add(weight_grad[tile.vocabulary], logits_grad.T, tiles.hidden[block])
                if hidden_grad is not None:
                    _add_product(hidden_grad[block], logits_grad, tile.weight)
        return (
            None if hidden_grad is None else hidden_grad.to(hidden.dtype),
            weight_grad.to(weight.dtype),
            None if bias_grad is None or bias is None else bias_grad.to(bias.dtype),
            None,
            None,
        )


def _product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compute left @ right into `out`, in its dtype; only a CPU rounds to a narrower one first."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if left.device.type == "cpu":
        return out.copy_(left @ right)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to `total`, in one pass where the dtypes are the same."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += _product(torch.empty_like(total), left, right)
