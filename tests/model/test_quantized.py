"""4-bit base weights against transformers, peft and bitsandbytes by themselves, on a CPU."""

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from slime_ray.config.model import Lora, Model
from slime_ray.data.packing import pack
from slime_ray.errors import InputError
from slime_ray.model import footprint
from slime_ray.model.loading import load_checkpoint, load_model, make_policy
from slime_ray.model.lora import add_lora, find_adapted

from .conftest import CONFIGS, all_alone, random_pairs
from .families import tiny_family
from .tiny_files import IDS, save_llama

bnb = pytest.importorskip("bitsandbytes")
FAMILIES = ("llama", "qwen3", "gemma3_text")
KINDS = {
    "nf4": {},
    "fp4": {"quantization": "fp4", "double_quantization": False},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as a GPU holds them, on processors on which bitsandbytes would pack them for evaluation alone."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(path)
    return path


def settings(folder: Path, **options: Any) -> Model:
    lora = Lora(rank=4, alpha=8.0)
    return Model(**{"source": str(folder), "quantization": "nf4", "lora": lora, **options})


def plain(folder: Path, *, dtype: str = "float32", quantization: str = "nf4", double_quantization: bool = True) -> Any:
    """The model as the documentation of transformers loads it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=getattr(torch, dtype)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_own_loading(folder, kind):
    ours, theirs = load_model(settings(folder, **KINDS[kind]), seed=0).eval(), plain(folder, **KINDS[kind])
    layers = [module for module in ours.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 7 * ours.config.num_hidden_layers
    assert {layer.weight.quant_type for layer in layers} == {KINDS[kind].get("quantization", "nf4")}
    with torch.no_grad():
        logits, expected = ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits
    assert torch.equal(logits, expected)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=ours.dtype).eval()
    assert (whole(input_ids=IDS).logits - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_adapters_are_those_of_peft_over_transformers(folder, kind):
    """Packed rows through the tiled head, against one sequence at a time through the model's own forward pass."""
    model = settings(folder, **KINDS[kind])
    config = peft.LoraConfig(r=4, lora_alpha=8.0, target_modules=list(model.lora.targets), task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain(folder, **KINDS[kind]), config)
    ours = add_lora(load_model(model, seed=0), model.lora)
    torch.manual_seed(1)
    weights = {name: 0.1 * torch.randn_like(value) for name, value in theirs.named_parameters() if value.requires_grad}
    found = []
    pairs = random_pairs(3)
    for lm in (ours, theirs.eval()):
        trained = {name: value for name, value in lm.named_parameters() if value.requires_grad}
        assert trained.keys() == weights.keys()
        for name, value in trained.items():
            assert value.dtype == torch.float32
            value.data = weights[name].clone()
        if lm is ours:
            policy = make_policy(lm, model)
            assert policy.shares_prompts
            logps = policy(pack(pairs))
            logps = torch.cat([logps.chosen, logps.rejected]).double()
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bfloat16"):
                logps = all_alone(lm, pairs)
        loss = -torch.nn.functional.logsigmoid(torch.linspace(-1, 1, len(logps), dtype=torch.float64) * logps).mean()
        found.append([loss, *torch.autograd.grad(loss, list(trained.values()))])
    size = max(float(each.abs().max()) for each in found[1][1:])
    tolerance = 0.05 if kind == "bfloat16" else 1e-5
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_found_in_4_bit_layers_as_in_others(folder, targets):
    lora = Lora(targets=targets, rank=2)
    found = [find_adapted(load_model(model, seed=0), lora) for model in (settings(folder), Model(source=str(folder)))]
    assert dataclasses.asdict(found[0]) == dataclasses.asdict(found[1])


def test_evaluating_in_between_leaves_gradients_as_they_were(folder, monkeypatch):
    """On processors on which bitsandbytes packs weights anew for evaluation, they have none after it."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    lm = load_model(model := settings(folder), seed=0)
    policy, rows = make_policy(add_lora(lm, model.lora), model).eval(), pack(random_pairs(2))
    with torch.no_grad():
        before = policy(rows).chosen
    policy(rows).chosen.sum().backward()
    assert torch.equal(policy(rows).chosen, before)
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in policy.parameters())


@pytest.mark.parametrize("double", [False, True])
def test_files_that_are_quantized_already_are_taken_as_they_are_or_refused(tmp_path, double):
    base = save_llama(tmp_path / "base")
    lm = plain(base, double_quantization=double)
    lm.save_pretrained(tmp_path / "packed")
    model = settings(tmp_path / "packed", double_quantization=double)
    assert torch.equal(load_model(model, seed=0).eval()(input_ids=IDS).logits, lm(input_ids=IDS).logits)
    # What is measured alone may be anything.
    measured = load_checkpoint(tmp_path / "packed", dtype="float32")
    assert torch.equal(measured.eval()(input_ids=IDS).logits, lm(input_ids=IDS).logits)
    for change, sentence in (
        ({"quantization": None}, "set model.quantization: nf4"),
        ({"quantization": "fp4"}, "bnb_4bit_quant_type nf4"),
        ({"double_quantization": not double}, "bnb_4bit_use_double_quant"),
        ({"dtype": "bfloat16"}, "bnb_4bit_compute_dtype"),
    ):
        with pytest.raises(InputError, match=sentence):
            load_model(settings(tmp_path / "packed", **{"double_quantization": double} | change), seed=0)


def test_an_adapter_is_not_merged_into_4_bit_weights(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "base")), config)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"none is merged exactly .* Set lora: keep"):
        load_model(settings(tmp_path / "adapter"), seed=0)


def test_experts_that_would_stay_as_they_are_are_refused(tmp_path):
    tiny_family("qwen3_moe").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"its experts are one weight, .*experts.*, which bitsandbytes leaves"):
        load_model(settings(tmp_path), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_estimate_are_those_that_are_held(folder, kind):
    model = settings(folder, **KINDS[kind])
    lm = add_lora(load_model(model, seed=0), model.lora)
    held = sum(parameter.numel() * parameter.element_size() for parameter in lm.parameters())
    for module in lm.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            tensors = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # Blocks of so small a model are not full.
    assert footprint.footprint(model).weight_bytes == pytest.approx(held, rel=0.02)
    without = footprint.footprint(model.model_copy(update={"quantization": None})).weight_bytes
    assert footprint.footprint(model).weight_bytes < 0.8 * without
