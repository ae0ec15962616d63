"""Rows with shared prompts against every sequence run alone, unpadded, in float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from slime_ray.data.packing import pack
from slime_ray.model import logprobs
from slime_ray.model.logprobs import Policy, kl_divergence

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    # A window of 4 is shorter than every sequence here, and soft-capping bends the logits.
    "gemma3": Gemma3TextConfig(
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
        return tuple(torch.randint(1, 61, (length,), generator=generator).tolist())

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


@pytest.fixture(scope="module", params=list(CONFIGS))
def policy(request) -> Policy:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation="sdpa").double()
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, DoubleNorm(child))
    return Policy(lm).eval()


def alone(policy: Policy, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of one completion from the model's own logits on one unpadded sequence."""
    ids = torch.tensor([prompt + completion])
    logits = policy.lm(input_ids=ids, use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).squeeze(1)


LAYOUTS = [
    pytest.param({"row_tokens": 0}, id="one pair per row"),
    pytest.param({"row_tokens": 90}, id="several pairs per row"),
    pytest.param({"shared_prompt": False}, id="one sequence per row"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logps_equal_each_sequence_run_alone(policy, layout):
    pairs = random_pairs(7)
    with torch.no_grad():
        logps = policy(pack(pairs, **layout))
        chosen = torch.cat([alone(policy, pair.prompt_ids, pair.chosen_ids) for pair in pairs])
        rejected = torch.cat([alone(policy, pair.prompt_ids, pair.rejected_ids) for pair in pairs])
    torch.testing.assert_close(logps.chosen, chosen, rtol=0, atol=1e-12)
    torch.testing.assert_close(logps.rejected, rejected, rtol=0, atol=1e-12)
    assert logps.chosen_lengths.tolist() == [len(pair.chosen_ids) for pair in pairs]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_each_sequence_run_alone(policy, layout):
    pairs = random_pairs(5, seed=1)

    def gradients(logps: torch.Tensor) -> list[torch.Tensor]:
        weights = torch.linspace(-1, 1, len(logps), dtype=torch.float64)
        return list(torch.autograd.grad((weights * logps).sum(), list(policy.parameters())))

    packed = policy(pack(pairs, **layout))
    ours = gradients(torch.cat([packed.chosen, packed.rejected]))
    single = [alone(policy, pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    single += [alone(policy, pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    for mine, other in zip(ours, gradients(torch.cat(single)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_logps_and_gradients_do_not_depend_on_the_chunk_size(policy, monkeypatch):
    rows = pack(random_pairs(4))

    def run() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        logps = policy(rows)
        return logps.chosen.detach(), torch.autograd.grad(
            logps.chosen.sum() - logps.rejected.sum(), list(policy.parameters())
        )

    whole, whole_gradients = run()
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 61 * 3)
    pieces, pieces_gradients = run()
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-13)
    for a, b in zip(pieces_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_entropy_is_that_of_the_whole_distribution(policy):
    pairs = random_pairs(3, seed=2)
    with torch.no_grad():
        entropy = policy(pack(pairs), entropy=True).chosen_entropy
        expected = []
        for pair in pairs:
            logits = policy.lm(input_ids=torch.tensor([pair.prompt_ids + pair.chosen_ids]), use_cache=False).logits[0]
            distribution = torch.distributions.Categorical(logits=logits[len(pair.prompt_ids) - 1 : -1])
            expected.append(distribution.entropy())
    torch.testing.assert_close(entropy, torch.cat(expected), rtol=0, atol=1e-12)


def test_kl_of_a_distribution_to_itself_is_zero_and_matches_torch_otherwise():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 11, dtype=torch.float64)
    assert kl_divergence(a, a).abs().max() == 0
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    )
    torch.testing.assert_close(kl_divergence(a, b), expected)


ids = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.builds(Ids, ids, ids, ids), min_size=1, max_size=6),
    row_tokens=st.integers(0, 60),
    shared=st.booleans(),
)
def test_packing_keeps_every_token_and_predicts_every_completion_token(pairs, row_tokens, shared):
    rows = pack(pairs, row_tokens=row_tokens, shared_prompt=shared)
    completions = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    assert rows.targets.tolist() == [token for completion in completions for token in completion]
    prompts_written = sum(len(pair.prompt_ids) for pair in pairs) * (1 if shared else 2)
    assert rows.real_tokens == prompts_written + sum(map(len, completions))
    # What stands where a prediction is read is the token before: the prompt's last, or the completion's previous.
    before = rows.input_ids.flatten()[rows.predict_at].tolist()
    prompts = [pair.prompt_ids for pair in pairs] * 2
    expected = [[prompt[-1], *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)]
    assert before == [token for one in expected for token in one]


def test_an_empty_batch_or_prompt_is_refused():
    with pytest.raises(ValueError, match="pairs is empty"):
        pack([])
    with pytest.raises(ValueError, match="pair 0 has an empty prompt"):
        pack([Ids((), (1,), (2,))])
