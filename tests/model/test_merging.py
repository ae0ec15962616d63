"""An adapter where a model is expected: its base with the adapter merged, equal to peft's own forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from slime_ray.config.model import Lora, Model
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.loading import load_checkpoint, load_config, load_model, load_tokenizer, weight_sources
from slime_ray.model.tiny import tiny_tokenizer

from .tiny_files import change_json, change_weights, copy, cut, log_probabilities, point, renamed, save_llama, without

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def lora(**options: Any) -> peft.LoraConfig:
    chosen: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**chosen | options)


KINDS: dict[str, peft.PeftConfig] = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "loha": peft.LoHaConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "no task": peft.LoraConfig(r=4, target_modules=["q_proj"]),
    "head": lora(target_modules=["q_proj", "lm_head"]),
    "embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "trained head": lora(modules_to_save=["lm_head"]),
    "trained embeddings": lora(modules_to_save=["embed_tokens"]),
    "tied by peft": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "tokens": lora(trainable_token_indices=[3, 5]),
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("bases") / "base", tied=request.param)


def train(base: Path, config: peft.PeftConfig, folder: Path) -> torch.Tensor:
    """Save an adapter that changes a lot; returns what base and adapter compute together, by peft."""
    adapted: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return log_probabilities(adapted)


def source(folder: Path) -> Model:
    return Model(source=str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_computes_what_peft_does_also_when_saved_again(base, tmp_path, kind):
    expected, notes = train(base, KINDS[kind], tmp_path / "adapter"), []
    assert (expected - log_probabilities(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.01
    lm = load_model(source(tmp_path / "adapter"), seed=0, note=notes.append)
    assert notes == [f"The adapter {tmp_path / 'adapter'} was merged into its base {base}."]
    torch.testing.assert_close(log_probabilities(lm), expected, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in lm.parameters())
    lm.save_pretrained(tmp_path / "again")
    again = log_probabilities(load_checkpoint(tmp_path / "again", dtype="float32"))
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_an_adapter_of_gpt2_whose_layers_are_transposed_is_merged(tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, initializer_range=0.1))
    base.save_pretrained(tmp_path / "base")
    expected = train(tmp_path / "base", lora(target_modules=["c_attn", "lm_head"]), tmp_path / "adapter")
    lm = load_model(source(tmp_path / "adapter"), seed=0)
    torch.testing.assert_close(log_probabilities(lm), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("plain") / "base")


@pytest.fixture
def adapter(plain, tmp_path) -> Path:
    train(plain, lora(), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_in_bfloat16_merging_rounds_and_is_not_taken_for_another_model(plain, tmp_path, modules_to_save):
    expected = train(plain, lora(modules_to_save=modules_to_save), tmp_path / "adapter")
    lm = load_model(Model(source=str(tmp_path / "adapter"), dtype="bfloat16", lora=Lora()), seed=0)
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(log_probabilities(lm), expected, atol=0.1, rtol=0)


def test_a_head_that_only_the_adapter_has_need_not_be_in_the_base(plain, tmp_path):
    headless = copy(plain, tmp_path / "headless")
    expected = train(plain, lora(modules_to_save=["lm_head"]), tmp_path / "adapter")
    change_weights(headless / "model.safetensors", without("lm_head"))
    change_json(tmp_path / "adapter" / CONFIG, base_model_name_or_path=str(headless))
    lm = load_model(source(tmp_path / "adapter"), seed=0)
    torch.testing.assert_close(log_probabilities(lm), expected, atol=1e-5, rtol=0)


def test_configuration_tokenizer_and_hash_know_both_parts(plain, adapter, tmp_path):
    whole, tokenizer = copy(plain, tmp_path / "whole"), tiny_tokenizer(load_task("arithmetic"))
    change_json(adapter / CONFIG, base_model_name_or_path=str(whole))
    assert weight_sources(source(adapter)) == [str(adapter), str(whole)]
    assert weight_sources(source(whole)) == [str(whole)]
    config = load_config(source(adapter))
    assert config is not None
    assert config.num_hidden_layers == 2
    tokenizer.save_pretrained(whole)
    assert len(load_tokenizer(source(adapter))) == len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    assert len(load_tokenizer(source(adapter))) == len(tokenizer)


@pytest.mark.parametrize("named", ["base", "models/base"])
def test_a_relative_base_is_found_from_the_adapters_folder_wherever_a_process_runs(
    plain, adapter, tmp_path, monkeypatch, named
):
    whole = copy(plain, tmp_path / named)
    change_json(adapter / CONFIG, base_model_name_or_path=named)
    monkeypatch.chdir("/")
    assert weight_sources(source(adapter))[1] == str(whole)


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / CONFIG, **values)


def weights(change: Callable) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder / WEIGHTS, change)


def other_base(**sizes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(base_model_name_or_path=str(save_llama(folder.parent / "other", **sizes)))(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (weights(without("layers.1.")), "lacks 4 weights (base_model.model.model.layers.1.self_attn.q_proj.lora_A.wei"),
        (
            weights(renamed(lambda name: name.replace("model.model.", "model._orig_mod.model."))),
            "save the model unwrap",
        ),
        (
            weights(
                lambda found: {**found, "base_model.model.model.layers.7.q_proj.lora_A.weight": torch.zeros(4, 32)}
            ),
            "has 1 weight (base_model.model.model.layers.7.q_proj.lora_A.weight) that its base has no place for",
        ),
        (weights(lambda found: {name: weight * float("nan") for name, weight in found.items()}), "are not finite"),
        (changed(modules_to_save=["lm_head"]), "lacks 1 weight (base_model.model.lm_head.weight)"),
        (changed(r=8), "size mismatch"),
        (changed(r="4"), "cannot be used: TypeError"),
        (changed(target_modules=["c_attn"]), "not found in the base model"),
        (other_base(num_hidden_layers=1), "that its base has no place for"),
        (other_base(num_hidden_layers=3), "lacks 4 weights"),
        (other_base(hidden_size=64), "size mismatch"),
        (changed(task_type="SEQ_CLS"), "is for SEQ_CLS, not for CAUSAL_LM"),
        (changed(peft_type="NEWER"), "has peft_type 'NEWER', which peft "),
        (changed(use_newer=True), "sets use_newer, which peft "),
        (changed(alora_invocation_tokens=[3]), "does not support merging"),
        (changed(base_model_name_or_path="/nowhere/base"), "its base /nowhere/base is not here"),
        (changed(base_model_name_or_path="./base"), "its base ./base is not here"),
        (changed(base_model_name_or_path="some/model"), "its base some/model: "),
        (changed(base_model_name_or_path=None), "names no base model"),
        (
            lambda folder: changed(base_model_name_or_path=str(copy(folder, folder.parent / "two")))(folder),
            "is an adapter it",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
            "only adapter_model.bin, which is pickle",
        ),
        (lambda folder: save_llama(folder), "holds both an adapter (adapter_model.safetensors) and a whole model"),
        (lambda folder: cut(folder / WEIGHTS), "adapter_model.safetensors is cut short"),
        (lambda folder: point(folder / WEIGHTS), "adapter_model.safetensors is a Git LFS pointer"),
        (lambda folder: cut(folder / CONFIG), "adapter_config.json is not valid JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "adapter_config.json holds a list"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_never_dropped(adapter, damage, words):
    damage(adapter)
    with pytest.raises(InputError) as caught:
        load_model(source(adapter), seed=0)
    assert str(caught.value).startswith(f"model.source {adapter}: the model cannot be loaded: ")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "of type PROMPT_TUNING, which adds to pr",
        ),
        (
            peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "of type PREFIX_TUNING, which adds to pr",
        ),
        (
            peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_layers=1, adapter_len=4),
            "of type ADAPTION_PROMPT, which cannot be merged",
        ),
    ],
)
def test_an_adapter_that_is_no_change_of_weights_is_refused(plain, tmp_path, config, words):
    train(plain, config, tmp_path / "adapter")
    with pytest.raises(InputError, match=words):
        load_model(source(tmp_path / "adapter"), seed=0)


def test_a_bias_that_the_adapter_was_trained_with_and_lacks_is_missed(tmp_path):
    base = save_llama(tmp_path / "base", attention_bias=True)
    train(base, lora(bias="all"), tmp_path / "adapter")
    load_model(source(tmp_path / "adapter"), seed=0)
    change_weights(tmp_path / "adapter" / WEIGHTS, without("layers.1.self_attn.k_proj.bias"))
    with pytest.raises(InputError, match=r"lacks 1 weight \(base_model.model.model.layers.1.self_attn.k_proj.bias\)"):
        load_model(source(tmp_path / "adapter"), seed=0)
