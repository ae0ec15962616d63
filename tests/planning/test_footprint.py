"""A model without data against real models of transformers and peft, run here; and what is refused."""

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from slime_ray.config.model import Lora, Model
from slime_ray.config.settings import Settings
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.model.flops import Lengths
from slime_ray.model.footprint import Footprint, fill_row, footprint, peak_memory
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora

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
PAIR = Lengths(24, 30, 20)


def saved(tmp_path, config, **options) -> Footprint:
    config.save_pretrained(tmp_path)
    return Footprint(Model(source=str(tmp_path), **options))


def real(config, lora: Lora | None = LORA, dtype=torch.float32):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return add_lora(lm, lora) if lora else lm


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lora", [None, LORA, LORA.model_copy(update={"train_head": True})], ids=str)
def test_what_is_held_and_trained_is_what_the_real_model_has(tmp_path, name, lora):
    found, parameters = saved(tmp_path, CONFIGS[name], lora=lora), list(real(CONFIGS[name], lora).parameters())
    assert found.weight_bytes == sum(p.numel() * p.element_size() for p in parameters)
    assert found.trained == sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    assert found.sizes.windows == ((8, 8, None) if name == "gemma3" else (None,) * 3)
    assert found.packed


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_4_bit_weights_take_half_a_byte_and_their_scales(tmp_path, name, double):
    """Scales are of 64 weights, in 4 bytes; or of one byte, with 4 for 256 of them."""
    lm = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.bfloat16)
    layers = [module.weight for module in lm.model.modules() if type(module) is torch.nn.Linear]
    packed = sum(weight.numel() for weight in layers)
    found = saved(tmp_path, CONFIGS[name], lora=LORA, dtype="bfloat16", quantization="nf4", double_quantization=double)
    rest = sum(p.numel() for p in lm.parameters()) - packed
    per_weight = 0.5 + (1 / 64 + 4 / 64 / 256 if double else 4 / 64)
    assert found.weight_bytes - found.trained == pytest.approx(2 * rest + per_weight * packed, abs=1)
    assert found.unpacked == 2 * max(weight.numel() for weight in layers)
    # What is written of it are adapters.
    assert found.merged == found.saved == found.trained
    whole = saved(tmp_path, CONFIGS[name], lora=LORA, dtype="bfloat16")
    # peft's layers keep more than the fused ones do.
    steps = [each.step(128, PAIR, gpu=True, checkpointing=False) for each in (found, whole)]
    assert steps[0] > steps[1]


def test_the_sft_stages_adapter_counts_where_it_stays_next_to_a_trials(tmp_path):
    CONFIGS["llama"].save_pretrained(tmp_path)
    other = {"rank": 8, "alpha": 8.0}
    found = {}
    for quantization in (None, "nf4"):
        model = {"source": str(tmp_path), "quantization": quantization, "lora": LORA.model_dump()}
        settings = Settings.model_validate(
            {
                "model": model, "data": {"train": "pairs.jsonl"}, "objective": {"name": "slime"},
                "sft": {"learning_rate": 1e-3, "lora": other}, "training": {"learning_rate": 1e-3},
                "evaluation": {"judge": {"name": "none"}},
            }
        )  # fmt: skip
        peak = peak_memory(settings, gpu=True, workers=1, sharded=False, row=128, pair=PAIR, prompt=24)
        found[quantization] = peak.parts.get("the SFT stage's adapter")
    assert found == {None: None, "nf4": 2 * footprint(settings.model).trained}


def test_adapters_on_some_layers_only(tmp_path):
    sizes = saved(tmp_path, CONFIGS["llama"], lora=LORA.model_copy(update={"targets": ["q_proj", "v_proj"]})).sizes
    # q reads 48 and writes 64, v writes 32; of each the part that reads is 4 * 48.
    assert sizes.adapters == 3 * 4 * (48 + 64 + 48 + 32)
    assert sizes.adapters_first == 2 * 4 * 48
    # q, k and v of the first layer write 64, 32 and 32.
    assert sizes.body_first == 48 * (64 + 32 + 32)
    assert sizes.body == 3 * (48 * (64 + 32 + 32) + 64 * 48 + 3 * 48 * 80)


class Kept:
    """What torch keeps for the backward pass of a real step, weights left out. It holds the tensors, so that no other
    takes an address."""

    def __init__(self, policy: Policy):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
        self.seen: dict[int, tuple[int, torch.Tensor]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.seen.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_activations_are_those_that_torch_keeps_of_a_real_step(tmp_path, name, dtype):
    """On a CPU, whose attention is the same with data and without: the peak is above what is kept, and not by much."""
    config = CONFIGS[name].to_dict() | {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}
    config = type(CONFIGS[name])(**config)
    policy = Policy(real(config, dtype=getattr(torch, dtype))).train()
    kept = Kept(policy)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor), autocast:
        policy(pack([TokenPair(*([1] * length for length in PAIR))] * 3))
    found = saved(tmp_path, config, lora=LORA, dtype=dtype)
    step = found.step(3 * sum(PAIR), PAIR, gpu=False, checkpointing=False)
    assert kept.bytes < step < 1.35 * kept.bytes
    assert found.step(3 * sum(PAIR), PAIR, gpu=False, checkpointing=True) < 0.5 * step


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_two_depths_say_what_the_whole_depth_says(tmp_path, name, checkpointing):
    config = CONFIGS[name].to_dict() | {"num_hidden_layers": 7, "layer_types": ["full_attention"] * 7}
    found = saved(tmp_path, type(CONFIGS[name])(**config), lora=LORA, dtype="bfloat16")
    lengths = fill_row(200, PAIR)
    whole = found.meter(found.model_of(7), lengths, gpu=True, checkpointing=checkpointing).peak
    assert found.step(200, PAIR, gpu=True, checkpointing=checkpointing) == pytest.approx(whole, rel=0.01)


