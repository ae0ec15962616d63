"""lora: keep: an adapter of peft's goes on being trained, as peft itself would go on with it."""

import json
import shutil

import pandas as pd
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.loading import SFT_ADAPTER
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.runs.store import RunStore
from slime_ray.training.evaluate import evaluate
from slime_ray.training.export import export_model
from slime_ray.training.orders import Command, Paused
from slime_ray.training.outcome import MODEL
from slime_ray.training.stages import prepare, train_pairs
from slime_ray.training.worker import run_trial

from .small_trials import Orders, assert_same, changed, computed, nothing

KINDS = {
    "lora": {"lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "rslora": {"use_rslora": True, "target_modules": ["v_proj"]},
    "dora": {"use_dora": True, "target_modules": ["o_proj"]},
}


def save_adapter(folder, **options):
    """An adapter that changes what its base says; `options` are those of peft.LoraConfig."""
    torch.manual_seed(3)
    lm = AutoModelForCausalLM.from_pretrained(folder / "base")
    config = peft.LoraConfig(r=3, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(lm, config)
    adapted.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


@pytest.fixture
def base(tmp_path):
    tiny_model(load_task("arithmetic"), seed=0).save_pretrained(tmp_path / "base")
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path / "base")
    return tmp_path


def experiment_of(folder, *, sft=None, **model):
    file = {
        "name": "kept",
        "preset": "arithmetic",
        "base": {
            "model": {"source": str(folder / "adapter"), "lora": "keep", **model},
            "data": {"sft_examples": 32, "pairs": 16, "held_out_pairs": 8},
            "sft": sft,
            "objective": {"name": "dpo", "beta": 0.1},
            "training": {
                "updates": 1, "pairs_per_update": 16, "learning_rate": 1e-2, "evaluations": 1,
                "schedule": "constant", "weight_decay": 0.0,
            },
            "evaluation": {
                "prompts": 4, "selection_prompts": 4, "kl_prompts": 4, "decoding": {"max_new_tokens": 8}, "judge": "none"
            },
        },
        "arms": {"dpo": {}},
        "goals": {"stability": "maximize"},
    }  # fmt: skip
    (folder / "kept.yaml").write_text(yaml.safe_dump(file))
    return load_experiment(folder / "kept.yaml")


def of_peft(folder, adapter):
    lm = AutoModelForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(lm, str(adapter), is_trainable=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_that_of_a_plain_loop_over_peft_own_model(base, kind):
    adapter = save_adapter(base, **KINDS[kind])
    experiment = experiment_of(base)
    trial, storage = arm_trials(experiment)[0], RunStore(base / "runs")
    lora = trial.settings.model.lora
    targets = sorted(KINDS[kind]["target_modules"])
    assert (lora.rank, lora.targets, lora.rslora, lora.dora) == (3, targets, kind == "rslora", kind == "dora")
    row = run_trial(trial, run=base, storage=storage, report=nothing)
    assert row["status"] == "completed"

    stages = prepare(trial.settings, storage=storage, report=nothing)
    pairs = list(train_pairs(stages, trial.settings, storage=storage, report=nothing)[:])
    plain = of_peft(base, adapter).eval()
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    before = [sums(plain, pair) for pair in pairs]
    # The reference is the model with the adapter as it came.
    for pair, (chosen, rejected) in zip(pairs, before, strict=True):
        assert (pair.reference_chosen, pair.reference_rejected) == pytest.approx(
            (chosen.item(), rejected.item()), abs=1e-3
        )
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    margins = [chosen - rejected - (chosen - rejected).detach() for chosen, rejected in before]
    loss = -torch.nn.functional.logsigmoid(0.1 * torch.stack(margins)).mean()
    loss.backward()
    optimizer.step()
    curves = computed(base, trial)[1]
    told = curves[(curves["source"] == "train") & (curves["metric"] == "loss")]["value"].item()
    assert told == pytest.approx(loss.item(), abs=1e-5)
    saved = load_file(base / "trials" / trial.trial_id / MODEL / "adapter_model.safetensors")
    expected = peft.get_peft_model_state_dict(plain)
    assert saved.keys() == expected.keys()
    first = load_file(adapter / "adapter_model.safetensors")
    for name, value in expected.items():
        moved = (value - first[name]).abs().mean()
        assert moved > 1e-3
        # Adam's first step is a sign: what differs are gradients near zero alone.
        assert (saved[name] - value).abs().mean() < 0.02 * moved, name
    # peft loads what was saved, on the base that the user named.
    config = json.loads((base / "trials" / trial.trial_id / MODEL / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base / "base")
    assert row["kl_to_sft"] > 0


def sums(lm, pair):
    """Summed log-probabilities of both completions by transformers, one sequence at a time."""
    found = []
    for completion in (pair.chosen_ids, pair.rejected_ids):
        ids = torch.tensor([[*pair.prompt_ids, *completion]])
        logps = lm(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(logps[len(pair.prompt_ids) - 1 :].sum())
    return found


@pytest.mark.parametrize("sft", [False, True])
def test_step_0_is_the_adapter_as_it_came_or_what_sft_made_of_it(base, sft):
    """Unmerged, also in bfloat16, so that the first loss of DPO is that of a policy at its reference."""
    adapter = save_adapter(base, **KINDS["lora"])
    stage = {"learning_rate": 1e-2, "updates": 3, "examples_per_update": 8} if sft else None
    trial = arm_trials(experiment_of(base, sft=stage, dtype="bfloat16"))[0]
    storage = RunStore(base / "runs")
    stages = prepare(trial.settings, storage=storage, report=nothing)
    run_trial(trial, run=base, storage=storage, report=nothing)
    curves = computed(base, trial)[1]
    loss = curves[(curves["source"] == "train") & (curves["metric"] == "loss")]["value"].item()
    assert loss == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    start = load_file((stages.checkpoint / SFT_ADAPTER if sft else adapter) / "adapter_model.safetensors")
    came = load_file(adapter / "adapter_model.safetensors")
    assert any(not torch.equal(start[name], came[name]) for name in came) == sft
    # What peft makes of base and adapter is what was measured, and what the policy is held against.
    untrained = arm_trials(experiment_of(base, sft=stage))[0]
    untrained = changed(untrained, {"training.updates": 0})
    row = run_trial(untrained, run=base / "untrained", storage=storage, report=nothing)
    assert row["kl_to_sft"] == pytest.approx(0.0, abs=1e-6)
    stages = prepare(untrained.settings, storage=storage, report=nothing)
    peft_own = of_peft(base, stages.checkpoint / SFT_ADAPTER if sft else adapter).eval()
    for pair, mean in zip(stages.held_out[:], computed(base / "untrained", untrained)[3]["chosen_logp"], strict=True):
        assert mean == pytest.approx(sums(peft_own, pair)[0].item() / len(pair.chosen_ids), abs=1e-4)
    # The stage as a whole computes what base and adapter do.
    ids = torch.tensor([[*stages.held_out[0].prompt_ids]])
    whole = AutoModelForCausalLM.from_pretrained(stages.checkpoint, dtype=torch.float32)
    apart = of_peft(base, stages.checkpoint / SFT_ADAPTER if sft else adapter)
    assert torch.allclose(whole(ids).logits, apart(ids).logits, atol=0.1)


def test_a_trial_that_keeps_an_adapter_is_resumed_bit_for_bit(base):
    save_adapter(base, lora_dropout=0.2, **KINDS["lora"])
    training = {"training.updates": 4, "training.pairs_per_update": 4, "training.evaluations": 2}
    trial = changed(arm_trials(experiment_of(base))[0], training)
    storage = RunStore(base / "runs")
    run_trial(trial, run=base / "whole", storage=storage, report=nothing)
    with pytest.raises(Paused):
        run_trial(trial, run=base / "paused", storage=storage, report=Orders(2, Command("pause", "for now")))
    run_trial(trial, run=base / "paused", storage=storage, report=nothing)
    assert_same(base / "paused", base / "whole", trial)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_modules": ["q_proj"], "rank_pattern": {"layers.0.q_proj": 2}}, "it sets rank_pattern"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "it sets modules_to_save"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "it sets bias"),
        ({"target_modules": r".*\.q_proj"}, "its target_modules are no list"),
    ],
)
def test_an_adapter_that_these_settings_cannot_say_is_refused_by_check(base, options, sentence):
    save_adapter(base, **options)
    with pytest.raises(InputError, match=sentence):
        experiment_of(base)


@pytest.mark.parametrize(
    ("change", "model", "sentence"),
    [
        ({"peft_type": "IA3"}, {}, "it is of type IA3"),
        ({"init_lora_weights": "pissa"}, {}, "it sets init_lora_weights"),
        ({}, {"source": "base"}, "is no adapter's folder"),
        ({}, {"lora": {"rank": 5, "kept": True}}, "other settings were given than those of the adapter"),
        ({}, {"lora": "keeps"}, "'keeps' is neither settings of adapters nor keep"),
    ],
)
def test_what_is_not_the_adapter_to_keep_is_refused_by_check(base, change, model, sentence):
    file = save_adapter(base, **KINDS["lora"]) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    model = {key: str(base / "base") if value == "base" else value for key, value in model.items()}
    with pytest.raises(InputError, match=sentence):
        experiment_of(base, **model)


def test_a_base_that_is_not_here_and_weights_of_another_shape_are_refused_before_training(base):
    file = save_adapter(base, **KINDS["lora"]) / "adapter_config.json"
    content = json.loads(file.read_text())
    storage = RunStore(base / "runs")
    file.write_text(json.dumps(content | {"base_model_name_or_path": str(base / "gone")}))
    with pytest.raises(InputError, match="gone is not here"):
        prepare(experiment_of(base).settings, storage=storage, report=nothing)
    file.write_text(json.dumps(content | {"r": 4}))
    with pytest.raises(InputError, match="cannot be loaded"):
        prepare(experiment_of(base).settings, storage=storage, report=nothing)
    assert not [path for path in (base / "runs" / ".stages").glob("sft-*") if path.is_dir()]


def test_other_places_that_expect_adapters_on_the_stage_refuse_it(base):
    save_adapter(base, **KINDS["lora"])
    settings = experiment_of(base).settings.model_dump()
    settings["evaluation"]["engine"] = {"name": "openai", "model": "sft"}
    with pytest.raises(ValueError, match="keeps one that belongs on its own base"):
        type(experiment_of(base).settings).model_validate(settings)
    with pytest.raises(InputError, match=r"sft\.lora trains others"):
        experiment_of(base, sft={"learning_rate": 1e-3, "lora": None})


def test_knobs_of_an_adapter_that_is_kept_are_refused_and_results_are_read_without_it(base):
    adapter = save_adapter(base, **KINDS["lora"])
    experiment = experiment_of(base)
    with pytest.raises(ValueError, match="other settings were given than those of the adapter"):
        experiment.settings_with({"model.lora.rank": 8})
    shutil.rmtree(adapter)
    assert type(experiment).model_validate_json(experiment.model_dump_json()).settings.model.kept


def test_float16_is_refused_with_its_reason(base):
    save_adapter(base, **KINDS["lora"])
    with pytest.raises(InputError, match="losses are not scaled here"):
        experiment_of(base, dtype="float16")


def test_an_arm_with_new_adapters_and_one_that_keeps_its_own_begin_at_one_sft_checkpoint(base):
    """Whichever of them makes it."""
    save_adapter(base, **KINDS["lora"])
    experiment = experiment_of(base, sft={"learning_rate": 1e-2, "updates": 2, "examples_per_update": 8})
    kept, storage = experiment.settings, RunStore(base / "runs")
    new = experiment.settings_with({"model.lora": {"kept": False, "rank": 2}})
    assert (new.model.kept, new.sft_model.kept, new.model.lora.rank) == (False, True, 2)
    first = prepare(new, storage=storage, report=nothing)
    second = prepare(kept, storage=storage, report=nothing)
    assert first.checkpoint == second.checkpoint
    assert first.step0.chosen_means == pytest.approx(second.step0.chosen_means, abs=1e-4)


def test_evaluate_measures_a_kept_adapter_on_its_own_base(base):
    save_adapter(base, **KINDS["lora"])
    experiment = experiment_of(base)
    trial = arm_trials(experiment)[0]
    run_trial(trial, run=base / "run", storage=RunStore(base / "runs"), report=nothing)
    run = evaluate(
        experiment.model_copy(update={"name": "again"}), [base / "run" / "trials" / trial.trial_id], baseline=None,
        source=base / "kept.yaml", storage=str(base / "runs"), start="fresh", offline=False, say=lambda line: None,
    )  # fmt: skip
    again = pd.read_parquet(run / "pairs.parquet")
    pairs = computed(base / "run", trial)[3]
    for column in ("chosen_logp", "rejected_logp", "chosen_logp0"):
        assert again[column].tolist() == pytest.approx(pairs[column].tolist(), abs=1e-4)


@pytest.mark.parametrize("sft", [None, {"updates": 2, "examples_per_update": 8}], ids=["alone", "sft"])
def test_an_export_is_the_adapter_on_its_own_base_or_both_in_one(base, sft):
    save_adapter(base, **KINDS["rslora"])
    trial = arm_trials(experiment_of(base, sft=sft))[0]
    run = base / "runs" / "first"
    run_trial(trial, run=run, storage=RunStore(base / "runs"), report=nothing)
    trained = of_peft(base, run / "trials" / trial.trial_id / MODEL).eval()
    ids = torch.arange(20)[None]
    expected = trained(input_ids=ids).logits
    export_model(run, trial.trial_id, base / "adapted", facts={})
    shutil.rmtree(base / "runs" / ".stages")
    config = json.loads((base / "adapted" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base / "base")
    card = (base / "adapted" / "README.md").read_text()
    assert "| base model | base |" in card
    assert "| went on from | adapter |" in card
    assert torch.allclose(of_peft(base, base / "adapted").eval()(input_ids=ids).logits, expected)
    export_model(run, trial.trial_id, base / "whole", merge=True, facts={})
    whole = AutoModelForCausalLM.from_pretrained(base / "whole").eval()
    assert torch.allclose(whole(input_ids=ids).logits, expected, atol=1e-4)
