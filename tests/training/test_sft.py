"""What the shared stages keep: the model that was trained, and nothing that is not finite."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from slime_ray.config.evaluation import Decoding
from slime_ray.config.model import Lora
from slime_ray.config.settings import Settings
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.evaluation.generate import generate_answers
from slime_ray.evaluation.held_out import HeldOut
from slime_ray.model import lora
from slime_ray.model.loading import load_model
from slime_ray.runs.notes import model_notes
from slime_ray.runs.store import RunStore
from slime_ray.training import prompts, sft, stages
from slime_ray.training.cache import cached
from slime_ray.training.checks import check_finite, check_saved, check_update

from .small_trials import nothing

PAIRS = [TokenPair([1, 5, 9], [7, 8, 9, 3]), TokenPair([1, 4], [11, 12]), TokenPair([1, 6, 6], [7, 3])]


@pytest.fixture
def settings(experiment) -> Settings:
    return copy.deepcopy(experiment.settings)


def with_sft(settings: Settings, *, lora: Any = "same", dtype: str = "float32", **changes: Any) -> Settings:
    schedule = {"updates": 6, "learning_rate": 5e-3, "examples_per_update": 3, "lora": lora} | changes
    model = settings.model.model_copy(update={"dtype": dtype})
    assert settings.sft is not None
    return settings.model_copy(update={"model": model, "sft": settings.sft.model_copy(update=schedule)})


def made(settings: Settings, tmp_path: Path) -> Path:
    return cached(
        RunStore(tmp_path), "sft", "key",
        lambda folder: sft.make_sft(settings, PAIRS, folder, nothing, sharded=False, check=nothing, note=nothing), nothing,
    )  # fmt: skip


def kept(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / ".stages").iterdir() if path.is_dir()]


def own_logps(folder: Path, pairs: list[TokenPair]) -> np.ndarray:
    """transformers' own, of each chosen completion alone."""
    lm, parts = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    for pair in pairs:
        ids = torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]])
        with torch.no_grad():
            logps = lm(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(pair.prompt_ids)
        parts.append(logps[start - 1 : -1].gather(1, ids[0, start:, None]).squeeze(1))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize(
    ("adapters", "dtype", "tolerance"),
    [
        (None, "float32", 1e-5),
        (Lora(rank=4, alpha=64.0), "float32", 1e-5),
        (Lora(rank=4, alpha=64.0, targets=["q_proj", "lm_head"]), "float32", 1e-5),
        (Lora(rank=4, alpha=64.0, targets=["embed_tokens"]), "float32", 1e-5),
        (Lora(rank=4, alpha=64.0, train_head=True), "float32", 1e-5),
        (Lora(rank=4, alpha=64.0), "bfloat16", 0.1),
        (None, "bfloat16", 0.1),
    ],
    ids=["whole", "adapters", "tied head", "tied embeddings", "trained head", "bfloat16", "whole in bfloat16"],
)
def test_the_saved_model_is_the_trained_one(settings, tmp_path, monkeypatch, adapters, dtype, tolerance):
    monkeypatch.setattr(sft, "load_model", tied_model)
    seen = []
    monkeypatch.setattr(sft, "check_saved", lambda *given: seen.append(given) or check_saved(*given))
    folder = made(with_sft(settings, lora=adapters, dtype=dtype), tmp_path)
    [(trained, saved, _)] = seen
    np.testing.assert_allclose(saved, own_logps(folder, PAIRS), rtol=0, atol=tolerance)
    np.testing.assert_allclose(trained, saved, rtol=0, atol=tolerance)
    untrained = made(with_sft(settings, updates=0), tmp_path / "untrained")
    assert np.abs(own_logps(untrained, PAIRS) - saved).mean() > 0.2


def test_merging_a_small_update_in_bfloat16_keeps_it(settings, tmp_path, monkeypatch):
    """By hand from the adapters' own matrices. Added up in bfloat16, most entries would not change."""
    updates: dict[str, torch.Tensor] = {}

    def merged(lm: Any) -> Any:
        for name, module in lm.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                down, up = (each["default"].weight.detach().double() for each in (module.lora_A, module.lora_B))
                base[name] = module.base_layer.weight.detach().double().clone()
                updates[name] = module.scaling["default"] * up @ down
        return merge(lm)

    base: dict[str, torch.Tensor] = {}
    merge = sft._merged
    monkeypatch.setattr(sft, "_merged", merged)
    adapters = Lora(rank=4, alpha=8.0, targets=["q_proj", "down_proj"])
    folder = made(with_sft(settings, lora=adapters, dtype="bfloat16", learning_rate=2.5e-6), tmp_path)
    saved = load_file(folder / "model.safetensors")
    assert len(updates) == 4
    for name, update in updates.items():
        kept = saved[f"{name}.weight"].double() - base[name]
        assert torch.equal(base[name], base[name].bfloat16().double())
        assert torch.nn.functional.cosine_similarity(kept.flatten(), update.flatten(), 0) > 0.99


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_model_that_merging_changed_is_not_kept(settings, tmp_path, monkeypatch, target):
    monkeypatch.setattr(sft, "load_model", tied_model)
    monkeypatch.setattr(lora, "_untie", lambda *_: None)
    changed = with_sft(settings, lora=Lora(rank=4, alpha=64.0, targets=[target]))
    with pytest.raises(InputError, match=r"saved is not the one that was trained.*differ by .* nats .* allows 0.001"):
        made(changed, tmp_path)
    assert kept(tmp_path) == []


def test_a_model_that_lost_weights_in_saving_is_not_kept(settings, tmp_path, monkeypatch):
    def lossy(folder: Path, *, dtype: str) -> Any:
        lm = AutoModelForCausalLM.from_pretrained(folder)
        torch.nn.init.normal_(lm.model.layers[0].mlp.down_proj.weight)
        return lm

    monkeypatch.setattr(sft, "load_checkpoint", lossy)
    for model in (with_sft(settings, lora=None), settings.model_copy(update={"sft": None})):
        with pytest.raises(InputError, match="saved is not the one that was trained"):
            made(model, tmp_path)
    assert kept(tmp_path) == []


def tied_model(model: Any, *, seed: int, **options: Any) -> Any:
    config = load_model(model, seed=seed).config
    config.tie_word_embeddings = True
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(getattr(torch, model.dtype))


def broken_model(model: Any, *, seed: int, **options: Any) -> Any:
    lm = load_model(model, seed=seed)
    # Finite weights, whose products are not.
    lm.model.norm.weight.data.fill_(3e38)
    return lm


def test_a_first_loss_that_is_no_number_is_the_models(settings):
    with pytest.raises(InputError, match=r"ended at update 1 and is not kept: loss became nan.*check the weights of"):
        check_update(1, {"loss": float("nan"), "grad_norm": 1.0}, settings)


def test_a_gradient_that_overflows_ends_sft_as_well(settings, tmp_path):
    with pytest.raises(InputError, match=r"ended at update 1 and is not kept: grad norm became inf"):
        made(with_sft(settings, lora=Lora(rank=4, alpha=1e30)), tmp_path)
    assert kept(tmp_path) == []


def test_after_the_first_update_the_learning_rate_is_named(settings):
    check_update(3, {"loss": 2.0, "grad_norm": 1.0}, settings)
    with pytest.raises(
        InputError, match=r"ended at update 3 and is not kept: loss became nan. Lower sft.learning_rate"
    ):
        check_update(3, {"loss": float("nan"), "grad_norm": 1.0}, settings)


def test_a_model_without_finite_numbers_is_no_checkpoint(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "load_model", broken_model)
    with pytest.raises(InputError, match=r"gives log.* that are not finite"):
        made(settings.model_copy(update={"sft": None}), tmp_path)
    assert kept(tmp_path) == []


def test_log_probabilities_that_are_not_finite_are_counted_by_pairs(settings):
    values = np.array([-1.0, -2.0, np.nan, -np.inf, -1.0])
    measured = HeldOut(values, np.full(3, -1.0), np.array([2, 2, 1]), np.ones(3, int), np.ones(5), np.ones(5))
    means = measured.chosen_means, measured.rejected_means
    with pytest.raises(InputError, match=r"The SFT checkpoint gives .* on 1 of 3 held-out pairs. Lower sft.learning"):
        check_finite(*means, "held-out", settings)
    check_finite(means[1], means[1], "held-out", settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_no_answers(settings, temperature):
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0, "all_special_ids": []})()
    with pytest.raises(FloatingPointError, match="not numbers"):
        generate_answers(
            broken_model(settings.model, seed=0), tokenizer, [[1, 5], [1, 2, 3]],
            decoding=Decoding(temperature=temperature, max_new_tokens=2), stop_tokens=[4], seed=0,
        )  # fmt: skip


