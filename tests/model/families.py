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


FAMILIES: list[Family] = [
    Family("afmoe", "alone"),
    Family("apertus", "packed"),
    Family("arcee", "packed"),
    Family("aria_text", "packed"),
    Family("axk1", "packed", LATENT),
    Family("bamba", "alone", {"attn_layer_indices": [1]}),
    Family("beam", "alone"),
    Family("bert", "refused"),
    Family("bert-generation", "refused"),
    Family("big_bird", "refused"),
    Family("biogpt", "alone"),
    Family("bitnet", "packed"),
    Family("bloom", "alone"),
    Family("camembert", "refused"),
    Family("codegen", "alone", {"rotary_dim": 4}),
    Family("cohere", "packed"),
    Family("cohere2", "alone"),
    Family("cohere2_moe", "alone"),
    Family("cpmant", "refused"),
    Family("ctrl", "packed"),
    Family("cwm", "alone"),
    Family("data2vec-text", "refused"),
    Family("deepseek_v2", "packed", LATENT),
    Family("deepseek_v3", "packed", LATENT),
    Family("deepseek_v32", "alone", LATENT | SPARSE),
    Family("diffllama", "packed"),
    Family("doge", "alone"),
    Family("dots1", "alone", {"n_shared_experts": 1}),
    Family("ernie", "refused"),
    Family("ernie4_5", "packed"),
    Family("ernie4_5_moe", "packed"),
    Family("exaone4", "alone"),
    Family("exaone_moe", "alone"),
    Family("falcon", "alone", {"head_dim": LEFT_OUT}),
    Family("falcon_h1", "alone"),
    Family("falcon_mamba", "alone", CALM),
    Family("flex_olmo", "packed"),
    Family("flint", "alone"),
    Family("gemma", "packed"),
    Family("gemma2", "alone"),
    Family("gemma3", "packed"),
    Family("gemma3_text", "packed"),
    Family(
        "gemma3n_text", "alone", {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], **PER_LAYER}
    ),
    Family("gemma4_text", "alone", {"head_dim": LEFT_OUT, **PER_LAYER}),
    Family("glm", "packed"),
    Family("glm4", "packed"),
    Family("glm4_moe", "packed"),
    Family("glm4_moe_lite", "packed", LATENT),
    Family("glm_moe_dsa", "alone", LATENT | SPARSE),
    Family("gpt2", "packed"),
    Family("gpt_bigcode", "packed"),
    Family("gpt_neo", "alone", GPT_NEO),
    Family("gpt_neox", "packed"),
    Family("gpt_neox_japanese", "alone"),
    Family("gpt_oss", "alone"),
    Family("gptj", "alone", {"rotary_dim": 4}),
    Family("granite", "packed"),
    Family("granite_swa", "alone"),
    Family("granitemoe", "packed"),
    Family("granitemoe_swa", "alone"),
    Family("granitemoehybrid", "alone", HYBRID),
    Family("granitemoeshared", "packed"),
    Family("helium", "packed"),
    Family("hrm_text", "packed"),
    Family("hunyuan_v1_dense", "packed"),
    Family("hunyuan_v1_moe", "packed"),
    Family("hy_v3", "packed"),
    Family("hy_v4", "alone"),
    Family("hyperclovax", "packed"),
    Family("inkling2_text", "alone"),
    Family("inkling_text", "alone"),
    Family("jais2", "packed"),
    Family("jamba", "alone", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    Family("jetmoe", "packed"),
    Family("lfm2", "alone", CONVOLUTION),
    Family("lfm2_moe", "alone", CONVOLUTION),
    Family("lfm3", "alone", CONVOLUTION),
    Family("llama", "packed"),
    Family("llama4_text", "alone"),
    Family("longcat_flash", "packed", LATENT),
    Family("mamba", "alone", CALM),
    Family("mamba2", "alone", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    Family("megatron-bert", "refused"),
    Family("mimo_v2_flash", "alone"),
    Family("minicpm3", "packed", {"head_dim": LEFT_OUT, "num_key_value_heads": 4, "dim_model_base": 16, "gain": 1.0}),
    Family("minimax", "alone"),
    Family("minimax_m2", "packed"),
    Family("minimax_m3_vl_text", "packed"),
    Family("ministral", "alone"),
    Family("ministral3", "alone"),
    Family("mistral", "packed"),
    Family("mixtral", "alone"),
    Family("modernbert-decoder", "refused"),
    Family("moss_transcribe_diarize", "packed"),
    Family("mpt", "alone"),
    Family("nanochat", "packed"),
    Family("nemotron", "alone"),
    Family("nemotron_h", "alone", NEMOTRON_H),
    Family("olmo", "packed"),
    Family("olmo2", "packed"),
    Family("olmo3", "alone"),
    Family("olmo_hybrid", "alone"),
    Family("olmoe", "packed"),
    Family("openai-gpt", "alone"),
    Family("opt", "packed"),
    Family("persimmon", "packed"),
    Family("phi", "packed"),
    Family("phi3", "alone"),
    Family("phimoe", "alone"),
    Family("qwen2", "packed"),
    Family("qwen2_moe", "packed"),
    Family("qwen3", "packed"),
    Family("qwen3_5_moe_text", "alone", HYBRID),
    Family("qwen3_5_text", "alone", HYBRID),
    Family("qwen3_moe", "packed"),
    Family("qwen3_next", "alone", HYBRID),
    Family("recurrent_gemma", "alone, one at a time", {"num_hidden_layers": 3}),
    Family("roberta", "refused"),
    Family("roberta-prelayernorm", "refused"),
    Family("roformer", "refused"),
    Family("rwkv", "alone, one at a time", CALM),
    Family("seed_oss", "packed"),
    Family("smollm3", "alone"),
    Family("solar_open", "packed"),
    Family("stablelm", "alone"),
    Family("starcoder2", "alone"),
    Family("vaultgemma", "alone"),
    Family("xglm", "alone"),
    Family("xlm-roberta", "refused"),
    Family("xlm-roberta-xl", "refused"),
    # transformers zeroes its embedding of the padding token whenever it loads one.
    Family("youtu", "packed", LATENT | {"pad_token_id": None, "gain": 1.0}),
    Family("zamba2", "alone", ZAMBA2),
    Family("zaya", "alone", {"num_experts_per_tok": 1}),
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
        names = sorted(family.model_type for family in FAMILIES if family.outcome == outcome)
        rows.append(f"| {words} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(["| What happens | `model_type` in config.json |", "| --- | --- |", *rows])
