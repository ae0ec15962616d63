"""Stage 1: the checkpoint that all trials start from, trained, merged, saved, and compared with what was trained."""

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slime_ray.config.model import Model
from slime_ray.config.settings import Settings
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.model.loading import SFT_ADAPTER, load_checkpoint, load_kept, load_model, load_start, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import find_adapted, make_trainable
from slime_ray.model.sharding import is_sharded, whole_weights
from slime_ray.objectives import SftObjective
from slime_ray.training.checks import check_saved, check_trained, check_update
from slime_ray.training.orders import Report
from slime_ray.training.policies import chosen_logps, row_budget, to_device
from slime_ray.training.trainer import GO_ON, Metrics, Next, PreferenceTrainer
from slime_ray.world import World

COMPARED_PAIRS = 4
"""Pairs on which the saved model is compared with the trained one."""


def make_sft(
    settings: Settings,
    pairs: Sequence[TokenPair],
    folder: Path,
    report: Report,
    *,
    sharded: bool,
    check: Callable[[Policy], object],
    note: Callable[[str], object],
) -> None:
    """Train on the chosen completions of `pairs`, merge any adapters, and save the whole model.

    What was trained is merged and saved in float32. Adapters are saved next to it as well. Without `sft` the model is
    saved as it is. Of a 4-bit base, into which nothing is merged exactly, configuration and adapter are saved alone.

    Args:
        settings: Of the experiment.
        pairs: Demonstrations, whose rejected completions are not read.
        folder: Where the model is saved.
        report: Takes the progress.
        sharded: Whether ranks hold parts of the model.
        check: Looks at the policy before it is trained.
        note: Takes what a user should know of the model that is loaded.

    Raises:
        InputError: A loss is not finite, or what was saved is not what was trained.
    """
    compared = pairs[:COMPARED_PAIRS]
    lm, trained = _trained(settings, pairs, folder / "scratch", report, sharded, check, note)
    # Trainer looks into its folder at its end, on every rank.
    World.current().broadcast(None)

    def save() -> None:
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        check_trained(trained, settings)
        if settings.sft and hasattr(lm, "peft_config"):
            lm.save_pretrained(folder / SFT_ADAPTER, save_embedding_layers=False)
        model = settings.model
        (lm.config if model.quantization else _merged(lm)).save_pretrained(folder)
        # Trainer's circles hold the optimizer, and there may be no to_device for a second model beside it.
        gc.collect()
        again = load_start(folder, model) if model.quantization else load_checkpoint(folder, dtype=model.weights_dtype)
        saved = _whole_policy(again, model, on_device=not sharded)
        check_saved(trained, chosen_logps(saved, compared), settings)

    World.current().from_main(save)


def _trained(
    settings: Settings,
    pairs: Sequence[TokenPair],
    scratch: Path,
    report: Report,
    sharded: bool,
    check: Callable[[Policy], object],
    note: Callable[[str], object],
) -> tuple[Any, np.ndarray]:
    """The model after SFT, whole on rank 0, and its log-probabilities of the compared pairs."""
    sft, model = settings.sft, settings.sft_model if settings.sft else settings.model
    seed = sft.seed if sft else 0
    torch.manual_seed(seed)
    lm = (
        load_kept(model, Path(model.source), note=note)
        if model.kept and (sft or model.quantization)
        else load_model(model, seed=seed, note=note)
    )
    if settings.model.lora and not hasattr(lm, "peft_config"):
        # What trials cannot adapt is refused before a long training.
        find_adapted(lm, settings.model.lora)
    if sft is None:
        whole = _whole_policy(lm, model, on_device=not sharded)
        check(whole)
        return lm, chosen_logps(whole, pairs[:COMPARED_PAIRS])
    lm = make_trainable(lm, model.lora)
    policy = to_device(make_policy(lm, model), sharded=sharded)
    check(policy)

    def after_update(step: int, metrics: Metrics) -> Next:
        check_update(step, metrics, settings)
        if World.current().main and step % max(1, trainer.updates // 20) == 0:
            report({"doing": "making sft", "step": step, "updates": trainer.updates, "loss": metrics["loss"]})
        return GO_ON

    trainer = PreferenceTrainer(
        policy=policy,
        objective=SftObjective(),
        pairs=pairs,
        schedule=sft,
        pairs_per_update=sft.examples_per_update,
        row_tokens=row_budget(settings.model_copy(update={"model": model}), policy),
        seed=seed,
        scratch=scratch,
        gradient_checkpointing=settings.training.gradient_checkpointing,
        dropout=model.dropout,
        after_update=after_update,
    )
    if trainer.updates:
        trainer.resume(None)
    logps = chosen_logps(policy, pairs[:COMPARED_PAIRS])
    if is_sharded(policy):
        return _gathered(policy, model, seed=seed), logps
    return lm, logps


def _merged(lm: Any) -> Any:
    """The model on the CPU, without adapters. They are merged in float32: in bfloat16 most of an update is rounded."""
    lm = lm.cpu()
    return lm.float().merge_and_unload() if hasattr(lm, "peft_config") else lm


def _whole_policy(lm: Any, model: Model, *, on_device: bool) -> Policy:
    """One process's policy of a whole model. A model that is sharded elsewhere may not fit the device."""
    policy = make_policy(lm, model.model_copy(update={"attention": "auto"}))
    return to_device(policy, sharded=False) if on_device else policy


def _gathered(policy: Policy, model: Model, *, seed: int) -> Any:
    """The trained model, whole, on rank 0; None elsewhere."""
    weights = whole_weights(policy, trained_only=True)
    if not World.current().main:
        return None
    lm = make_trainable(load_model(model, seed=seed), model.lora)
    trained = {name for name, weight in lm.named_parameters() if weight.requires_grad}
    missing, unexpected = lm.load_state_dict(weights, strict=False)
    if lost := sorted({*missing} & trained) + unexpected:
        raise InputError(
            f"{len(lost)} of the trained weights could not be gathered from the workers, {lost[0]} for one. Give "
            "resources.strategy: ddp, or one worker."
        )
    return lm