def test_layers_of_several_kinds_are_measured_at_their_own_depth(tmp_path, monkeypatch):
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 6})
    found, seen = saved(tmp_path, config), []
    monkeypatch.setattr(found, "model_of", lambda layers: seen.append(layers) or Footprint.model_of(found, layers))
    monkeypatch.setattr(found, "_layers_alike", False)
    found.step(100, PAIR, gpu=True, checkpointing=False)
    assert seen == [6]


def test_the_cache_of_answers_by_hand(tmp_path):
    """Two layers that see 8 positions back and one that sees all 40, keys and values of 2 x 16 float32 numbers."""
    found = saved(tmp_path, CONFIGS["gemma3"])
    cache = (7 + 7 + 40) * 2 * 2 * 16 * 4
    # Each answer has five rows of logits as well; reading one token takes less.
    assert found.answers(5, 1, 39, gpu=True) == 5 * (cache + 5 * 4 * 97)


@pytest.mark.parametrize(("row", "pairs"), [(740, 10), (750, 10), (100, 1), (7, 1)])
def test_rows_are_filled_to_the_token(row, pairs):
    lengths = fill_row(row, PAIR)
    assert len(lengths) == pairs
    assert sum(map(sum, lengths)) == row
    assert all(part > 0 for each in lengths for part in each)


@pytest.mark.parametrize(
    ("source", "billions"),
    # As the cards say: 3.21 B; 4.0 B, 3.6 B of them not embeddings; 3.209 B and 0.675 B of embeddings without the tower.
    [("meta-llama/Llama-3.2-3B", 3.21), ("Qwen/Qwen3-4B-Base", 4.02), ("google/gemma-3-4b-pt", 3.88)],
)
def test_known_models_have_the_weights_that_their_cards_say(source, billions):
    found = footprint(Model(source=source))
    assert found.weights / 1e9 == pytest.approx(billions, rel=0.005)
    assert "known shape" in found.source


def test_a_local_folder_needs_no_weights(tmp_path):
    config = CONFIGS["qwen3"].to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    found = footprint(Model(source=str(tmp_path)))
    assert (found.config.model_type, found.layers, found.sizes.attention_width) == ("qwen3", 3, 4 * 16)
    assert str(tmp_path) in found.source


@pytest.mark.parametrize(
    "config",
    [GPTNeoXConfig(**PLAIN), PhiConfig(**PLAIN), GPT2Config(n_embd=48, n_layer=3, n_head=4, vocab_size=97)],
    ids=lambda config: config.model_type,
)
def test_models_without_gates_are_measured_as_they_are(tmp_path, config):
    found = saved(tmp_path, config, lora=None)
    assert not found.packed
    # A layer's matrices: four of attention, two of the feed-forward part, which is four times as wide.
    assert found.sizes.adapters == 3 * (4 * 48 * 48 + 2 * 48 * 192)
    assert found.sizes.attention_width == 48
    assert found.step(200, PAIR, gpu=True, checkpointing=False) > 200 * 3 * 48 * 4


def test_flops_that_are_not_the_formulas_are_refused(tmp_path, monkeypatch):
    found = saved(tmp_path, CONFIGS["llama"], lora=LORA)
    monkeypatch.setattr("slime_ray.model.footprint.linear_flops", lambda *_, **__: 10**6)
    with pytest.raises(InputError, match="its layers are built otherwise, which the formula does not know"):
        found.step(200, PAIR, gpu=True, checkpointing=False)


def test_the_embedded_model_is_weighed_as_it_is_built():
    found = footprint(Model(source="embedded/arithmetic"))
    assert (found.sizes.hidden, found.layers, found.tied) == (64, 2, False)


def test_what_is_not_known_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"somebody/something: its shape is not known here.*hf download"):
        footprint(Model(source="somebody/something"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="configuration cannot be loaded"):
        footprint(Model(source=str(tmp_path)))
    with pytest.raises(InputError, match="has experts"):
        saved(tmp_path, Qwen3MoeConfig(**SIZES, num_experts=8))
    with pytest.raises(InputError, match="mamba has no num_attention_heads"):
        saved(tmp_path, MambaConfig(vocab_size=97, hidden_size=8, num_hidden_layers=1))
