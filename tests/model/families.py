"""Tiny random models of the causal families of transformers, and what becomes of each family here.

A row of `FAMILIES` is a model type, settings that its tiny configuration needs beside the common ones, and the outcome:
"packed" (pairs share a row), "alone" (a row for every sequence), or "refused". "one at a time" says that prompts of
unequal lengths are answered so.
"""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # A window is shorter than the sequences of the tests.
    "sliding_window": 4,
    "attention_window_size": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_embd": 32,
    "n_layer": 2,
    "n_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "n_positions": 128,
    "d_model": 32,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
}
LATENT = {"head_dim": 4}
"""Attention through a latent: `head_dim` is the rotary part there."""


class Family(NamedTuple):
    """model_type: of transformers. outcome: see above. settings: of the tiny configuration."""

    model_type: str
    outcome: str
    settings: dict[str, Any] = {}


def config_of(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A tiny configuration of the text model."""
    text = AutoConfig.for_model(model_type).get_text_config()
    known = {name: value for name, value in COMMON.items() if hasattr(text, name)} | settings
    return type(text)(**{name: value for name, value in known.items() if value is not LEFT_OUT})


LEFT_OUT = object()
"""Instead of a setting's value: the configuration does not take it."""


def tiny_family(model_type: str, **settings: Any) -> Any:
    """A random model whose distributions are far from flat, so that what is wrong shows."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config_of(model_type, **settings)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return lm


FAMILIES: list[Family] = []
