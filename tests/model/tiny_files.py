"""Tiny models and adapters, saved as users have them, and ways to damage them."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Weights = Mapping[str, torch.Tensor]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
IDS = torch.arange(1, 30)[None]
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def save_llama(folder: Path, *, tied: bool = False, **sizes: Any) -> Path:
    """A random Llama whose head is its embeddings, or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES | sizes, tie_word_embeddings=tied, initializer_range=0.1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def change_weights(file: Path, change: Callable[[Weights], Weights]) -> None:
    """Write other weights into a file of safetensors."""
    weights = {name: weight.contiguous() for name, weight in change(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without(part: str) -> Callable[[Weights], Weights]:
    """Leave out the weights that have this in their names."""
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def renamed(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    """The same weights by other names."""
    return lambda weights: {change(name): weight for name, weight in weights.items()}


def cut(file: Path) -> None:
    """Keep the first half of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def point(file: Path) -> None:
    """Leave Git LFS's pointer instead of the file."""
    file.write_text(POINTER)


def copy(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, to))


@torch.no_grad()
def log_probabilities(lm: Any) -> torch.Tensor:
    """Over the vocabulary, at every position of a fixed row, as the model's own forward pass gives them."""
    found: torch.Tensor = lm.eval()(input_ids=IDS).logits.double().log_softmax(-1)
    return found
