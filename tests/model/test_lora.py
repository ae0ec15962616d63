"""Which weights get adapters, told by hand, and that a merged and saved model is the adapted one."""

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3Config,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from slime_ray.config.model import Lora
from slime_ray.errors import InputError
from slime_ray.model.fused_lora import fuse_lora
from slime_ray.model.lora import add_lora, find_adapted

from .conftest import VISION

VOCABULARY = 41
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES: dict[str, Any] = COMMON | {"intermediate_size": 24, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "tied llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "tied neox": GPTNeoXConfig(**COMMON, intermediate_size=24, tie_word_embeddings=True),
    "phi3": Phi3Config(**SIZES, pad_token_id=0),
    "glm": GlmConfig(**SIZES, head_dim=4, pad_token_id=0),
    "falcon": FalconConfig(**COMMON),
    "opt": OPTConfig(**COMMON, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(**SIZES, **EXPERTS, num_experts=4, shared_expert_intermediate_size=8),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, mlp_only_layers=[0]),
    "phimoe": PhimoeConfig(**SIZES, num_local_experts=4),
    "gemma3": Gemma3Config(text_config=SIZES | {"head_dim": 4}, vision_config=VISION, mm_tokens_per_image=4),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1),
}
IDS = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def make(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm(input_ids=IDS).logits


def trained(lm: Any) -> Any:
    """As if it had been trained: everything that would be is drawn anew."""
    torch.manual_seed(1)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return lm.eval()


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("llama", {}),
        # Of each layer: 16 x 64 + 2 x 24 x 16 fused, and 16 x 16 + 24 x 16 that the default names.
        ("phi3", {"mlp.gate_up_proj": 768 / 1920, "self_attn.qkv_proj": 512 / 1920}),
        ("glm", {"mlp.gate_up_proj": 768 / 1920}),
        # Four experts of 3 x 24 x 16 beside attention of 768.
        ("mixtral", {"mlp.experts.gate_up_proj": 3072 / 5376, "mlp.experts.down_proj": 1536 / 5376}),
        ("gemma3", {}),
    ],
)
def test_the_share_and_the_layers_without_adapters_are_told(name, without):
    found = find_adapted(make(name), Lora()).facts()
    assert found["not_adapted"] == pytest.approx(without)
    assert found["share"] == pytest.approx(1 - sum(without.values()))


def test_a_model_without_weights_has_the_same_facts():
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(CONFIGS["qwen2_moe"])
    assert find_adapted(lm, Lora()) == find_adapted(make("qwen2_moe"), Lora())


@pytest.mark.parametrize("targets", [Lora().targets, "all-linear"], ids=["default", "all"])
def test_layers_that_no_text_reaches_get_no_adapters(targets, tmp_path):
    lm = trained(add_lora(make("gemma3"), Lora(rank=2, targets=targets)))
    names = [name for name, _ in lm.named_parameters() if "lora_" in name]
    assert len(names) == 2 * 7 * 2
    assert all(".language_model.layers." in name for name in names)
    lm.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make("gemma3"), tmp_path).eval()), logits(lm))


def test_adapters_are_laid_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(make("gemma3"), Lora(rank=2))


