"""Ids and positions that a model has, against what transformers itself computes there and beyond."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from slime_ray.data.packing import pack
from slime_ray.errors import InputError
from slime_ray.model.limits import declared_limits
from slime_ray.model.logprobs import Policy

from .conftest import Ids
from .families import LEFT_OUT, VOCABULARY, config_of, tiny_family

TABLES = {
    "gpt2": {},
    "opt": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_bigcode": {},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "ctrl": {},
    "biogpt": {},
    "mpt": {"max_seq_len": 128},
    "openai-gpt": {},
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 48,
}
LENGTH_DEPENDENT: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}),
    "dynamic, another family": ("qwen3", {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}),
    "longrope": ("phi3", {"rope_parameters": LONG, "sliding_window": None, "original_max_position_embeddings": 48}),
}


def runs(lm: Any, tokens: int) -> bool:
    """Whether transformers computes logits of a sequence of so many tokens."""
    try:
        with torch.no_grad():
            lm(input_ids=torch.full((1, tokens), 5), use_cache=False)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_positions_is_found_and_counted(kind):
    lm = tiny_family(kind, **TABLES[kind])
    limits = Policy(lm).findings.limits
    assert limits.positions == 128
    assert (runs(lm, 128), runs(lm, 129)) == (True, False)
    assert declared_limits(lm.config).positions == 128
    with pytest.raises(InputError, match=r"A row has 129 tokens, more than the model's 128 positions\. Shorten it\."):
        limits.check_length(129, "A row", "Shorten it.")


@pytest.mark.parametrize("kind", ["llama", "bloom", "falcon", "mamba", "qwen3", "gemma2", "phi3"])
def test_a_model_without_one_has_no_limit(kind):
    lm = tiny_family(kind, **({"head_dim": LEFT_OUT} if kind == "falcon" else {}))
    assert Policy(lm).findings.limits.positions is None
    assert declared_limits(lm.config).positions is None
    assert runs(lm, 150)


@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
def test_frequencies_that_depend_on_the_longest_sequence_limit_it(kind):
    family, settings = LENGTH_DEPENDENT[kind]
    lm = tiny_family(family, **settings)
    policy = Policy(lm).eval()
    limits = policy.findings.limits
    assert limits.positions == 48
    assert "rotary frequencies (rope_type" in limits.reason
    assert declared_limits(lm.config) == limits
    # Within the limit a short pair comes out the same beside a long one, beyond it another one does not.
    short, fitting, long, longest = (Ids(tuple(range(3, 9)), (9,) * n, (4, 5)) for n in (3, 42, 43, 99))
    with torch.no_grad():
        rows = [pack(pairs, shared_prompt=False) for pairs in ([short], [short, fitting])]
        alone, beside = (policy(row).chosen[:3] for row in rows)
        torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)
        with pytest.raises(InputError, match=r"A sequence has 49 tokens, more than the 48 positions up to which"):
            policy(pack([short, long], shared_prompt=policy.shares_prompts))
        # What it would be.
        policy.limits = None
        beyond = policy(pack([short, longest], shared_prompt=False)).chosen[:3]
        assert (beyond - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_frequencies_that_do_not_are_no_limit(kind):
    more = {"yarn": {"original_max_position_embeddings": 48}}
    more["llama3"] = {**more["yarn"], "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, **more.get(kind, {})}
    lm = tiny_family("llama", rope_parameters=rope)
    assert Policy(lm).findings.limits.positions is None
    assert declared_limits(lm.config).positions is None


class OwnRotary(nn.Module):
    """Frequencies that shrink with the longest sequence of a call, under no name that is known."""

    def __init__(self, rotary: nn.Module, *, by_length: bool):
        super().__init__()
        self.rotary, self.by_length = rotary, by_length

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        longest = int(position_ids.max()) + 1
        return self.rotary(x, position_ids / (1 + longest // 60) if self.by_length else position_ids)


@pytest.mark.parametrize("by_length", [True, False])
def test_an_unknown_architecture_is_seen_through_by_its_numbers(by_length):
    lm = tiny_family("llama")
    assert isinstance(lm, LlamaForCausalLM)
    lm.model.rotary_emb = OwnRotary(lm.model.rotary_emb, by_length=by_length)
    limits = Policy(lm).findings.limits
    assert limits.positions == (59 if by_length else None)


def test_ids_are_those_that_embeddings_and_head_have():
    lm = tiny_family("llama")
    assert Policy(lm).findings.limits.ids == VOCABULARY == declared_limits(lm.config).ids
    lm.resize_token_embeddings(70)
    assert Policy(lm).findings.limits.ids == 70


def test_the_probe_of_positions_leaves_the_model_as_it_was():
    lm = tiny_family("llama", rope_parameters=DYNAMIC, max_position_embeddings=48)
    before = {name: buffer.clone() for name, buffer in lm.named_buffers()}
    assert Policy(lm).findings.limits.positions == 48
    assert all(torch.equal(buffer, before[name]) for name, buffer in lm.named_buffers())
    assert config_of("llama").max_position_embeddings == 128
