"""Of a vision-language model only the text decoder is loaded, and computes what transformers' whole model does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlavaConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
)

from slime_ray.config.model import Lora, Model
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.footprint import footprint
from slime_ray.model.loading import load_adapter, load_checkpoint, load_config, load_model
from slime_ray.model.lora import add_lora
from slime_ray.model.tiny import tiny_tokenizer

from .conftest import VISION

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {"vision_config": VISION, "mm_tokens_per_image": 4}
CONFIGS = {
    # Of the soft cap the whole model takes no notice.
    "gemma3": Gemma3Config(text_config=TEXT | {"sliding_window": 4, "final_logit_softcapping": 2.0}, **GEMMA),
    "gemma3, untied": Gemma3Config(text_config=TEXT, **GEMMA, tie_word_embeddings=False),
    "llava": LlavaConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={"model_type": "clip_vision_model", **VISION}
    ),
    "mistral3": Mistral3Config(
        text_config={"model_type": "mistral", "sliding_window": 4, **TEXT},
        vision_config={"model_type": "pixtral", **VISION},
    ),
}
IDS = torch.arange(3, 23)[None]


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(input_ids=IDS.clone()).logits


def save(name: str, folder: Path) -> Any:
    """A model with random weights, norms included, as transformers saves the whole of it."""
    torch.manual_seed(0)
    lm = AutoModelForImageTextToText.from_config(CONFIGS[name])
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lm.save_pretrained(folder)
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(folder)
    return lm


@pytest.mark.parametrize("name", CONFIGS)
def test_a_vision_language_model_is_loaded_as_its_decoder_with_the_logits_of_the_whole(name, tmp_path):
    whole, notes = save(name, tmp_path), list[str]()
    lm = load_model(Model(source=str(tmp_path)), seed=0, note=notes.append)
    assert torch.equal(logits(lm), logits(whole))
    decoder = sum(parameter.numel() for parameter in whole.get_decoder().parameters())
    head = whole.get_output_embeddings().weight
    decoder += 0 if head is whole.get_input_embeddings().weight else head.numel()
    assert sum(parameter.numel() for parameter in lm.parameters()) == decoder
    assert decoder < sum(parameter.numel() for parameter in whole.parameters())
    assert "only the text decoder is loaded" in notes[0]
    # What a plan counts is what is loaded.
    model = Model(source=str(tmp_path))
    assert footprint(model).numbers == decoder
    assert load_config(model).model_type == lm.config.model_type


def test_a_checkpoint_and_a_merged_adapter_of_the_decoder_are_models_of_transformers(tmp_path):
    save("gemma3", tmp_path / "whole")
    lm = load_model(Model(source=str(tmp_path / "whole")), seed=0)
    lm.save_pretrained(tmp_path / "decoder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    assert torch.equal(logits(again), logits(lm))
    adapted = add_lora(lm, Lora(rank=2, alpha=4))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_adapter(load_checkpoint(tmp_path / "decoder", dtype="float32"), tmp_path / "adapter", merge=True)
    torch.testing.assert_close(logits(merged), logits(adapted))


def test_a_checkpoint_of_the_whole_model_stays_whole(tmp_path):
    """An adapter that was trained on it names its parts."""
    whole = save("gemma3", tmp_path)
    lm = load_checkpoint(tmp_path, dtype="float32")
    assert type(lm) is type(whole)
    assert torch.equal(logits(lm), logits(whole))


def test_a_vision_language_model_that_is_not_known_is_refused(tmp_path):
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2,
        "intermediate_size": 16, "out_hidden_size": 16})  # fmt: skip
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model cannot be loaded: .*Qwen2_5_VL"):
        load_model(Model(source=str(tmp_path)), seed=0)
