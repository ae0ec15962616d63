"""Trials on 4-bit base weights: peft and bitsandbytes compute the same on their own, and what is exported as well."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Gemma3Config,
)

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.loading import SFT_ADAPTER
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.runs.store import RunStore
from slime_ray.training import stages
from slime_ray.training.evaluate import evaluate
from slime_ray.training.export import export_model
from slime_ray.training.orders import Command, Paused
from slime_ray.training.outcome import MODEL
from slime_ray.training.worker import run_trial
from tests.model.test_text_decoder import TEXT, VISION

from . import quantized_worker
from .small_trials import Orders, assert_same, changed, computed, nothing
from .test_export import MODELS, save_model
from .test_kept_adapter import sums

pytest.importorskip("bitsandbytes")
NAMES = ("below", "above")
IDS = torch.arange(1, 30)[None]
SFT_LORA = {"rank": 3, "alpha": 5.0, "targets": ["q_proj", "down_proj"], "rslora": True, "dropout": 0.3}


@pytest.fixture(scope="module", autouse=True)
def reached() -> Any:
    """The code below the refusal of machines without a GPU, with weights as a GPU holds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "refuse_quantized", lambda model: None)
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    save_model(folder / "mine", **MODELS["qwen3"])
    return folder


SFT = {"learning_rate": 2e-2, "updates": 4, "examples_per_update": 8, "lora": SFT_LORA}


def trial_of(
    root: Path, *, sft: Any = SFT, updates: int = 2, objective: str = "dpo", evaluations: int = 1, **model: Any
) -> Trial:
    file = {
        "name": "given",
        "preset": "arithmetic",
        "base": {
            "model": {
                "source": str(root / "mine"), "quantization": "nf4",
                "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]}, **model,
            },
            "data": {"sft_examples": 32, "pairs": 16, "held_out_pairs": 8},
            "sft": sft,
            "objective": {"name": objective},
            "training": {
                "updates": updates, "pairs_per_update": 16, "learning_rate": 1e-2, "evaluations": evaluations,
                "schedule": "constant", "weight_decay": 0.0, "warmup_fraction": 0.0,
            },
            "evaluation": {
                "prompts": 4, "selection_prompts": 2, "kl_prompts": 4,
                "decoding": {"max_new_tokens": 8, "temperature": 0},
            },
        },
        "arms": {"policy": {}},
    }  # fmt: skip
    (root / "given.yaml").write_text(yaml.safe_dump(file))
    return arm_trials(load_experiment(root / "given.yaml"))[0]


def run(root: Path, name: str, trial: Trial) -> tuple[Path, dict[str, Any]]:
    """A run of one trial, whose stages are those of all others in the folder."""
    folder = root / "runs" / name
    row = run_trial(trial, run=folder, storage=RunStore(root / "runs"), report=nothing)
    assert row["status"] == "completed", row["reason"]
    return folder, row


def plain(root: Path) -> Any:
    """The 4-bit base as the documentation of transformers loads it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(root / "mine", quantization_config=config, dtype=torch.float32)


def of_peft(root: Path, *adapters: Path) -> Any:
    """peft's own model of the plain base with adapters side by side, of which the last is trained."""
    *names, last = NAMES[: len(adapters)]
    lm: Any = peft.PeftModel.from_pretrained(plain(root), str(adapters[0]), adapter_name=NAMES[0])
    for name, adapter in zip(NAMES[1:], adapters[1:], strict=False):
        lm.load_adapter(str(adapter), name)
    lm.base_model.set_adapter([*names, last])
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(f".{last}." in name)
    return lm.eval()


def stage_of(root: Path, trial: Trial) -> Any:
    return stages.prepare(trial.settings, storage=RunStore(root / "runs"), report=nothing)


