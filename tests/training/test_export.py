"""`slime-ray export RUN TRIAL`: an adapter on the user's own model, used where this package is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from slime_ray import cli
from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.runs.store import RunStore
from slime_ray.training.export import export_model
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial
from tests.model.tiny_files import SIZES, change_json

TEXT = """\
name: given
preset: arithmetic
base:
  data: {sft_examples: 128, pairs: 32, held_out_pairs: 8}
  model: {source: SOURCE, lora: {rank: 4, alpha: 8.0, targets: [q_proj, v_proj]}}
  sft: {updates: 6, learning_rate: 2e-2}
  training: {updates: 4, pairs_per_update: 16, evaluations: 1, learning_rate: 1e-2}
  evaluation: {prompts: 4, selection_prompts: 2, kl_prompts: 2, decoding: {max_new_tokens: 8, temperature: 0}}
arms: {slime: {}}
"""
OUTSIDER = """
import json
import sys

sys.modules["slime_ray"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

folder, base = sys.argv[1:3]
questions = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
with torch.no_grad():
    logits = lm(input_ids=torch.arange(1, 30)[None]).logits
talk = pipeline("text-generation", folder, max_new_tokens=8, do_sample=False)
answers, spoken = [], []
for messages in questions:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = lm.generate(**ids, max_new_tokens=8, do_sample=False, generation_config=GenerationConfig.from_pretrained(folder))
    answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    spoken.append(talk(messages)[0]["generated_text"][-1]["content"])
print(json.dumps({"logits": logits.flatten().tolist(), "answers": answers, "spoken": spoken}))
"""
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"kind": LlamaConfig, "tied": False},
    "qwen3": {"kind": Qwen3Config, "tied": True},
}


def save_model(folder: Path, *, kind: type, tied: bool) -> Path:
    """A random model of its own architecture with the arithmetic task's words, as a user has it in a folder."""
    tokenizer: PreTrainedTokenizerBase = tiny_tokenizer(load_task("arithmetic"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = kind(
            **SIZES | {"vocab_size": len(tokenizer), "head_dim": 8}, tie_word_embeddings=tied,
            max_position_embeddings=256, initializer_range=0.1, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(root: Path, model: Path, change=lambda content: None):
    """A run with one trial on a model: its folder, and its row."""
    content = yaml.safe_load(TEXT.replace("SOURCE", str(model)))
    change(content["base"])
    (root / "given.yaml").write_text(yaml.safe_dump(content))
    trial = arm_trials(load_experiment(root / "given.yaml"))[0]
    row = run_trial(trial, run=root / "runs" / "first", storage=RunStore(root / "runs"), report=say_nothing)
    assert row["status"] == "completed", row["reason"]
    return root / "runs" / "first", row


def trained_on(root, name):
    """A run on a model of the user's; the adapters of SFT and of trials differ in rank, targets and scale."""
    model = save_model(root / "mine", **MODELS[name])

    def change(base):
        base["sft"]["lora"] = {"rank": 3, "alpha": 5.0, "targets": ["q_proj", "down_proj"], "rslora": True}

    return trained(root, model, change)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On a model whose head is its embeddings."""
    return trained_on(tmp_path_factory.mktemp("tied"), "qwen3")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return trained_on(tmp_path_factory.mktemp("untied"), "llama")


def as_trained(run):
    """Logits by transformers and peft of the stage with the trial's adapter on it, and the trial's greedy answers."""
    folder = run / "trials" / "arm-slime-s0"
    stage = json.loads((folder / "checkpoint" / "adapter_config.json").read_text())["base_model_name_or_path"]
    lm = AutoModelForCausalLM.from_pretrained(run.parent / ".stages" / Path(stage).name)
    lm = peft.PeftModel.from_pretrained(lm, str(folder / "checkpoint")).eval()
    with torch.no_grad():
        logits = lm(input_ids=torch.arange(1, 30)[None]).logits.flatten()
    rows = pq.read_table(folder / "answers.parquet").to_pylist()
    return logits, [json.loads(row["prompt"]) for row in rows], [row["answer"] for row in rows]


@pytest.mark.parametrize("of", ["run", "untied"])
def test_it_computes_the_same_where_this_package_and_the_stages_are_not(request, tmp_path, of, capfd):
    """An adapter; the answers of a whole model are those of another engine in test_evaluate.py."""
    run = request.getfixturevalue(of)
    shutil.copytree(run.parent, tmp_path / "runs")
    logits, questions, answers = as_trained(run)
    out = tmp_path / "out"
    # As in a new process: training turned them off.
    transformers_logging.enable_progress_bar()
    capfd.readouterr()
    assert cli.main(["export", str(tmp_path / "runs" / "first"), "arm-slime-s0", "--to", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.out.split() == [str(out)]
    assert printed.err == ""
    shutil.rmtree(tmp_path / "runs")
    model = run.parents[1] / "mine"
    config = peft.PeftConfig.from_pretrained(str(out))
    assert (config.base_model_name_or_path, config.r, config.use_rslora) == (str(model), 7, False)
    ended = subprocess.run(
        [sys.executable, "-c", OUTSIDER, str(out), str(model)],
        input=json.dumps(questions), capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    there = json.loads(ended.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(there["logits"]), logits, rtol=1e-4, atol=1e-5)
    assert there["answers"] == there["spoken"] == answers
    assert AutoConfig.from_pretrained(model).tie_word_embeddings == (of == "run")


def test_adapters_that_were_trained_in_bfloat16_are_exported_as_they_are(tmp_path):
    """Those of both stages are in float32, whatever the base is in."""

    def change(base):
        base["model"]["dtype"] = "bfloat16"

    run, _ = trained(tmp_path, save_model(tmp_path / "mine", **MODELS["llama"]), change)
    out = export_model(run, "arm-slime-s0", tmp_path / "out", facts={})
    assert peft.PeftConfig.from_pretrained(str(out)).r == 8
    weights = load_file(out / "adapter_model.safetensors")
    stages = run.parent / ".stages"
    sft = load_file(next(stages.glob("sft-*/adapter/adapter_model.safetensors")))
    own = load_file(run / "trials" / "arm-slime-s0" / "checkpoint" / "adapter_model.safetensors")
    for name in own:
        if "lora_A" in name:
            both = torch.cat([sft[name], own[name]])
            down = weights[name] / both
            # Scales are folded into the one or the other.
            assert down.std() < 1e-5


def test_every_trained_checkpoint_of_a_run_can_answer_by_itself(run):
    """The trial's, and the adapter of its SFT stage beside whole weights."""
    checkpoint = run / "trials" / "arm-slime-s0" / "checkpoint"
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
    assert {"generation_config.json", "made.json", "chat_template.jinja"} <= {
        path.name for path in checkpoint.iterdir()
    }
    [stage] = (path for path in (run.parent / ".stages").glob("sft-*") if path.is_dir())
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(run.parents[1] / "mine"), str(stage / "adapter")
    )
    ids = torch.arange(1, 30)[None]
    whole = AutoModelForCausalLM.from_pretrained(stage)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_the_card_repeats_the_trial_and_names_no_folder(run, tmp_path, monkeypatch):
    facts = {"win rate": "0.500 [0.250, 0.750]"}
    folder = run / "trials" / "arm-slime-s0" / "trial.json"
    row = json.loads(folder.read_text())
    export_model(run, "arm-slime-s0", tmp_path / "out", facts=facts)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert "| win rate | 0.500 [0.250, 0.750] |" in card.text
    assert "2602.02383" in card.text
    assert str(run.parents[1]) not in card.content
    experiment = card.text.partition("```yaml\n")[2].partition("```")[0]
    shutil.copytree(run.parents[1] / "mine", tmp_path / "mine")
    (tmp_path / "experiment.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    [trial] = arm_trials(load_experiment(tmp_path / "experiment.yaml"))
    found, wanted = (json.loads(text) for text in (trial.settings.model_dump_json(), row["settings"]))
    assert found["model"].pop("source") == str(tmp_path / "mine")
    wanted["model"].pop("source")
    assert (found, trial.seed) == (wanted, row["seed"])


def test_without_an_sft_stage_the_trials_own_adapter_is_it(tmp_path):
    """So DoRA and a trained head, which cannot be added to another adapter, are exported too."""
    model = save_model(tmp_path / "mine", **MODELS["llama"])

    def change(base):
        base["sft"] = None
        base["model"]["lora"] |= {"dora": True, "train_head": True}

    run, _ = trained(tmp_path, model, change)
    out = export_model(run, "arm-slime-s0", tmp_path / "out", facts={})
    logits, *_ = as_trained(run)
    lm = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(out)).eval()
    with torch.no_grad():
        found = lm(input_ids=torch.arange(1, 30)[None]).logits.flatten()
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


def test_what_was_trained_without_lora_is_a_whole_model(tmp_path):
    model = save_model(tmp_path / "mine", **MODELS["qwen3"])
    run, _ = trained(tmp_path, model, lambda base: base["model"].update(lora=None))
    out = export_model(run, "arm-slime-s0", tmp_path / "out", facts={})
    assert ModelCard.load(out / "README.md").data.library_name == "transformers"
    ids = torch.arange(1, 30)[None]
    found, kept, before = (
        AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
        for folder in (out, run / "trials" / "arm-slime-s0" / "checkpoint", model)
    )
    torch.testing.assert_close(found, kept)
    assert not torch.allclose(found, before)


def _forget(run, _):
    [stage] = (path for path in (run.parent / ".stages").glob("sft-*") if path.is_dir())
    shutil.rmtree(stage / "adapter")


def _in_settings(change):
    def write(run, _):
        file = run / "trials" / "arm-slime-s0" / "trial.json"
        row = json.loads(file.read_text())
        settings = json.loads(row["settings"])
        change(settings)
        change_json(file, settings=json.dumps(settings))

    return write


def _in_adapter(**values):
    return lambda run, _: change_json(
        run / "trials" / "arm-slime-s0" / "checkpoint" / "adapter_config.json", **values
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_forget, "made by an earlier version, which kept no adapter"),
        (_in_settings(lambda found: found["sft"].update(lora=None)), "its SFT stage trained every weight"),
        (_in_settings(lambda found: found["model"].update(source="embedded/arithmetic")), "made by this package"),
        (_in_adapter(use_dora=True), "DoRA, whose updates do not add up"),
        (_in_adapter(modules_to_save=["lm_head"]), "a trained head"),
        (_in_adapter(target_parameters=["experts.down_proj"]), "adapters on fused experts"),
    ],
)
def test_what_is_no_adapter_on_the_named_model_is_refused_with_the_way_out(run, tmp_path, change, sentence):
    shutil.copytree(run.parent, tmp_path / "runs")
    change(tmp_path / "runs" / "first", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"Give --merge\.$") as raised:
        export_model(tmp_path / "runs" / "first", "arm-slime-s0", tmp_path / "out", facts={})
    assert sentence in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trial_that_is_none_is_told_from_those_that_there_are(run, tmp_path):
    with pytest.raises(
        InputError, match=r"no finished trial slime-s0\. Did you mean 'arm-slime-s0'\? Allowed: arm-slime-s0"
    ):
        export_model(run, "slime-s0", tmp_path / "out", facts={})


def test_a_base_that_is_another_one_by_now_is_noticed(run, tmp_path):
    """What is written is loaded on the named model, as a user will, and compared."""
    shutil.copytree(run.parent, tmp_path / "runs")
    other = save_model(tmp_path / "other", **MODELS["qwen3"])
    lm = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        lm.get_input_embeddings().weight += 0.01
    lm.save_pretrained(other)
    _in_settings(lambda found: found["model"].update(source=str(other)))(tmp_path / "runs" / "first", None)
    with pytest.raises(InputError, match="computes something else"):
        export_model(tmp_path / "runs" / "first", "arm-slime-s0", tmp_path / "out", facts={})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["arm-slime-s0", "--dtype", "bfloat16"], "--dtype is of a whole model"),
        (["--merge"], "Name the trial"),
        (["arm-slime-s0", "--private"], "Give --push-to-hub"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run, tmp_path, capsys, given, sentence):
    assert cli.main(["export", str(run), *given, "--to", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
