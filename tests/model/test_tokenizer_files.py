"""Tokenizers, GGUF files and parts that cannot be read: one sentence that names the file."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from slime_ray.config.model import Model
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model import loading
from slime_ray.model.loading import load_config, load_model, load_tokenizer
from slime_ray.model.tiny import tiny_tokenizer

from .tiny_files import cut, point


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def add_a_merge_of_unknown_words(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": ["zzz qqq"]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["source", "tokenizer"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: cut(folder / "tokenizer.json"), "tokenizer.json is not valid JSON"),
        (lambda folder: point(folder / "tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
        (lambda folder: (folder / "tokenizer.json").write_text("null"), "tokenizer.json holds a NoneType"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be used"),
        (add_a_merge_of_unknown_words, "tokenizer.json cannot be used: Exception"),
        (lambda folder: cut(folder / "tokenizer_config.json"), "tokenizer_config.json is not valid JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json holds a list"),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": "long"}'),
            "TypeError: '>' not supported between",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (
            lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
            "has no tokenizer.json, and tokenizer.model cannot be used: ",
        ),
        (lambda folder: point(folder / "tokenizer.model"), "tokenizer.model is a Git LFS pointer"),
        (lambda folder: point(folder / "chat_template.jinja"), "chat_template.jinja is a Git LFS pointer"),
    ],
)
def test_a_tokenizers_file_that_cannot_be_used_is_named(folder, key, damage, words):
    damage(folder)
    model = Model(source=str(folder)) if key == "source" else Model(source="embedded", tokenizer=str(folder))
    with pytest.raises(InputError) as caught:
        load_tokenizer(model)
    assert str(caught.value).startswith(f"model.{key} {folder}: the tokenizer cannot be loaded: ")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_panic_of_rust_code_is_a_sentence_too(folder, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*arguments: object, **options: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("slime_ray.model.pretrained.AutoTokenizer.from_pretrained", panic)
    monkeypatch.setattr(Tokenizer, "from_file", panic)
    with pytest.raises(InputError, match="PanicException: index out of bounds"):
        load_tokenizer(Model(source=str(folder)))


def test_an_interrupt_is_passed_on(folder, monkeypatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slime_ray.model.pretrained.AutoTokenizer.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(Model(source=str(folder)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is no GGUF file"),
        (b"<html>", "is no GGUF file"),
        (b"GGUF\x03\0\0\0", "cannot be used"),
    ],
)
@pytest.mark.parametrize("load", [load_tokenizer, load_config, lambda model: load_model(model, seed=0)])
def test_a_gguf_file_that_is_none_is_named(tmp_path, monkeypatch, content, words, load):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    if content.startswith(b"GGUF"):
        pytest.importorskip("gguf", reason="pip install gguf")
    monkeypatch.setattr(loading, "find_spec", lambda name: importlib.util.find_spec("json"))
    with pytest.raises(InputError) as caught:
        load(Model(source=str(file)))
    assert str(file) in str(caught.value)
    assert words in str(caught.value) or load is load_config


def test_a_gguf_file_without_the_package_that_reads_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gguf, which is not installed. Install slime-ray\[gguf\]"):
        load_model(Model(source=str(tmp_path / "m.gguf")), seed=0)
    with pytest.raises(InputError, match="there is no such file"):
        load_model(Model(source=str(tmp_path), gguf_file="other.gguf"), seed=0)


NAMES = {
    "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers.0": "blk.0", "model.layers.1": "blk.1",
}  # fmt: skip


def write_gguf(file: Path, *, leave_out: str = "nothing") -> LlamaForCausalLM:
    """A random Llama as llama.cpp's converter writes one; returns what it holds."""
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4,
        )
    )  # fmt: skip
    writer: Any = gguf.GGUFWriter(str(file), "llama")
    numbers = {
        "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "head_count": 4,
        "head_count_kv": 4, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 10000.0, "vocab_size": 61,
        "rope_dimension_count": 8,
    }  # fmt: skip
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(value)
    for name, weight in lm.state_dict().items():
        if name in ("q_proj", "k_proj") or "q_proj" in name or "k_proj" in name:
            # llama.cpp keeps the halves of rotary pairs next to each other.
            weight = weight.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if leave_out not in name:
            writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return lm


def test_a_gguf_file_is_read_whole_or_refused_by_the_name_of_a_weight(tmp_path):
    held = write_gguf(tmp_path / "m.gguf")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = load_model(Model(source=str(tmp_path / "m.gguf")), seed=0)(input_ids=ids).logits
        torch.testing.assert_close(found, held(input_ids=ids).logits, atol=1e-5, rtol=0)
    write_gguf(tmp_path / "m.gguf", leave_out="blk.1.attn_q")
    with pytest.raises(InputError, match=r"lack 1 weight \(model.layers.1.self_attn.q_proj.weight\)"):
        load_model(Model(source=str(tmp_path / "m.gguf")), seed=0)
    cut(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"m\.gguf cannot be used"):
        load_model(Model(source=str(tmp_path), gguf_file="m.gguf"), seed=0)


def test_a_tokenizer_with_dropout_gives_the_same_tokens_each_time(folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    words = ["river", "stone", "lamp"]
    letters = sorted(set("".join(words)))
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    vocabulary = dict.fromkeys([*content["model"]["vocab"], *letters, *(a + b for a, b in merges)])
    content["model"] = {
        "type": "BPE", "dropout": 0.5, "vocab": {text: number for number, text in enumerate(vocabulary)}, "merges": merges,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(Model(source=str(folder)))
    assert {tuple(tokenizer.tokenize("stone")) for _ in range(20)} == {("stone",)}
