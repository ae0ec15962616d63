"""Elementwise work in one kernel each: RMSNorm, the gated activation, rotary embedding and the softmax of the head.

transformers' modules compute each in several kernels, and every kernel reads and writes the activations. Compiled, each
reads its inputs once and keeps little else for the backward pass. Functions are compiled, not layers: matrix products,
adapters, sharding and checkpointing stay as they are. On a GPU only.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partialmethod
from subprocess import SubprocessError
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slime_ray.model.attention import row_attention

DEVICES = ("cuda",)
"""Kinds of devices on which modules compute in the fused way; elsewhere they compute as transformers wrote them."""

GRAPHS = 64
"""Compilations of one function at most: by dtype and width, with and without gradients. A test counts what is used."""

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu_pytorch_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
}

logger = logging.getLogger(__name__)

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_compilers: list[Compiler] = []


@contextmanager
def compiled_by(compiler: Compiler) -> Iterator[None]:
    """Have another compiler, such as one that counts, make the fused functions meanwhile, for every device."""
    _compilers.append(compiler)
    try:
        yield
    finally:
        _compilers.pop()


def runs_fused(x: torch.Tensor) -> bool:
    """Tell whether work on this tensor is done in the fused way."""
    return bool(_compilers) or x.device.type in DEVICES


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as compiled kernels, for any number of tokens."""
    return _compilers[-1](function) if _compilers else _compiled(function)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"recompile_limit": GRAPHS, "isolate_recompiles": True}
    return torch.compile(function, dynamic=True, fullgraph=True, **options)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, around_one: bool) -> torch.Tensor:
    """Divide x, (tokens, size), by its root mean square, times `weight`, or, as Gemma has it, 1 + `weight`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if around_one:
        return (normed * (1.0 + weight.to(wide.dtype))).to(x.dtype)
    return weight * normed.to(x.dtype)


def gated(gate: torch.Tensor, up: torch.Tensor, *, activation: str) -> torch.Tensor:
    """Multiply the activation of `gate` by `up`, such as SwiGLU; (tokens, size) all."""
    return _ACTIVATIONS[activation](gate) * up


def rotary(
    module: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query and key, (1, tokens, heads, head size), by their positions. cos, sin: (1, tokens, head size)."""
    # What is compared with a number of the module is a number in the kernel, too.
    if query.shape[-1] != module.head_dim or key.shape[-1] != module.head_dim or cos.shape[-1] != module.head_dim:
        raise ValueError(f"queries, keys and angles must have the head size {module.head_dim}")
    # (-second, first) * sin is (second, first) * (-sin, sin), whose derivative is of the same form, and one kernel.
    low, high = sin.chunk(2, -1)
    cos, sin = cos.unsqueeze(2), torch.cat((-low, high), -1).unsqueeze(2)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        swapped = x.unflatten(-1, (2, module.head_dim // 2)).flip(-2).flatten(-2)
        return x * cos + swapped * sin

    return rotate(query), rotate(key)


def softmax_tile(
    logits: torch.Tensor, top: torch.Tensor, cap: float | None, dtype: torch.dtype | None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Compute one tile of a softmax over the vocabulary, before its normalization.

    Args:
        logits: (positions, width), soft-capped.
        top: (positions, 1), the largest logit of the tiles before.
        cap: where logits were soft-capped.
        dtype: of the exponentials; None for none.

    Returns:
        The exponentials, times the cap's derivative; their sum without it; the largest logit so far.
    """
    largest = torch.maximum(top, logits.amax(1, keepdim=True))
    exponentials = (logits - largest).exp()
    total = exponentials.sum(1, keepdim=True)
    if dtype is None:
        return None, total, largest
    if cap is not None:
        exponentials = exponentials * (1 - (logits / cap).square())
    return exponentials.to(dtype), total, largest


def head_gradient(
    logits: torch.Tensor,
    normaliser: torch.Tensor,
    upstream: torch.Tensor,
    target_gradient: torch.Tensor,
    column: torch.Tensor,
    cap: float | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute the gradient by a tile's raw logits, upstream * (onehot - p).

    Args:
        logits: (positions, width), soft-capped.
        normaliser: (positions, 1), the log-sum-exp over the whole vocabulary.
        upstream: (positions, 1), the gradient by each position's log-probability.
        target_gradient: (positions, 1), the same times the cap's derivative at the target; 0 for one in another tile.
        column: (positions, 1), where in the tile the target is.
        cap: where logits were soft-capped.
        dtype: of the result.
    """
    probabilities = (logits - normaliser).exp()
    if cap is not None:
        probabilities = probabilities * (1 - (logits / cap).square())
    at_target = torch.arange(logits.shape[1], device=logits.device) == column
    return (torch.where(at_target, target_gradient, 0.0) - upstream * probabilities).to(dtype)


def _norm_forward(self: Any, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    if not runs_fused(x):
        return plain(self, x)
    around_one = hasattr(self, "eps")
    eps = self.eps if around_one else self.variance_epsilon
    return compiled(rms_norm)(x.flatten(0, -2), self.weight, eps, around_one=around_one).view(x.shape)


def _mlp_forward(self: Any, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    activation = getattr(self.config, "hidden_activation", None) or self.config.hidden_act
    if not runs_fused(x) or activation not in _ACTIVATIONS:
        return plain(self, x)
    gate, up = (project(x).flatten(0, -2) for project in (self.gate_proj, self.up_proj))
    return self.down_proj(compiled(gated)(gate, up, activation=activation)).view(x.shape)


def _attention_forward(
    self: Any,
    plain: Callable[..., Any],
    hidden_states: torch.Tensor,
    position_embeddings: Any = None,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention of packed rows; leave other input to transformers."""
    if options.get("row_layout") is None or not runs_fused(hidden_states):
        return plain(self, hidden_states, position_embeddings, attention_mask, **options)
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key, value = (project(hidden_states).view(shape) for project in (self.q_proj, self.k_proj, self.v_proj))
    if hasattr(self, "q_norm"):
        query, key = self.q_norm(query), self.k_norm(key)
    query, key = compiled(rotary)(self, query, key, *position_embeddings)
    attended, _ = row_attention(
        self,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=getattr(self, "sliding_window", None),
        **options,
    )
    return self.o_proj(attended.flatten(2)), None


_FORWARDS: dict[str, Callable[..., Any]] = {
    **{f"{family}RMSNorm": _norm_forward for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3")},
    **{f"{family}MLP": _mlp_forward for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3")},
    # Mistral's takes its window from elsewhere.
    **{f"{family}Attention": _attention_forward for family in ("Llama", "Qwen2", "Qwen3", "Gemma3")},
}
"""The modules of transformers that are known here, by the names of their classes."""


def fuse(lm: nn.Module) -> bool:
    """Let norms, gated MLPs and attention compute their elementwise work fused.

    Modules of classes that are not known here stay as they are. False where nothing can be compiled; then all stay.
    """
    if not _compilers and (reason := _why_not_compiled()):
        logger.warning("Norms and activations are not compiled, which is slower: %s.", reason)
        return False
    for module in lm.modules():
        module_class: Any = type(module)
        if fused_class := _fused_class(module_class):
            module.__class__ = fused_class
    return True


@cache
def _fused_class(module_class: Any) -> Any:
    """Return the class with a fused forward pass; None for one that is not known."""
    forward = (
        _FORWARDS.get(module_class.__name__) if module_class.__module__.startswith("transformers.models.") else None
    )
    if forward is None:
        return None
    return type(
        f"Fused{module_class.__name__}", (module_class,), {"forward": partialmethod(forward, module_class.forward)}
    )


@cache
def _why_not_compiled() -> str | None:
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        return f"it needs torch 2.13 or newer, and this is {torch.__version__}"
    try:
        x = torch.ones(2, 8, device=DEVICES[0])
        compiled(rms_norm)(x, nn.Parameter(x[0]), 1e-6, around_one=False)
    except (OSError, RuntimeError, SubprocessError) as error:
        # No Triton, no C compiler, no headers of Python: the first lines name it.
        return " ".join(str(error).split("\n")[:2]).strip().rstrip(".")
    return None