def test_the_sft_stage_holds_its_adapter_and_no_weights_and_is_what_step_0_measures(root):
    trial = trial_of(root, updates=0)
    folder, row = run(root, "untrained", trial)
    made = stage_of(root, trial)
    assert not list(made.checkpoint.glob("*.safetensors"))
    reference = of_peft(root, made.checkpoint / SFT_ADAPTER)
    base = plain(root).eval()
    assert (base(input_ids=IDS).logits - reference(input_ids=IDS).logits).abs().max() > 0.1
    pairs = made.held_out[:]
    told = computed(folder, trial)[3]
    for pair, mean, before in zip(pairs, told["chosen_logp"], told["chosen_logp0"], strict=True):
        expected = sums(reference, pair)[0].item() / len(pair.chosen_ids)
        assert mean == pytest.approx(expected, abs=1e-5)
        assert before == pytest.approx(expected, abs=1e-5)
    assert row["kl_to_sft"] == pytest.approx(0.0, abs=1e-6)


def test_an_update_is_that_of_a_plain_loop_over_peft_on_bitsandbytes(root):
    untrained, _ = run(root, "first", trial_of(root, updates=0))
    trial = trial_of(root, updates=1)
    folder, row = run(root, "one", trial)
    made, storage = stage_of(root, trial), RunStore(root / "runs")
    pairs = list(stages.train_pairs(made, trial.settings, storage=storage, report=nothing)[:])
    reference = of_peft(root, made.checkpoint / SFT_ADAPTER)
    fresh = untrained / "trials" / trial.trial_id / MODEL
    policy = of_peft(root, made.checkpoint / SFT_ADAPTER, fresh)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    for pair in pairs:
        chosen, rejected = (each.item() for each in sums(reference, pair))
        assert (pair.reference_chosen, pair.reference_rejected) == pytest.approx((chosen, rejected), abs=1e-4)
        ours = sums(policy, pair)
        losses.append(-torch.nn.functional.logsigmoid(0.1 * ((ours[0] - chosen) - (ours[1] - rejected))))
    loss = torch.stack(losses).mean()
    loss.backward()
    optimizer.step()
    curves = computed(folder, trial)[1]
    told = curves[(curves["source"] == "train") & (curves["metric"] == "loss")]["value"].item()
    assert told == pytest.approx(loss.item(), abs=1e-5)
    saved = load_file(folder / "trials" / trial.trial_id / MODEL / "adapter_model.safetensors")
    expected = peft.get_peft_model_state_dict(policy, adapter_name="above")
    first = load_file(fresh / "adapter_model.safetensors")
    assert saved.keys() == expected.keys() == first.keys()
    moves = [name for name, value in expected.items() if (value - first[name]).abs().mean() > 1e-3]
    # B = 0 at first, so A has no gradient.
    assert moves == [name for name in expected if "lora_B" in name]
    for name in moves:
        # Adam's first step is a sign: what differs are gradients near zero alone.
        moved = (expected[name] - first[name]).abs().mean()
        assert (saved[name] - expected[name]).abs().mean() < 0.02 * moved, name
    assert row["kl_to_sft"] > 0


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[Path, Trial]:
    trial = trial_of(root, updates=4, objective="slime")
    return run(root, "trained", trial)[0], trial


def logits_of(root: Path, folder: Path, trial: Trial) -> torch.Tensor:
    """What peft makes of the base, the SFT stage's adapter and the trial's."""
    lm = of_peft(root, stage_of(root, trial).checkpoint / SFT_ADAPTER, folder / "trials" / trial.trial_id / MODEL)
    logits: torch.Tensor = lm(input_ids=IDS).logits.detach()
    return logits


