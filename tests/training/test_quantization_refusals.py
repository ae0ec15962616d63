"""What 4-bit base weights are refused for, in one sentence, before anything is made; without bitsandbytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from slime_ray import cli
from slime_ray.config import model as model_settings
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.on_ray import preflight
from slime_ray.runs.store import RunStore
from slime_ray.training.outcome import say_nothing
from slime_ray.training.stages import prepare
from tests.model.tiny_files import save_llama

LORA = {"rank": 4, "alpha": 8.0}
SFT = {"updates": 2}
ENGINE = {"name": "openai", "model": "sft"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("bases") / "base")


def written(
    folder: Path, base: Path, model: dict[str, Any], *, sft: Any = SFT, evaluation: Any = None, **keys: Any
) -> Path:
    file = {
        "name": "given",
        "preset": "arithmetic",
        "base": {
            "model": {"source": str(base), "quantization": "nf4", "lora": LORA, **model}, "sft": sft,
            "evaluation": evaluation or {},
        },
        "arms": {"policy": {}},
        **keys,
    }  # fmt: skip
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("model", "sft", "evaluation", "sentence"),
    [
        ({"lora": None}, SFT, {}, "lora is null, which trains every weight; 4-bit weights cannot be trained"),
        ({}, SFT | {"lora": None}, {}, r"sft\.lora is null, which trains every weight"),
        ({"lora": LORA | {"train_head": True}}, None, {}, r"lora\.train_head trains the head in full"),
        ({}, SFT | {"lora": LORA | {"train_head": True}}, {}, r"lora\.train_head trains the head in full"),
        ({"lora": LORA | {"dora": True}}, SFT, {}, "DoRA's updates do not add up"),
        ({"source": "embedded/arithmetic"}, SFT, {}, "a tiny model made by this package"),
        ({"source": "model.gguf"}, SFT, {}, "a GGUF file has a quantization of its own"),
        ({"gguf_file": "model.gguf"}, SFT, {}, "a GGUF file has a quantization of its own"),
        ({"quantization": "int8"}, SFT, {}, "quantization is 'int8'"),
        ({}, SFT, {"engine": ENGINE}, "a whole SFT checkpoint, which a 4-bit base has none of"),
        ({"load_in_4bit": True}, SFT, {}, "unknown key. Here it is model.quantization: nf4"),
        ({"bnb_4bit_use_double_quant": True}, SFT, {}, "unknown key. Here it is model.double_quantization"),
    ],
)
def test_what_cannot_be_trained_or_exported_is_refused_by_check(tmp_path, base, model, sft, evaluation, sentence):
    file = written(tmp_path, base, model, sft=sft, evaluation=evaluation)
    with pytest.raises(InputError, match=sentence):
        load_experiment(file)


@pytest.mark.parametrize(
    ("model", "arm", "sentence"),
    [
        ({}, {}, "model.quantization nf4 makes 4-bit weights, which cannot be divided, and fsdp2 divides the model"),
        ({"quantization": None}, {"model.quantization": "fp4"}, "model.quantization fp4 makes 4-bit weights"),
        (
            {"quantization": None, "lora": LORA | {"dora": True}},
            {},
            "DoRA takes norms of whole weights.* or dora: false",
        ),
        ({"quantization": None}, {"model.lora.dora": True}, "DoRA takes norms of whole weights"),
        ({"quantization": None}, {"sft.lora": LORA | {"dora": True}}, "DoRA takes norms of whole weights"),
    ],
)
def test_sharding_is_refused_by_check_in_base_and_in_arms(tmp_path, base, model, arm, sentence):
    file = written(tmp_path, base, model, arms={"policy": arm}, resources={"strategy": "fsdp2", "workers": 2})
    with pytest.raises(InputError, match=sentence):
        load_experiment(file)


def test_doras_alone_and_4_bit_arms_next_to_others_are_taken(tmp_path, base):
    load_experiment(written(tmp_path, base, {"lora": LORA | {"dora": True}}, sft=None))
    arms = {"whole": {"model.quantization": None}, "packed": {}}
    experiment = load_experiment(written(tmp_path, base, {}, arms=arms))
    found = [experiment.settings_with(arm.set).sft_model.quantization for arm in experiment.arms]
    assert found == [None, "nf4"]


def test_a_machine_without_a_gpu_or_without_bitsandbytes_is_refused_before_anything_is_made(
    tmp_path, base, capsys, monkeypatch
):
    if torch.cuda.is_available():
        pytest.skip("This machine has a GPU.")
    file = written(tmp_path, base, {})
    assert cli.main(["train", str(file), "--storage", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "model.quantization is nf4: 4-bit base weights need a GPU, and torch sees none" in " ".join(said.split())
    assert "Traceback" not in said
    assert not list((tmp_path / "runs").glob(".stages/*"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model_settings, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need the package bitsandbytes, .* Install slime-ray\[quantized\]"):
        prepare(load_experiment(file).settings, storage=RunStore(tmp_path / "other"), report=say_nothing)
    assert not (tmp_path / "other" / ".stages").exists()


def test_a_sweep_without_gpus_or_without_bitsandbytes_is_refused_by_doctor(tmp_path, base, monkeypatch):
    monkeypatch.setattr(model_settings, "find_spec", lambda name: None)
    experiment = load_experiment(written(tmp_path, base, {}))
    found = [finding.sentence for finding in preflight._quantized(experiment) if finding.level == "error"]
    assert len(found) == 2
    assert "bitsandbytes, which is not installed" in found[0]
    assert "resources.gpu_per_worker is 0" in found[1]
    arms = {"policy": {"model.quantization": "nf4"}}
    arm = load_experiment(written(tmp_path, base, {"quantization": None}, arms=arms))
    assert len(list(preflight._quantized(arm))) == 2
    assert not list(preflight._quantized(load_experiment(written(tmp_path, base, {"quantization": None}))))


def test_older_results_are_read_without_the_new_keys(tmp_path, base):
    content = json.loads(load_experiment(written(tmp_path, base, {"quantization": None})).settings.model_dump_json())
    del content["model"]["quantization"], content["model"]["double_quantization"]
    settings = type(load_experiment(tmp_path / "given.yaml").settings).model_validate(content)
    assert settings.model.quantization is None
