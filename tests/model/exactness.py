"""Whether packed rows give the numbers of every sequence run alone, in float64, and any division of a step the same."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from slime_ray.bench.lengths import BenchPair
from slime_ray.bench.recipes import OBJECTIVE
from slime_ray.data.packing import pack
from slime_ray.model.attention import Kernel
from slime_ray.model.flops import Lengths
from slime_ray.model.logprobs import Policy

VOCABULARY = 211
WINDOW = 8
"""Positions that a sliding layer sees, fewer than any sequence here has."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Llama": lambda: LlamaConfig(**SIZES),
    "Qwen3": lambda: Qwen3Config(**SIZES),
    "Gemma3": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
}
"""The architectures that are promised exact, small; in Gemma3 two layers slide."""

BOUNDS = {"log-probabilities": 1e-12, "gradients": 1e-10, "loss": 1e-12, "gradient of the loss": 1e-12}
"""The largest absolute difference that passes, by what is compared."""

DIVISIONS = (1, 2, 4)
"""Micro-batches of a step."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: the largest absolute difference and the bound that it must not pass."""

    what: str
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it holds; a NaN does not."""
        return self.measured <= self.bound


class DoubleNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own goes through float32, which alone rounds at 1e-8."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight = norm.weight
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self.eps = getattr(norm, "eps", None) or norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size); returns the same shape."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (self.offset + self.weight)


def double_model(config: PreTrainedConfig, seed: int) -> Any:
    """A random model that computes in float64 throughout."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double()
        for parameter in lm.parameters():
            # Far enough from uniform that a token which sees what it must not shows.
            nn.init.normal_(parameter, std=0.15)
    make_norms_double(lm)
    return lm.eval()


def make_norms_double(lm: nn.Module) -> None:
    """Exchange every RMSNorm of transformers'."""
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, DoubleNorm(child))


def random_pairs(count: int, seed: int) -> list[BenchPair]:
    """Pairs of different lengths, all sequences longer than the window."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())

    return [BenchPair(draw(WINDOW, 40), draw(1, 60), draw(1, 60)) for _ in range(count)]


def compare(lm: Any, step: Sequence[BenchPair], kernel: Kernel = "auto") -> list[Check]:
    parameters = list(lm.parameters())
    separate = torch.cat([alone(lm, pair.prompt_ids, pair.chosen_ids) for pair in step]
                      + [alone(lm, pair.prompt_ids, pair.rejected_ids) for pair in step])  # fmt: skip
    alone_gradients = gradients(weighed(separate), parameters)
    policy = Policy(lm, kernel=kernel)
    logps = policy(pack(step))
    packed = torch.cat([logps.chosen, logps.rejected])
    lengths = [Lengths(0, len(pair.chosen_ids), len(pair.rejected_ids)) for pair in step]
    alone_loss = _loss_of(separate.detach(), lengths)
    checks = [
        ("log-probabilities, packed and alone", "log-probabilities", _largest([packed - separate])),
        ("gradients, packed and alone", "gradients",
         _largest(map(torch.sub, gradients(weighed(packed), parameters), alone_gradients))),
    ]  # fmt: skip
    whole_gradients: list[Tensor] = []
    for parts in DIVISIONS:
        loss, summed = _in_parts(policy, step, parts, parameters)
        label = f"in {parts} part{'s' if parts > 1 else ''}"
        checks.append((f"the loss {label} and alone", "loss", abs(loss - alone_loss)))
        if not whole_gradients:
            whole_gradients = summed
            continue
        checks.append(
            (
                f"its gradient {label} and whole",
                "gradient of the loss",
                _largest(map(torch.sub, summed, whole_gradients)),
            )
        )
    return [Check(what=what, measured=value, bound=BOUNDS[kind]) for what, kind, value in checks]


def alone(lm: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """(tokens,) log-probabilities of one completion, from the model's own logits on one unpadded sequence."""
    logits = lm(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def weighed(logps: Tensor) -> Tensor:
    """A sum that weighs every token differently, so that no two may be exchanged."""
    return (torch.linspace(-1, 1, len(logps), dtype=logps.dtype) * logps).sum()


def _loss_of(logps: Tensor, lengths: Sequence[Lengths]) -> float:
    chosen, rejected = ([each[side] for each in lengths] for side in (1, 2))
    parts = logps.split([sum(chosen), sum(rejected)])
    return float(OBJECTIVE(parts[0], torch.tensor(chosen), parts[1], torch.tensor(rejected)).loss)


def _in_parts(
    policy: Policy, step: Sequence[BenchPair], parts: int, parameters: Sequence[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    """Loss of the step and its gradients, summed over micro-batches that divide by the step's counts."""
    counts = pack(step).counts
    total, sums = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for part in range(parts):
        rows = pack(step[part::parts])
        logps = policy(rows)
        loss = OBJECTIVE(logps.chosen, logps.chosen_lengths, logps.rejected, logps.rejected_lengths).loss_over(counts)
        total += float(loss.detach())
        for sum_, gradient in zip(sums, gradients(loss, parameters), strict=True):
            sum_ += gradient
    return total, sums


def gradients(scalar: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(scalar, parameters))


def _largest(differences: Iterable[Tensor]) -> float:
    # max() would drop a NaN, depending on the order.
    found = [float(difference.detach().abs().max()) for difference in differences]
    return math.nan if any(map(math.isnan, found)) else max(found)