def test_the_exported_adapter_answers_on_the_named_base_as_its_card_says(root, trained, tmp_path):
    """In a process without this package, by the card's own lines, and when `.stages` is gone."""
    folder, trial = trained
    shutil.copytree(root / "runs", tmp_path / "runs")
    export_model(tmp_path / "runs" / "trained", trial.trial_id, tmp_path / "out", facts={})
    shutil.rmtree(tmp_path / "runs")
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.base_model_name_or_path, config.r) == (str(root / "mine"), 7)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| base weights | 4-bit nf4 with double quantization, by bitsandbytes |" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    rows = pd.read_parquet(folder / "trials" / trial.trial_id / "answers.parquet")
    spoken = 'pipeline("text-generation", lm, tokenizer=tokenizer, max_new_tokens=8, do_sample=False)'
    outside = f"""
import json, sys
sys.modules["slime_ray"] = None
import bitsandbytes.nn.modules
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
{code.rsplit("pipeline(", 1)[0]}
lm.eval()
talk = {spoken}
answers = [talk(messages)[0]["generated_text"][-1]["content"] for messages in json.load(sys.stdin)]
print(json.dumps([lm(input_ids=torch.arange(1, 30)[None]).logits.flatten().tolist(), answers]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", outside], capture_output=True, text=True, check=False, cwd=tmp_path,
        input=json.dumps([json.loads(prompt) for prompt in rows["prompt"]]),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    logits, answers = json.loads(ended.stdout.splitlines()[-1])
    expected = logits_of(root, folder, trial).flatten()
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)
    assert answers == rows["answer"].tolist()


def test_what_was_measured_is_what_peft_loads_of_run_and_stage(root, trained):
    folder, trial = trained
    lm = of_peft(root, stage_of(root, trial).checkpoint / SFT_ADAPTER, folder / "trials" / trial.trial_id / MODEL)
    start = of_peft(root, stage_of(root, trial).checkpoint / SFT_ADAPTER)
    told = computed(folder, trial)
    assert not (folder / "trials" / trial.trial_id / MODEL / "sft").exists()
    for pair, chosen, rejected in zip(
        stage_of(root, trial).held_out[:], told[3]["chosen_logp"], told[3]["rejected_logp"], strict=True
    ):
        found = [each.item() for each in sums(lm, pair)]
        assert chosen == pytest.approx(found[0] / len(pair.chosen_ids), abs=1e-5)
        assert rejected == pytest.approx(found[1] / len(pair.rejected_ids), abs=1e-5)
    divergences = []
    made = stage_of(root, trial)
    for asked in (prompt.token_ids for prompt in made.prompts["report"]):
        ids = lm.generate(
            input_ids=torch.tensor([asked]), max_new_tokens=8, do_sample=False, eos_token_id=list(made.stop_tokens)
        )
        ids = ids[:, :-1] if ids[0, -1] in made.stop_tokens else ids
        ours, theirs = (each(input_ids=ids).logits[0, len(asked) - 1 : -1].log_softmax(-1) for each in (lm, start))
        divergences.append((ours.exp() * (ours - theirs)).sum(-1))
    assert told[0]["kl_to_sft"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-3)


def test_evaluate_measures_the_trial_and_its_export_on_the_same_4_bit_base(root, trained, tmp_path):
    folder, trial = trained
    export_model(folder, trial.trial_id, tmp_path / "exported", facts={})
    experiment = load_experiment(root / "given.yaml")
    experiment = experiment.model_copy(update={"name": f"again-{tmp_path.name}", "base": trial.settings.model_dump()})
    again = evaluate(
        experiment, [folder / "trials" / trial.trial_id, tmp_path / "exported"], baseline=None,
        source=root / "given.yaml", storage=str(root / "runs"), start="fresh", offline=False, say=lambda line: None,
    )  # fmt: skip
    found = pd.read_parquet(again / "pairs.parquet")
    expected = computed(folder, trial)[3]
    assert len(found) == 2 * len(expected)
    for _, rows in found.groupby("label"):
        for column in ("chosen_logp", "rejected_logp", "chosen_logp0"):
            assert rows[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-4)


def test_a_trial_is_resumed_bit_for_bit(root):
    trial = trial_of(root, updates=4, evaluations=2)
    whole, _ = run(root, "whole", trial)
    storage, paused = RunStore(root / "runs"), root / "runs" / "paused"
    with pytest.raises(Paused):
        run_trial(trial, run=paused, storage=storage, report=Orders(2, Command("pause", "for now")))
    run_trial(trial, run=paused, storage=storage, report=nothing)
    assert_same(paused, whole, trial)


def test_two_ranks_train_what_one_does(root, on_ranks, tmp_path):
    # Ranks draw dropout of their own.
    trial = trial_of(root, sft=SFT | {"lora": SFT_LORA | {"dropout": 0.0}}, updates=4, objective="slime")
    alone, _ = run(root, "alone", trial)
    (tmp_path / "trial.json").write_text(trial.model_dump_json())
    on_ranks(2, quantized_worker.__file__, tmp_path / "trial.json", tmp_path / "run", tmp_path / "ranks", "ddp")
    found, expected = computed(tmp_path / "run", trial), computed(alone, trial)
    assert found[1]["value"].tolist() == pytest.approx(expected[1]["value"].tolist(), rel=1e-3, abs=1e-4)
    assert found[2]["answer"].tolist() == expected[2]["answer"].tolist()


def test_neither_checkpointing_nor_continuous_batching_change_a_trial(root):
    trial = trial_of(root, updates=4, objective="slime")
    other = changed(trial, {"training.gradient_checkpointing": True, "evaluation.decoding.engine": "continuous"})
    found, expected = (computed(run(root, name, each)[0], each) for name, each in (("again", other), ("as", trial)))
    assert found[1]["value"].tolist() == expected[1]["value"].tolist()
    assert found[2]["answer"].tolist() == expected[2]["answer"].tolist()


@pytest.mark.parametrize("kind", ["no stage", "kept", "kept after sft", "bfloat16"])
def test_other_starts_compute_what_peft_does_and_are_exported(tmp_path, kind):
    """On a model whose head is not its embeddings."""
    save_model(tmp_path / "mine", **MODELS["llama"])
    model: dict[str, Any] = {"dtype": "bfloat16"} if kind == "bfloat16" else {}
    if kind.startswith("kept"):
        torch.manual_seed(3)
        config = peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "mine"), config).save_pretrained(
            tmp_path / "adapter"
        )
        model = {"source": str(tmp_path / "adapter"), "lora": "keep"}
    sft = (
        {key: value for key, value in SFT.items() if key != "lora"} if kind in ("kept after sft", "bfloat16") else None
    )
    trial = trial_of(tmp_path, sft=sft, updates=4, **model)
    folder, row = run(tmp_path, "first", trial)
    made = stage_of(tmp_path, trial).checkpoint
    own = folder / "trials" / trial.trial_id / MODEL
    adapters = [made / SFT_ADAPTER, own] if kind == "bfloat16" else [own]
    expected = of_peft(tmp_path, *adapters)
    export_model(folder, trial.trial_id, tmp_path / "out", facts={})
    exported = of_peft(tmp_path, tmp_path / "out")
    torch.testing.assert_close(exported(input_ids=IDS).logits, expected(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    pairs, told = stage_of(tmp_path, trial).held_out[:], computed(folder, trial)[3]
    measured = [sums(expected, pair)[0].item() / len(pair.chosen_ids) for pair in pairs]
    assert told["chosen_logp"].tolist() == pytest.approx(measured, abs=0.1 if kind == "bfloat16" else 1e-5)
    assert row["kl_to_sft"] > 0


def test_adapters_of_a_vision_language_model_fit_the_whole_of_it(tmp_path):
    """So they are trained on it, in its text decoder alone."""
    torch.manual_seed(0)
    text = TEXT | {"max_position_embeddings": 256, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    whole = AutoModelForImageTextToText.from_config(config)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole.save_pretrained(tmp_path / "mine")
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path / "mine")
    trial = trial_of(tmp_path, updates=4)
    folder, _ = run(tmp_path, "first", trial)
    made = stage_of(tmp_path, trial)
    assert made.data["adapters"]["model.lora"]["outside"] > 0
    expected = of_peft(tmp_path, made.checkpoint / SFT_ADAPTER, folder / "trials" / trial.trial_id / MODEL)
    pairs, told = made.held_out[:], computed(folder, trial)[3]
    measured = [sums(expected, pair)[0].item() / len(pair.chosen_ids) for pair in pairs]
    assert told["chosen_logp"].tolist() == pytest.approx(measured, abs=1e-4)
    export_model(folder, trial.trial_id, tmp_path / "out", facts={})
    exported = of_peft(tmp_path, tmp_path / "out")
    torch.testing.assert_close(exported(input_ids=IDS).logits, expected(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all("language_model" in name for name in names)


def test_nothing_is_merged_into_4_bit_weights(root, trained, tmp_path):
    with pytest.raises(InputError, match=r"into which nothing is merged exactly. Leave --merge out"):
        export_model(trained[0], trained[1].trial_id, tmp_path / "out", merge=True, facts={})
    assert not (tmp_path / "out").exists()
