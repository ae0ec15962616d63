"""What is trained is held in float32, and every pass of a policy computes in one dtype, whoever asks for it."""

import math
import re
from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, TrainingArguments

from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.model import ATTENTION_AND_MLP, Lora, Model
from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Schedule
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.evaluation.held_out import measure_held_out
from slime_ray.evaluation.stability import kl_to_reference
from slime_ray.model.loading import load_adapter, load_checkpoint, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import make_trainable
from slime_ray.objectives import SftObjective, SlimeObjective
from slime_ray.training.outcome import MODEL
from slime_ray.training.stages import prepare
from slime_ray.training.trainer import GO_ON, PreferenceTrainer
from slime_ray.training.worker import run_trial

from . import small_trials, tower_worker
from .rank_worker import draw_pairs
from .small_trials import nothing
from .tower_worker import losses, tower_model

CONFIG = LlamaConfig(
    vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16
)
HEAD = Lora(rank=2, alpha=4.0, train_head=True)


def small_model(dtype: torch.dtype = torch.bfloat16) -> Any:
    """Weights that bfloat16 can hold, in any dtype."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa").bfloat16().to(dtype)


def trainer_of(
    policy: Policy, tmp_path: Path, objective=None, *, rate: float = 1e-3, pairs=None, **options
) -> PreferenceTrainer:
    return PreferenceTrainer(
        policy=policy,
        objective=objective or SlimeObjective(),
        pairs=pairs or draw_pairs(16),
        schedule=Schedule(learning_rate=rate, updates=2, schedule="constant"),
        pairs_per_update=16,
        row_tokens=60,
        seed=0,
        scratch=tmp_path,
        after_update=lambda step, metrics: GO_ON,
        **options,
    )


def float32_updates(pairs: list[TokenPair], names: set[str], *, rate: float) -> dict[str, torch.Tensor]:
    """Two AdamW updates of transformers' own model in float32 on the mean loss of all completion tokens."""
    lm = small_model(torch.float32)
    trained = {name: parameter for name, parameter in lm.named_parameters() if name in names}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    tokens = sum(len(pair.chosen_ids) for pair in pairs)
    for _ in range(2):
        optimizer.zero_grad()
        for pair in pairs:
            ids = torch.tensor([*pair.prompt_ids, *pair.chosen_ids])
            logits = lm(input_ids=ids[None]).logits[0, len(pair.prompt_ids) - 1 : -1]
            functional.cross_entropy(logits, ids[len(pair.prompt_ids) :], reduction="sum").div(tokens).backward()
        optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in trained.items()}


def _plain(name: str) -> str:
    """The name in transformers' model of a policy's parameter."""
    return re.sub(r"^lm\.|base_model\.model\.|modules_to_save\.default\.", "", name)


@pytest.mark.parametrize("lora", [HEAD, None], ids=["trained head", "whole model"])
def test_two_small_updates_move_what_is_trained_as_float32_does(tmp_path, lora):
    pairs = draw_pairs(16)
    policy = make_policy(make_trainable(small_model(), lora), Model(source="x", dtype="bfloat16", lora=lora))
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    plain = {_plain(name): name for name in trained if "lora_" not in name}
    before = {name: trained[full].detach().clone() for name, full in plain.items()}
    assert "lm_head.weight" in before
    trainer_of(policy, tmp_path, SftObjective(), rate=5e-7, pairs=pairs).train()
    moved = torch.cat([(trained[full].detach() - before[name]).flatten() for name, full in plain.items()])
    expected = float32_updates(pairs, set(before), rate=5e-7)
    wanted = torch.cat([expected[name].flatten() for name in plain])
    assert (moved != 0).float().mean() > 0.9
    assert functional.cosine_similarity(moved, wanted, 0) > 0.95


SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip
SHIPPED = {"gemma3-4b": None, "llama3.2-3b": LlamaConfig(**SIZES), "qwen3-4b": Qwen3Config(**SIZES)}


