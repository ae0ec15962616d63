"""Ids and positions that a model has, against what transformers itself computes there and beyond."""

from typing import Any

import pytest
import torch
from torch import nn

from slime_ray.data.packing import pack
from slime_ray.errors import InputError
from slime_ray.model.limits import declared_limits, limits_of
from slime_ray.model.logprobs import Policy

from .conftest import Ids
from .families import SETTINGS, VOCABULARY, tiny_family

TABLES = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "gptj", "codegen", "ctrl", "biogpt", "mpt", "openai-gpt")
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 48,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = LINEAR | {"rope_type": "yarn", "original_max_position_embeddings": 48}
LLAMA_3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTARY: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "dynamic": ("llama", 48, {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}),
    "dynamic, another family": ("qwen3", 48, {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}),
    "longrope": ("phi3", 48, {"rope_parameters": LONG, "sliding_window": None, "original_max_position_embeddings": 48}),
    "linear": ("llama", None, {"rope_parameters": LINEAR}),
    "yarn": ("llama", None, {"rope_parameters": YARN}),
    "llama3": ("llama", None, {"rope_parameters": LLAMA_3}),
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
    lm = tiny_family(kind, **SETTINGS.get(kind, {}), **({"max_seq_len": 128} if kind == "mpt" else {}))
    limits = declared_limits(lm.config)
    assert limits.positions == 128
    assert (runs(lm, 128), runs(lm, 129)) == (True, False)
    with pytest.raises(InputError, match=r"A row has 129 tokens, more than the model's 128 positions\. Shorten it\."):
        limits.check_length(129, "A row", "Shorten it.")


@pytest.mark.parametrize("kind", ["llama", "bloom", "falcon", "mamba", "qwen3", "gemma2", "phi3"])
def test_a_model_without_one_has_no_limit(kind):
    lm = tiny_family(kind, **SETTINGS.get(kind, {}))
    assert declared_limits(lm.config).positions is None
    assert runs(lm, 150)


@pytest.mark.parametrize("kind", ROTARY)
def test_frequencies_that_depend_on_the_longest_sequence_limit_it_and_others_do_not(kind):
    family, positions, settings = ROTARY[kind]
    lm = tiny_family(family, **settings)
    limits = declared_limits(lm.config)
    assert limits.positions == positions
    assert ("rotary frequencies (rope_type" in limits.reason) is (positions is not None)
    # Within the limit a short pair comes out the same beside a long one.
    short, fitting, longest = (Ids(tuple(range(3, 9)), (9,) * n, (4, 5)) for n in (3, 42, 99))
    with torch.no_grad():
        alone, within, beyond = (
            Policy(lm)(pack(pairs, shared_prompt=False)).chosen[:3]
            for pairs in ([short], [short, fitting], [short, longest])
        )
    torch.testing.assert_close(within, alone, rtol=0, atol=1e-5)
    assert bool((beyond - alone).abs().max() > 1e-3) is (positions is not None)


@pytest.mark.parametrize("lengths", [(48, 64), (64, 48)])
def test_where_each_kind_of_layer_has_its_own_frequencies_the_shortest_length_limits(lengths):
    kinds = ("sliding_attention", "full_attention")
    ropes = {
        kind: LONG | {"original_max_position_embeddings": length} for kind, length in zip(kinds, lengths, strict=True)
    }
    lm = tiny_family("gemma3_text", rope_parameters=ropes)
    limits = declared_limits(lm.config)
    assert limits.positions == 48
    assert "(rope_type longrope in its config.json)" in limits.reason


class OwnRotary(nn.Module):
    """Frequencies that shrink with the longest sequence of a call, under no name that is known."""

    def __init__(self, rotary: nn.Module, *, by_length: bool):
        super().__init__()
        self.rotary, self.by_length = rotary, by_length

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        longest = int(position_ids.max()) + 1
        return self.rotary(x, position_ids / (1 + longest // 60) if self.by_length else position_ids)


@pytest.mark.parametrize("by_length", [True, False])
def test_code_that_came_with_a_model_is_seen_through_by_its_numbers(by_length):
    lm: Any = tiny_family("llama")
    lm.model.rotary_emb = OwnRotary(lm.model.rotary_emb, by_length=by_length)
    limits = Policy(lm).limits
    assert limits.positions == (59 if by_length else None)
    assert "rope_type" not in limits.reason


def test_ids_are_those_that_embeddings_and_head_have():
    lm = tiny_family("llama")
    assert limits_of(lm).ids == VOCABULARY == declared_limits(lm.config).ids
    lm.resize_token_embeddings(70)
    assert limits_of(lm).ids == 70