LINEAR = {
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "tied neox": {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "phi3": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    "falcon": {"self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "mixtral": {*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
    "qwen2_moe": {
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        *(f"mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")),
        "mlp.shared_expert_gate",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
    },
    "qwen3_moe": {
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
    },
    # Its router inherits from a linear layer, and gives more than one tensor.
    "phimoe": {*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
}


@pytest.mark.parametrize("name", LINEAR)
def test_all_linear_is_every_linear_layer_and_survives_saving_and_merging(name, tmp_path):
    """Compared with transformers' own forward pass and with peft's plain loading."""
    lora = Lora(rank=2, targets="all-linear")
    facts = find_adapted(make(name), lora).facts()
    assert {*facts["adapted"]} == LINEAR[name]
    assert facts["share"] == 1
    lm = add_lora(make(name), lora)
    torch.testing.assert_close(logits(lm), logits(make(name)), rtol=0, atol=0)
    lm = trained(lm)
    expected = logits(lm)
    assert float((expected - logits(make(name))).abs().max()) > 0.05
    lm.save_pretrained(tmp_path / "adapter")
    read = PeftModel.from_pretrained(make(name), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(read), expected, rtol=0, atol=1e-6)
    lm.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_names_that_peft_takes_for_experts_mean_the_layers_that_have_them(name):
    """peft would put gate_proj on the experts, and leave the layers of that name without."""
    lm = add_lora(make(name), Lora(rank=2))
    adapted = {module for module, _ in lm.named_modules() if module.endswith("lora_A.default")}
    assert any("shared_expert.gate_proj" in module or ".mlp.gate_proj" in module for module in adapted)
    assert not any(".experts." in module for module in adapted)


TIED: list[tuple[str, str, bool]] = [
    ("tied llama", "lm_head", False),
    ("tied llama", "embed_tokens", False),
    ("gpt2", "wte", False),
    ("gpt2", "lm_head", False),
    ("tied neox", "embed_in", False),
    ("gemma3", "lm_head", False),
    ("gemma3", "embed_tokens", False),
    ("opt", "embed_tokens", False),
    ("falcon", "word_embeddings", False),
    ("tied llama", "q_proj", True),
    ("gpt2", "c_attn", True),
    ("gemma3", "q_proj", True),
]


@pytest.mark.parametrize(("name", "target", "train_head"), TIED)
def test_adapters_and_trained_heads_on_tied_weights_survive_merging_and_saving(name, target, train_head, tmp_path):
    lm = make(name)
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    lm = trained(add_lora(lm, Lora(rank=2, targets=[target], train_head=train_head)))
    expected = logits(lm)
    lm.merge_and_unload().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)


def test_weights_that_other_layers_share_are_refused():
    lm = make("llama")
    first, second = (layer.self_attn for layer in lm.model.layers)
    second.q_proj.weight = first.q_proj.weight
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj.*share their weights"):
        add_lora(lm, Lora(targets=["q_proj"]))


@pytest.mark.parametrize(
    ("name", "lora", "sentence"),
    [
        ("gpt2", Lora(), r"name no layer of this model.*'c_attn', 'c_fc', 'c_proj', 'lm_head'\]"),
        ("phi3", Lora(targets=["o_proj", "q_proj"]), r"\['q_proj'\] name no layer.*'qkv_proj'"),
        ("gemma3", Lora(targets=["q_proj", "fc1"]), r"\['fc1'\] name no layer.*outside it, where no text passes"),
        ("mixtral", Lora(targets=["q_proj", "w1"]), r"\['w1'\] name no layer.*'mlp.experts.gate_up_proj'"),
        ("mixtral", Lora(targets=["experts.down_proj"], dropout=0.1), r"lora.dropout, which has to be 0 for experts"),
        ("mamba", Lora(targets=["in_proj", "out_proj"]), r"cannot be adapted by peft.*out_proj.*'in_proj'"),
        ("llama", Lora(targets=[]), r"name no layer"),
    ],
    ids=["conv1d", "fused", "tower", "experts of before", "experts with dropout", "refused by peft", "none"],
)
def test_targets_that_name_nothing_are_refused_with_the_layers_that_there_are(name, lora, sentence):
    with pytest.raises(InputError, match=sentence):
        add_lora(make(name), lora)


def test_dropout_leaves_experts_without_adapters_and_says_so():
    facts = find_adapted(make("qwen2_moe"), Lora(targets="all-linear", dropout=0.1)).facts()
    assert facts["barred_by_dropout"]
    assert {"mlp.experts.gate_up_proj", "mlp.shared_expert.gate_proj"} <= facts["not_adapted"].keys()
    assert add_lora(make("qwen2_moe"), Lora(targets="all-linear", dropout=0.1))


def test_saved_targets_are_the_users_where_they_are_unambiguous(tmp_path):
    """Other tools read them."""
    lm = add_lora(make("llama"), Lora(rank=2, targets=["q_proj", "mlp.up_proj"]))
    assert lm.peft_config["default"].target_modules == {"q_proj", "mlp.up_proj"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("kind", [{"rslora": True}, {"dora": True}], ids=str)
def test_other_scalings_and_dora_are_pefts_and_survive_saving_and_merging(name, kind, tmp_path):
    """Beside adapters that peft's own configuration makes, with the same weights."""
    plain, target = make(name), "c_attn" if name == "gpt2" else "q_proj"
    lm = add_lora(make(name), Lora(rank=4, alpha=8.0, targets=[target], **kind))
    fuse_lora(lm)
    lm = trained(lm)
    expected = logits(lm)
    assert float((expected - logits(plain)).abs().max()) > 1e-4
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=[target], use_rslora=kind.get("rslora", False), use_dora=kind.get("dora", False),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    other = get_peft_model(make(name), config).eval()
    missing, unexpected = other.load_state_dict(
        {key: value for key, value in lm.state_dict().items() if "lora" in key}, strict=False
    )
    assert not unexpected
    assert not [key for key in missing if "lora" in key and "vision" not in key]
    torch.testing.assert_close(logits(other), expected, rtol=0, atol=1e-6)
    lm.save_pretrained(tmp_path / "adapter")
    read = PeftModel.from_pretrained(make(name), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(read), expected, rtol=0, atol=1e-6)
    lm.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