@pytest.mark.parametrize("preset", SHIPPED)
def test_shipped_presets_move_every_layer_that_they_say_they_train(tmp_path, preset):
    base, config = preset_base(preset), SHIPPED[preset]
    settings = Model(**base["model"])
    assert settings.dtype == "bfloat16"
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16) if config else tower_model()
    layers = [name for name, _ in lm.get_decoder().named_modules() if name.endswith(ATTENTION_AND_MLP)]
    assert len(layers) == 2 * 7
    policy = make_policy(make_trainable(lm, settings.lora), settings)
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    expected = [f"{name}.lora_{side}." for name in layers for side in "AB"]
    expected += ["lm_head.modules_to_save."] * base["model"]["lora"]["train_head"]
    assert len(trained) == len(expected)
    assert all(sum(part in name for name in trained) == 1 for part in expected)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    trainer_of(policy, tmp_path, rate=base["training"]["learning_rate"]).train()
    for name, parameter in trained.items():
        moved = float((parameter != before[name]).float().mean())
        # A's gradient is 0 in the first update, and below AdamW's epsilon in the second.
        assert moved > (0.0 if ".lora_A." in name else 0.9), name


@pytest.mark.parametrize("lora", [HEAD, None], ids=["trained head", "whole model"])
def test_layers_computed_again_are_computed_in_the_same_dtype(tmp_path, lora):
    losses = []
    for again in (False, True):
        policy = make_policy(make_trainable(small_model(), lora), Model(source="x", dtype="bfloat16", lora=lora))
        trainer = trainer_of(policy, tmp_path, gradient_checkpointing=again)
        trainer.train()
        losses.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2
    for one, other in zip(*losses, strict=True):
        assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_that_would_be_trained_in_half_precision_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"is trained in {dtype}, which rounds updates away"):
        trainer_of(Policy(small_model(dtype)), tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [HEAD, None], ids=["trained head", "whole model"])
def test_every_pass_of_a_policy_computes_in_its_dtype_whoever_asks(tmp_path, dtype, lora):
    settings = Model(source="x", dtype=dtype, lora=lora)
    policy = make_policy(make_trainable(small_model(getattr(torch, settings.weights_dtype)), lora), settings)
    other = make_policy(small_model(getattr(torch, settings.weights_dtype)), settings)
    pairs, ids = draw_pairs(8), torch.ones(1, 3, dtype=torch.long)
    rows, states = pack(pairs), torch.randn(2, CONFIG.hidden_size)
    seen: list[torch.dtype] = []
    for each in (policy, other):
        # A linear layer's products have the dtype that is computed in.
        for part in (each.decoder.layers[0].mlp.down_proj, each.causal_lm.get_output_embeddings()):
            part.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    passes = {
        "held out": lambda: measure_held_out(policy, pairs, row_tokens=60),
        "training": lambda: trainer_of(policy, tmp_path).train(),
        "held out after training": lambda: measure_held_out(policy, pairs, row_tokens=60),
        "forward": lambda: policy(rows),
        "hidden": lambda: policy.hidden(rows),
        "logits": lambda: policy.logits(states.to(policy.dtype)),
        "own logits": lambda: policy.own_logits(ids),
        "generate": lambda: policy.generate(input_ids=ids, attention_mask=ids, max_new_tokens=2, do_sample=False),
        "kl": lambda: kl_to_reference(policy, None if lora else other, pairs, row_tokens=60),
    }
    for name, run in passes.items():
        # A backward pass is never called under autocast.
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        for outer in [nullcontext()] if name == "training" else [nullcontext(), autocast]:
            seen.clear()
            with outer:
                run()
            assert set(seen) == {getattr(torch, dtype)}, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [HEAD, None], ids=["trained head", "whole model"])
