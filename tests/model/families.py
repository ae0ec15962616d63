"""Tiny random models of the causal families of transformers, and what becomes of each family here.

Outcomes are "packed" (pairs share a row), "alone" (a row for every sequence), or "refused". "one at a time" says that
prompts of unequal lengths are answered so.
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
LEFT_OUT = object()
"""Instead of a setting's value: the configuration does not take it."""
CALM = {"gain": 1.5}
"""Rounding grows too fast in these where weights are large."""
LATENT = {"head_dim": 4, "num_key_value_heads": 4}
"""Attention through a latent: `head_dim` is the rotary part there."""
SPARSE = {"index_topk": 64, "index_head_dim": 8, "index_n_heads": 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
PER_LAYER = {"vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8}
GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
ZAMBA2 = {
    "layers_block_type": ["mamba", "hybrid"],
    "head_dim": LEFT_OUT,
    "n_mamba_heads": 4,
    "mamba_d_state": 8,
    "chunk_size": 8,
    "adapter_rank": 4,
}
NEMOTRON_H = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "moe_shared_expert_intermediate_size": 16,
}


class Family(NamedTuple):
    """model_type: of transformers. outcome: see above. settings: of the tiny configuration."""

    model_type: str
    outcome: str
    settings: dict[str, Any] = {}


def config_of(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A tiny configuration of the text model."""
    text = AutoConfig.for_model(model_type).get_text_config()
    known = {name: value for name, value in COMMON.items() if _knows(text, name)} | settings
    return type(text)(**{name: value for name, value in known.items() if value is not LEFT_OUT})


def _knows(config: PreTrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True


def tiny_family(model_type: str, *, gain: float = 4.0, **settings: Any) -> Any:
    """A random model whose distributions are far from flat, so that what is wrong shows. gain: of its matrices."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config_of(model_type, **settings)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return lm


# transformers zeroes the embedding of the padding token of youtu whenever it loads one.
NAMES = {
    "packed": (
        "apertus arcee aria_text axk1 bitnet cohere ctrl deepseek_v2 deepseek_v3 diffllama ernie4_5 ernie4_5_moe "
        "flex_olmo gemma gemma3 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox granite "
        "granitemoe granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe "
        "llama longcat_flash minicpm3 minimax_m2 mistral moss_transcribe_diarize nanochat olmo "
        "olmo2 olmoe opt persimmon phi qwen2 qwen2_moe qwen3 qwen3_moe seed_oss solar_open youtu"
    ),
    "alone": (
        "afmoe bamba beam biogpt bloom codegen cohere2 cohere2_moe cwm deepseek_v32 doge dots1 exaone4 exaone_moe "
        "falcon falcon_h1 falcon_mamba flint gemma2 gemma3n_text gemma4_text glm_moe_dsa gpt_neo gpt_neox_japanese "
        "gpt_oss gptj granite_swa granitemoe_swa granitemoehybrid hy_v4 inkling2_text inkling_text jamba lfm2 "
        "lfm2_moe lfm3 llama4_text mamba mamba2 mimo_v2_flash minimax minimax_m3_vl_text ministral ministral3 mixtral "
        "mpt nemotron "
        "nemotron_h olmo3 olmo_hybrid openai-gpt phi3 phimoe qwen3_5_moe_text qwen3_5_text qwen3_next smollm3 "
        "stablelm starcoder2 vaultgemma xglm zamba2 zaya"
    ),
    "alone, one at a time": "recurrent_gemma rwkv",
    "refused": (
        "bert bert-generation big_bird camembert cpmant data2vec-text ernie megatron-bert modernbert-decoder roberta "
        "roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl"
    ),
}
"""Model types by what becomes of them."""
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash"), LATENT),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "deepseek_v32": LATENT | SPARSE,
    "glm_moe_dsa": LATENT | SPARSE,
    "dots1": {"n_shared_experts": 1},
    "falcon": {"head_dim": LEFT_OUT},
    **dict.fromkeys(("falcon_mamba", "mamba", "rwkv"), CALM),
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], **PER_LAYER},
    "gemma4_text": {"head_dim": LEFT_OUT, **PER_LAYER},
    "gpt_neo": GPT_NEO,
    **dict.fromkeys(("granitemoehybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), HYBRID),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), CONVOLUTION),
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": {"head_dim": LEFT_OUT, "num_key_value_heads": 4, "dim_model_base": 16, "gain": 1.0},
    "nemotron_h": NEMOTRON_H,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "youtu": LATENT | {"pad_token_id": None, "gain": 1.0},
    "zamba2": ZAMBA2,
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings that tiny configurations need besides the common ones."""
FAMILIES = [
    Family(name, outcome, SETTINGS.get(name, {})) for outcome, names in NAMES.items() for name in sorted(names.split())
]


OUTCOMES = {
    "packed": "Works, pairs share a row",
    "alone": "Works, a row for every sequence",
    "alone, one at a time": "The same, and prompts are answered one at a time",
    "refused": "Refused: not causal without further settings, or more than a linear head",
}


def families_table() -> str:
    """The table of docs/models.md."""
    rows = []
    for outcome, words in OUTCOMES.items():
        rows.append(f"| {words} | {', '.join(f'`{name}`' for name in sorted(NAMES[outcome].split()))} |")
    return "\n".join(["| What happens | `model_type` in config.json |", "| --- | --- |", *rows])
