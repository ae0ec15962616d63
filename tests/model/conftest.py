"""Small random models of every architecture that is promised to be exact, in float64, and pairs to run on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from slime_ray.model.logprobs import Policy

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    # A window of 4 is shorter than every sequence here.
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    # And soft-capping bends these logits.
    "gemma3_text": Gemma3TextConfig(
        **SIZES,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=5.0,
    ),
}


@dataclass(frozen=True)
class Ids:
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def random_pairs(count: int, seed: int = 0) -> list[Ids]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())

    return [Ids(draw(5, 12), draw(1, 14), draw(1, 14)) for _ in range(count)]


class DoubleNorm(torch.nn.Module):
    """RMSNorm without transformers' detour through float32, which alone rounds gradients at 1e-8."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight = norm.weight
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self.eps = getattr(norm, "eps", None) or norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (self.offset + self.weight)


def double_model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """A random model that computes in float64 throughout."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double()
    for parameter in lm.parameters():
        # Far enough from uniform that a token which sees what it must not shows.
        torch.nn.init.normal_(parameter, std=0.15)
    make_norms_double(lm)
    return lm.eval()


def make_norms_double(lm: torch.nn.Module) -> None:
    """Exchange every RMSNorm of transformers'."""
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, DoubleNorm(child))


def alone(lm: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of one completion from the model's own logits on one unpadded sequence."""
    logits = lm(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def all_alone(lm: Any, pairs: Sequence[Any]) -> torch.Tensor:
    """The same for all chosen, then all rejected completions."""
    chosen = [alone(lm, pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    return torch.cat(chosen + [alone(lm, pair.prompt_ids, pair.rejected_ids) for pair in pairs])


def gradients(logps: torch.Tensor, parameters: Any) -> list[torch.Tensor]:
    """Gradients of a sum that weighs every token differently."""
    weights = torch.linspace(-1, 1, len(logps), dtype=torch.float64)
    return list(torch.autograd.grad((weights * logps).sum(), [p for p in parameters if p.requires_grad]))


@pytest.fixture(scope="module", params=list(CONFIGS))
def policy(request) -> Policy:
    return Policy(double_model(CONFIGS[request.param])).eval()
