"""Shapes against real models of transformers and peft, and the table of known ones."""

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
)

from slime_ray.bench.cases import SHAPES
from slime_ray.config.settings import Lora, Model
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.model.decoder import settings_of
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.planning.flops import sizes_of
from slime_ray.planning.memory import kept_bytes
from slime_ray.planning.shapes import KNOWN, find_shape, shape_of

LORA = Lora(rank=4, alpha=8.0)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, head of its own": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=8, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
}


def model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_model_but_for_norms(name):
    lm = model(CONFIGS[name])
    shape = shape_of(CONFIGS[name].to_dict())
    # Norms are the only weights with one dimension.
    assert shape.weights == sum(parameter.numel() for parameter in lm.parameters() if parameter.ndim > 1)
    assert shape.trained(None) == shape.weights
    assert shape.windows == ((8, 8, None) if name == "gemma3" else (None,) * 3)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("train_head", [False, True])
def test_what_adapters_train_is_what_peft_trains(name, train_head):
    lora = LORA.model_copy(update={"train_head": train_head})
    lm = add_lora(model(CONFIGS[name]), lora)
    shape = shape_of(CONFIGS[name].to_dict())
    assert shape.trained(lora) == sum(p.numel() for p in lm.parameters() if p.requires_grad)
    if not train_head:
        assert shape.sizes(lora) == sizes_of(lm)


def test_adapters_on_some_layers_only():
    lora = LORA.model_copy(update={"targets": ["q_proj", "v_proj"]})
    lm = add_lora(model(CONFIGS["llama"]), lora)
    shape = shape_of(CONFIGS["llama"].to_dict())
    assert shape.trained(lora) == sum(p.numel() for p in lm.parameters() if p.requires_grad)
    # q reads 48 and writes 64, v writes 32; of each the part that reads is 4 * 48.
    assert shape.sizes(lora).adapters == 3 * 4 * (48 + 64 + 48 + 32)
    assert shape.sizes(lora).adapters_first == 2 * 4 * 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_activations_are_what_torch_keeps_for_the_backward_pass(name, dtype):
    """Of two more layers, so that what is beside them does not count."""
    kept = {}
    for layers in (2, 4):
        config = CONFIGS[name].to_dict() | {"num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 128}
        config["layer_types"] = ["full_attention"] * layers
        config = type(CONFIGS[name])(**config)
        lm = add_lora(model(config).to(dtype), LORA)
        policy = Policy(lm).train()
        rows = pack([TokenPair([1] * 24, [2] * 30, [3] * 20)])
        own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
        seen = {}

        def keep(tensor, own=own, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                # Held, so that no other tensor takes its place.
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            policy(rows)
        kept[layers] = sum(size for size, _ in seen.values())
    shape = shape_of(config.to_dict())
    by_formula = kept_bytes(shape, dtype.itemsize, rank=4)
    assert by_formula == pytest.approx((kept[4] - kept[2]) / 2 / rows.real_tokens, rel=0.05)


def test_the_known_shape_is_that_of_the_benchmarks():
    known, shape = KNOWN["google/gemma-3-4b-pt"], SHAPES["gemma3-4b"]
    config = shape.config(vocabulary=shape.vocabulary, shrink=1)
    assert shape_of(config.to_dict()).sizes(LORA) == known.sizes(LORA)


@pytest.mark.parametrize(
    ("source", "billions"),
    # As the models' cards say: 3.21 B; 4.0 B, 3.6 B of them not embeddings; 4.3 B with the vision tower.
    [("meta-llama/Llama-3.2-3B", 3.21), ("Qwen/Qwen3-4B-Base", 4.02), ("google/gemma-3-4b-pt", 4.30)],
)
def test_known_shapes_have_the_weights_that_their_cards_say(source, billions):
    shape = find_shape(Model(source=source))
    assert shape.weights / 1e9 == pytest.approx(billions, rel=0.005)
    assert "known shape" in shape.source


def test_a_multimodal_configuration_gives_its_text_model_and_weighs_its_tower():
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    config = Gemma3Config(text_config={**SIZES, "sliding_window": 8}, vision_config=vision).to_dict()
    shape = shape_of(config)
    assert (shape.hidden, shape.vocabulary) == (48, 97)
    # 27 layers of 4 * 1152^2 + 2 * 1152 * 4304 weights.
    assert shape.beside == 27 * (4 * 1152**2 + 2 * 1152 * 4304)


def test_a_local_folder_needs_no_weights(tmp_path):
    config = CONFIGS["qwen3"].to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    shape = find_shape(Model(source=str(tmp_path)))
    assert (shape.model_type, shape.layers, shape.head_size) == ("qwen3", 3, 16)
    assert str(tmp_path) in shape.source


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # Without gates a layer has two matrices where the formula counts three.
        (GPTNeoXConfig(**PLAIN), r"gpt_neox has [\d.]+ M weights, and the formula counts [\d.]+ M"),
        (PhiConfig(**PLAIN), "phi has .* M weights, and the formula counts"),
        # Heads and layers have other names there, and are read all the same.
        (GPT2Config(n_embd=32, n_layer=2, n_head=4), "gpt2 has no intermediate_size in its configuration"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_model_that_is_built_otherwise_is_not_counted_wrongly(tmp_path, config, message):
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        find_shape(Model(source=str(tmp_path)))


def test_a_configuration_is_read_by_the_common_names():
    settings = settings_of(GPT2Config(n_embd=32, n_layer=2, n_head=4))
    assert (settings["hidden_size"], settings["num_hidden_layers"], settings["num_attention_heads"]) == (32, 2, 4)


def test_the_embedded_model_is_weighed_as_it_is_built():
    shape = find_shape(Model(source="embedded/arithmetic"))
    assert (shape.hidden, shape.layers, shape.tied) == (64, 2, False)


def test_what_is_not_known_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"somebody/something: its shape is not known here.*hf download"):
        find_shape(Model(source="somebody/something"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="configuration cannot be loaded"):
        find_shape(Model(source=str(tmp_path)))
    with pytest.raises(InputError, match="has experts"):
        shape_of(SIZES | {"model_type": "qwen3_moe", "num_experts": 8})
    with pytest.raises(InputError, match="mamba has no num_attention_heads"):
        shape_of({"model_type": "mamba", "hidden_size": 8})
