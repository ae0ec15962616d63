"""Every weight of a model comes from its files, or one sentence says which does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slime_ray.config.model import Model
from slime_ray.errors import InputError
from slime_ray.model.loading import load_checkpoint, load_model

from .tiny_files import change_json, change_weights, copy, cut, log_probabilities, point, renamed, save_llama, without


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "untied")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tied", tied=True)


def weights(change: Callable) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder / "model.safetensors", change)


def refusal(folder: Path, **options: Any) -> str:
    """What is said of a model that both ways of loading refuse."""
    with pytest.raises(InputError) as caught:
        load_model(Model(source=str(folder), **options), seed=0)
    with pytest.raises(InputError) as again:
        load_checkpoint(folder, dtype="float32")
    assert str(again.value) in str(caught.value).replace(f"model.source {folder}: the model", str(folder))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (weights(without("lm_head")), "its files lack 1 weight (lm_head.weight)."),
        (weights(without("layers.1.")), "its files lack 9 weights (model.layers.1.input_layernorm.weight, "),
        (weights(without("k_proj")), "its files lack 2 weights (model.layers.0.self_attn.k_proj.weight, "),
        (weights(renamed("_orig_mod.{}".format)), "as a wrapped model saves them: save the model unwrapped"),
        (weights(renamed("module.{}".format)), "lack 21 weights (lm_head.weight, "),
        (
            lambda folder: change_json(folder / "config.json", num_hidden_layers=3),
            "its files lack 9 weights (model.lay",
        ),
        (lambda folder: change_json(folder / "config.json", vocab_size=69), "lm_head.weight is 61x32 instead of 69x32"),
        (
            lambda folder: change_json(folder / "config.json", intermediate_size=50),
            "6 weights (model.layers.0.mlp.down",
        ),
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_refused_by_name(untied, tmp_path, damage, words):
    folder = copy(untied, tmp_path / "m")
    damage(folder)
    assert words in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused_by_name(untied, tmp_path, value, dtype):
    folder = copy(untied, tmp_path / "m")
    weights(lambda found: {**found, "model.norm.weight": torch.full((32,), value)})(folder)
    assert "numbers that are not finite in 1 weight (model.norm.weight)" in refusal(folder, dtype=dtype)


def test_a_tied_head_need_not_be_in_the_file_nor_the_embeddings_if_the_head_is(tied, tmp_path):
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(tied))
    other = copy(tied, tmp_path / "m")
    weights(renamed(lambda name: name.replace("model.embed_tokens", "lm_head")))(other)
    for folder in (tied, other):
        assert torch.equal(log_probabilities(load_model(Model(source=str(folder)), seed=0)), expected)
    weights(without("lm_head"))(other)
    assert "its files lack 2 weights (lm_head.weight, model.embed_tokens.weight)" in refusal(other)


def test_a_head_of_its_own_that_the_configuration_ties_stays_apart_and_is_told(tied, tmp_path):
    folder, notes = copy(tied, tmp_path / "m"), []
    weights(lambda found: {**found, "lm_head.weight": torch.randn(61, 32)})(folder)
    lm = load_model(Model(source=str(folder)), seed=0, note=notes.append)
    assert notes == [f"Head and embeddings of {folder} differ, though its configuration ties them: they stay apart."]
    lm.save_pretrained(tmp_path / "again")
    again = log_probabilities(load_checkpoint(tmp_path / "again", dtype="float32"))
    assert torch.equal(again, log_probabilities(AutoModelForCausalLM.from_pretrained(folder)))


def test_weights_that_the_model_has_no_place_for_are_told(untied, tmp_path):
    folder, notes = copy(untied, tmp_path / "m"), []
    weights(lambda found: {**found, "v_head.bias": torch.zeros(1), "v_head.weight": torch.zeros(1, 32)})(folder)
    load_model(Model(source=str(folder)), seed=0, note=notes.append)
    assert notes == [
        f"The files of {folder} hold 2 weights (v_head.bias, v_head.weight) that the model has no place for: not used."
    ]


@pytest.fixture
def sharded(untied, tmp_path) -> Path:
    AutoModelForCausalLM.from_pretrained(untied).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    return tmp_path / "m"


def test_shards_are_read_and_one_that_is_absent_cut_or_left_out_is_refused(sharded, untied, tmp_path):
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(untied))
    assert torch.equal(log_probabilities(load_model(Model(source=str(sharded)), seed=0)), expected)
    first, second, *_ = sorted(file.name for file in sharded.glob("*.safetensors"))
    absent, short, left_out = (copy(sharded, tmp_path / name) for name in ("absent", "short", "left_out"))
    (absent / second).unlink()
    assert f"{absent / second} is absent, and model.safetensors.index.json names it" in refusal(absent)
    cut(short / second)
    assert f"{short / second} is cut short: it has " in refusal(short)
    index = left_out / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(second, first))
    assert "its files lack " in refusal(left_out)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: point(folder / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
        (lambda folder: point(folder / "config.json"), "config.json is a Git LFS pointer"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut short: it has "),
        (
            lambda folder: (folder / "model.safetensors").write_text(""),
            "model.safetensors is cut short: it has 0 bytes",
        ),
        (lambda folder: (folder / "model.safetensors").write_text("<html>" * 9), "or no safetensors file"),
        (lambda folder: cut(folder / "config.json"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list instead of"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json: it holds generation_config.json, "),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "has no config.json: it is empty"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only pytorch_model.bin, which is pickled",
        ),
        (
            lambda folder: change_json(folder / "config.json", model_type="llama9"),
            "does not recognize this architecture",
        ),
        (
            lambda folder: change_json(folder / "config.json", model_type="t5"),
            "config.json cannot be used: Unrecognized",
        ),
        (
            weights(lambda found: {name: value.to(torch.int8) for name, value in found.items()}),
            "holds quantized weights",
        ),
        (
            lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "new", "bits": 4}),
            "has a quantization_config that transformers ",
        ),
        (lambda folder: change_json(folder / "config.json", hidden_size="32"), "'hidden_size' expected int, got str"),
        (lambda folder: change_json(folder / "config.json", hidden_act="nope"), "config.json cannot be used: KeyError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(untied, tmp_path, damage, words):
    folder = copy(untied, tmp_path / "m")
    damage(folder)
    assert words in refusal(folder)
    assert str(folder) in refusal(folder)


def test_lack_of_memory_is_no_fault_of_the_files(untied, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(Model(source=str(untied)), seed=0)