def test_step_0_is_the_untrained_policy_bit_for_bit(experiment, storage, tmp_path, dtype, lora):
    model = experiment.settings.model.model_copy(update={"dtype": dtype, "lora": lora})
    settings = experiment.settings.model_copy(update={"model": model})
    stages = prepare(settings, storage=storage, report=nothing)
    lm = load_checkpoint(stages.checkpoint, dtype=settings.model.weights_dtype)
    policy = make_policy(make_trainable(lm, lora), settings.model)
    # Whatever a trainer does to a policy.
    trainer_of(policy, tmp_path, pairs=stages.held_out[:2])
    measured = measure_held_out(policy, stages.held_out, row_tokens=settings.data.row_budget(gpu=False))
    for mine, theirs in zip(astuple(measured), astuple(stages.step0), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_process_that_sees_two_gpus_trains_on_one(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    trainer = trainer_of(Policy(make_trainable(small_model(), HEAD)), tmp_path)
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda model, *rest: seen.append(model) or step(model, *rest)
    trainer.train()
    assert [type(model) for model in seen] == [Policy, Policy]
    assert trainer.args.train_batch_size == 1


def test_a_trial_in_bfloat16_trains_its_head_from_a_stage_in_float32(storage, tmp_path):
    text = small_trials.TEXT.replace("model: {lora: {", "model: {dtype: bfloat16, lora: {train_head: true, ")
    path = tmp_path / "trial.yaml"
    path.write_text(text.replace("learning_rate: 1e-3", "learning_rate: 5e-7, schedule: constant"))
    trial = arm_trials(load_experiment(path))[1]
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert (row["status"], row["updates"], row["healthy"]) == ("completed", 6, True)
    curves = pd.read_parquet(tmp_path / "trials" / trial.trial_id / "curves.parquet")
    # DPO's loss is ln 2 where policy and reference are the same.
    first = curves.query("metric == 'loss' and step == 1")["value"].item()
    assert first == pytest.approx(math.log(2), abs=1e-6)
    stage = prepare(trial.settings, storage=storage, report=nothing).checkpoint
    before = load_file(stage / "model.safetensors")
    after_file = tmp_path / "trials" / trial.trial_id / MODEL / "adapter_model.safetensors"
    after = load_file(after_file)
    assert {weight.dtype for weight in [*before.values(), *after.values()]} == {torch.float32}
    [head] = [weight for name, weight in after.items() if "lm_head" in name]
    # The trial began from what bfloat16 holds of it.
    moved = head - before["lm_head.weight"].bfloat16().float()
    assert (moved != 0).float().mean() > 0.9
    assert moved.abs().max() < 1e-5
    # Read again, as `slime-ray evaluate` does, it gives the numbers that the trial wrote.
    lm = load_adapter(load_checkpoint(stage, dtype=trial.settings.model.weights_dtype), after_file.parent)
    stages, policy = prepare(trial.settings, storage=storage, report=nothing), make_policy(lm, trial.settings.model)
    measured = measure_held_out(policy, stages.held_out, row_tokens=trial.settings.data.row_budget(gpu=False))
    pairs = pd.read_parquet(after_file.parents[1] / "pairs.parquet")
    np.testing.assert_array_equal(pairs["chosen_logp"], measured.chosen_means)
    np.testing.assert_array_equal(pairs["rejected_logp"], measured.rejected_means)


def test_a_vision_tower_is_not_trained_and_neither_ranks_nor_shards_change_the_loss(on_ranks, tmp_path):
    for lora in (HEAD, None):
        lm = make_trainable(tower_model(), lora)
        trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
        assert trained
        assert not any("vision" in name or "projector" in name for name in trained)
    alone = {"": losses(HEAD, tmp_path), ", whole": losses(None, tmp_path)}
    on_ranks(2, tower_worker.__file__, tmp_path)
    found = torch.load(tmp_path / "losses.pt", weights_only=True)
    for kind, expected in alone.items():
        assert found[f"ddp{kind}"][0] == found[f"fsdp2{kind}"][0]
        for how in ("ddp", "fsdp2"):
            torch.testing.assert_close(found[how + kind], expected, rtol=1e-3, atol=0)
