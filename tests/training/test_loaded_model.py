"""What the shared stages keep of the pretrained model that they were made from."""

from pathlib import Path

import peft
import pytest
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.model import Model
from slime_ray.config.settings import Settings
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.loading import load_checkpoint, load_model
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.runs.store import RunStore
from slime_ray.training.outcome import say_nothing
from slime_ray.training.stages import prepare
from tests.model.tiny_files import change_weights, log_probabilities, without

TEXT = """\
name: loaded
preset: arithmetic
base:
  model: {source: SOURCE}
  data: {pairs: 8, held_out_pairs: 4}
  sft: null
  evaluation: {prompts: 1, selection_prompts: 1, kl_prompts: 1, decoding: {max_new_tokens: 2}}
arms: {slime: {}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With an adapter for a model whose files hold a weight too many."""
    tiny_model(load_task("arithmetic"), seed=0).save_pretrained(tmp_path / "base")
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    weights = tmp_path / "base" / "model.safetensors"
    change_weights(weights, lambda found: {**found, "v_head.weight": found["model.norm.weight"] + 1})
    (tmp_path / "loaded.yaml").write_text(TEXT.replace("SOURCE", str(tmp_path / "adapter")))
    return load_experiment(tmp_path / "loaded.yaml").settings


def test_the_stages_tell_what_was_loaded_and_follow_the_weights_of_adapter_and_base(settings, tmp_path):
    storage, base, adapter = RunStore(tmp_path / "runs"), tmp_path / "base", tmp_path / "adapter"
    stages = prepare(settings, storage=storage, report=say_nothing)
    assert stages.data["model_notes"] == [
        f"The files of {base} hold 1 weight (v_head.weight) that the model has no place for: not used.",
        f"The adapter {adapter} was merged into its base {base}.",
    ]
    merged = load_model(Model(source=str(adapter)), seed=0)
    kept = load_checkpoint(stages.checkpoint, dtype="float32")
    assert log_probabilities(kept).equal(log_probabilities(merged))
    for file, name in ((base / "model.safetensors", "norm"), (adapter / "adapter_model.safetensors", "lora_A")):
        change_weights(file, lambda found, name=name: {key: value + (name in key) for key, value in found.items()})
        other = prepare(settings, storage=storage, report=say_nothing)
        assert other.checkpoint != stages.checkpoint
        stages = other


def test_a_model_that_lacks_weights_makes_no_stage(settings, tmp_path):
    change_weights(tmp_path / "base" / "model.safetensors", without("layers.0."))
    with pytest.raises(InputError, match="lack 9 weights"):
        prepare(settings, storage=RunStore(tmp_path / "runs"), report=say_nothing)
    assert not [path for path in (tmp_path / "runs" / ".stages").glob("sft-*") if path.is_dir()]


@pytest.mark.parametrize("sft", ["null", "{updates: 1, learning_rate: 1e-3, examples_per_update: 4}"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_positions": 28}, r"row \d+ \(chosen\) has \d+ tokens, more than the model's 28 positions"),
        ({"vocab_size": 9}, r"row \d+: the token '.*' has id \d+, and the model has 9 ids"),
    ],
)
def test_tokens_beyond_a_model_make_no_stage_of_it(tmp_path, sft, config, message):
    tokenizer = tiny_tokenizer(load_task("arithmetic"))
    whole = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1, **config}
    GPT2LMHeadModel(GPT2Config(**whole)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    text = TEXT.replace("SOURCE", str(tmp_path / "base")).replace("sft: null", f"sft: {sft}")
    (tmp_path / "loaded.yaml").write_text(text)
    settings = load_experiment(tmp_path / "loaded.yaml", overrides={"model.lora": None}).settings
    with pytest.raises(InputError, match=message):
        prepare(settings, storage=RunStore(tmp_path / "runs"), report=say_nothing)
    made = [path.name for path in (tmp_path / "runs" / ".stages").glob("*-*") if path.is_dir()]
    assert not [name for name in made if name.startswith(("step0", "baseline") if sft == "null" else "sft")]
