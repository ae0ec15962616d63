"""The model's own dropout in training, and layers that are computed again."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CTRLConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    StableLmConfig,
)

from slime_ray.config.model import Lora
from slime_ray.errors import InputError
from slime_ray.model.lora import add_lora
from slime_ray.model.train_mode import checkpoint_layers, configured_dropout, set_train_mode

COMMON: dict[str, Any] = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES: dict[str, Any] = COMMON | {"intermediate_size": 24, "num_key_value_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "modules": GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "modules of phi": PhiConfig(**SIZES, resid_pdrop=0.3, embd_pdrop=0.2),
    "read from the configuration": FalconConfig(**COMMON, hidden_dropout=0.3, attention_dropout=0.2),
    "dropped layers": OPTConfig(
        **COMMON, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64, layerdrop=0.9, dropout=0.0
    ),
    "functional": OPTConfig(**COMMON, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.3),
    "attention alone": StableLmConfig(**SIZES, attention_dropout=0.5),
    "jitter of a router": MixtralConfig(**SIZES, num_local_experts=4, router_jitter_noise=0.5),
}
IDS = torch.randint(1, 41, (2, 9), generator=torch.Generator().manual_seed(0))


def make(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpointed"])
def test_the_models_own_dropout_is_off_however_it_is_drawn_and_on_where_asked_for(how, again):
    lm = make(CONFIGS[how])
    expected = lm(input_ids=IDS, use_cache=False).logits.detach()
    if again:
        checkpoint_layers(lm)
    set_train_mode(lm, dropout=False)
    torch.testing.assert_close(lm(input_ids=IDS, use_cache=False).logits, expected, rtol=0, atol=0)
    set_train_mode(lm, dropout=True)
    torch.manual_seed(3)
    assert float((lm(input_ids=IDS, use_cache=False).logits - expected).detach().abs().max()) > 1e-4


def test_the_adapters_dropout_stays_as_it_is_set():
    def outputs(dropout: float) -> list[torch.Tensor]:
        lm = add_lora(make(CONFIGS["modules"]), Lora(rank=2, targets=["c_attn", "lm_head"], dropout=dropout))
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        set_train_mode(lm, dropout=False)
        return [lm(input_ids=IDS).logits for _ in range(2)]

    one, other = outputs(0.5)
    assert float((one - other).abs().max()) > 1e-3
    one, other = outputs(0.0)
    assert torch.equal(one, other)


@pytest.mark.parametrize("dropout", [False, True])
def test_checkpointed_layers_are_computed_again_with_the_same_gradients(dropout):
    gradients = []
    for again in (False, True):
        lm, calls = make(CONFIGS["modules"]), []
        lm.transformer.h[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if again:
            checkpoint_layers(lm)
            # A second trainer of the same policy must not wrap them twice.
            checkpoint_layers(lm)
        set_train_mode(lm, dropout=dropout)
        torch.manual_seed(5)
        lm(input_ids=IDS, use_cache=False).logits.pow(2).mean().backward()
        assert len(calls) == 1 + again
        gradients.append([parameter.grad for parameter in lm.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_a_model_whose_layers_cannot_be_computed_again_is_refused():
    lm = make(CTRLConfig(vocab_size=41, n_embd=16, dff=24, n_layer=1, n_head=2))
    with pytest.raises(InputError, match=r"CTRLLMHeadModel has no layers that can be computed again"):
        checkpoint_layers(lm)


def test_what_is_drawn_is_named_as_in_the_configuration():
    assert configured_dropout(CONFIGS["modules"]) == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    assert configured_dropout(CONFIGS["jitter of a router"]) == {"router_jitter_noise": 0.5}
    assert configured_dropout(LlamaConfig()) == {}