def test_a_baseline_without_answers_is_a_sentence(settings, tmp_path, monkeypatch):
    def ask(*given: Any, **options: Any) -> Any:
        raise FloatingPointError

    monkeypatch.setattr(prompts, "ask", ask)
    unable = settings.model_copy(update={"sft": None})
    with pytest.raises(InputError, match="gives logits that are not numbers, so the baseline has no answers"):
        stages.prepare(unable, storage=RunStore(tmp_path), report=nothing)
    assert not any(name.startswith("baseline") for name in kept(tmp_path))


def test_trials_adapters_that_no_layer_can_have_are_refused_before_sft(settings, tmp_path):
    model = settings.model.model_copy(update={"lora": Lora(targets=["query"])})
    unable = with_sft(settings.model_copy(update={"model": model}), lora=None)
    with pytest.raises(InputError, match=r"\['query'\] name no layer"):
        made(unable, tmp_path)


def test_facts_of_adapters_and_dropout_are_lines_for_the_user(settings, tmp_path):
    prepared = stages.prepare(settings, storage=RunStore(tmp_path), report=nothing)
    assert prepared.data["adapters"]["model.lora"]["adapted"] == ["self_attn.q_proj", "self_attn.v_proj"]
    [line] = model_notes(prepared.data)
    assert "Adapters (model.lora) are on" in line
    assert "mlp.down_proj" in line
    rates = {"dropout": {"resid_pdrop": 0.1, "attn_pdrop": 0.2}}
    assert model_notes({**rates, "dropout_on": False}) == [
        "Dropout of the model's configuration (resid_pdrop 0.1, attn_pdrop 0.2) is off in training; model.dropout: true "
        "keeps it."
    ]
    assert "is on in training" in model_notes({**rates, "dropout_on": True})[0]
    assert model_notes({}) == []
    note = "The adapter a was merged into its base b."
    assert model_notes({"model_notes": [note]}) == [f"Model: {note}"]
