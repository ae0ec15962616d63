"""Trainer's arguments that a file may set do what transformers and torch do by them, and resume bit for bit."""

import copy
import inspect
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import TrainerCallback, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

from slime_ray.config.arguments import EQUIVALENTS, REASONS, SCHEDULER_KWARGS, Scheduler, TrainerArguments
from slime_ray.config.experiment import arm_trials
from slime_ray.config.settings import Schedule, Training
from slime_ray.errors import InputError
from slime_ray.objectives import SlimeObjective
from slime_ray.runs import results
from slime_ray.training.checkpoint import latest
from slime_ray.training.loop import Runtime
from slime_ray.training.trainer import load_callbacks
from slime_ray.training.worker import run_trial
from tests.training.rank_worker import draw_pairs
from tests.training.test_trainer import model, train

__all__ = ["model"]
KWARGS = {
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}
OPTIMIZERS = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def schedule_of(**arguments) -> Schedule:
    return Schedule(learning_rate=1e-2, updates=6, warmup_fraction=0.34, arguments=TrainerArguments(**arguments))


@pytest.mark.parametrize("kind", inspect.get_annotations(TrainerArguments)["lr_scheduler_type"].__args__[0].__args__)
def test_the_learning_rate_of_every_update_is_that_of_transformers_scheduler(model, tmp_path, kind):
    kwargs = KWARGS.get(kind, {})
    curves, _, _ = train(
        model, tmp_path, SlimeObjective(), schedule=schedule_of(lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs)
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    scheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=2, num_training_steps=6, scheduler_specific_kwargs=kwargs
    )
    rates = []
    for _ in curves:
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [row["learning_rate"] for row in curves] == pytest.approx(rates, rel=1e-12)


def test_what_a_scheduler_takes_is_what_transformers_has():
    for kind, make in TYPE_TO_SCHEDULER_FUNCTION.items():
        if kind.value not in Scheduler.__args__:
            continue
        known = set(inspect.signature(make).parameters) - {
            "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch",
        }  # fmt: skip
        assert set(SCHEDULER_KWARGS.get(kind.value, ())) == known, kind


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("adamw_torch_fused", "adagrad") else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_every_optimizer_steps_as_torchs_own_and_resumes_bit_for_bit(model, tmp_path, name):
    schedule = schedule_of(optim=name, lr_scheduler_type="constant")
    run = {"pairs": draw_pairs(20), "schedule": schedule, "checkpoints": tmp_path / "checkpoints"}
    whole, weights, _trainer = train(model, tmp_path, SlimeObjective(), **run)
    before, _, _ = train(model, tmp_path, SlimeObjective(), stop_at=4, **run)
    after, resumed, _ = train(model, tmp_path, SlimeObjective(), saved=latest(tmp_path / "checkpoints"), **run)
    assert before + after == whole
    assert torch.equal(resumed, weights)
    # One update by hand, from the gradient that a plain step of SGD shows.
    one = schedule.model_copy(update={"updates": 1, "warmup_fraction": 0.0})
    start = torch.cat([p.detach().flatten() for p in copy.deepcopy(model).parameters()])
    _, moved, _ = train(model, tmp_path, SlimeObjective(), schedule=one)
    plain = one.model_copy(update={"arguments": TrainerArguments(optim="sgd", lr_scheduler_type="constant")})
    _, by_sgd, _ = train(model, tmp_path, SlimeObjective(), schedule=plain)
    parameter = start.clone().requires_grad_()
    parameter.grad = (start - by_sgd) / 1e-2
    options = {"weight_decay": 0.0} if name.startswith("adamw") else {}
    OPTIMIZERS[name]([parameter], lr=1e-2, **options).step()
    torch.testing.assert_close(moved, parameter.detach(), rtol=0, atol=2e-4 if name != "sgd" else 1e-12)


def test_adams_numbers_reach_the_optimizer(model, tmp_path):
    seen = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.update(optimizer.param_groups[0])

    schedule = schedule_of(adam_beta1=0.7, adam_epsilon=1e-5)
    train(model, tmp_path, SlimeObjective(), schedule=schedule, callbacks=[Look()])
    assert seen["betas"] == (0.7, 0.999)
    assert seen["eps"] == 1e-5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learning_rate": 1e-3}, "learning_rate is training.learning_rate here. Set that"),
        ({"bf16": True}, "bf16 is model.dtype here"),
        ({"torch_compile": True}, "torch_compile cannot be set: rows have all lengths"),
        ({"neftune_noise_alpha": 5}, "scaled by the length of a sequence"),
        ({"dataloader_num_workers": 2}, "none of those that may be set"),
        ({"optm": "sgd"}, "Did you mean 'optim'"),
        ({"optim": "lomo"}, "optim"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "no effect without lr_scheduler_type"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "linear takes nothing, not power"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6, "min_lr_rate": 0.1}},
            "needs one of min_lr and min_lr_rate",
        ),
    ],
)
def test_arguments_that_cannot_be_set_say_why(arguments, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TrainerArguments(**arguments)


def test_what_is_refused_by_name_is_an_argument_of_trainers():
    # The last is one since transformers 5.23.
    names = {*TrainingArguments.__dataclass_fields__, "activation_checkpointing"}
    assert set(EQUIVALENTS) | set(REASONS) | set(TrainerArguments.model_fields) <= names


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_callbacks.py").write_text(
        "from transformers import TrainerCallback\n"
        "class Good(TrainerCallback): pass\n"
        "class Picky(TrainerCallback):\n    def __init__(self, size): pass\n"
        "class Other: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_callbacks", raising=False)


def test_callbacks_of_the_users_are_made_and_others_refused(mine):
    [made] = load_callbacks(Training(learning_rate=1e-3, callbacks=["my_callbacks:Good"]).callbacks)
    assert isinstance(made, TrainerCallback)
    for name, sentence in {
        "my_callbacks:Other": r"my_callbacks:Other is no transformers\.TrainerCallback",
        "my_callbacks:Picky": "cannot be made without arguments",
        "my_callbacks:None": "cannot be imported",
        "nowhere:Good": "cannot be imported",
    }.items():
        with pytest.raises(InputError, match=sentence):
            load_callbacks([name])


def test_a_callback_hears_every_update_of_a_trial_and_one_that_ends_it_is_said(
    experiment, storage, tmp_path, monkeypatch
):
    (tmp_path / "trial_callbacks.py").write_text(
        "from transformers import TrainerCallback\n"
        "STEPS = []\n"
        "class Ends(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        STEPS.append(state.global_step)\n"
        "        control.should_training_stop = state.global_step == 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trial = arm_trials(experiment)[0]
    training = trial.settings.training.model_copy(update={"callbacks": ["trial_callbacks:Ends"]})
    ended = trial.model_copy(update={"settings": trial.settings.model_copy(update={"training": training})})
    run_trial(ended, run=tmp_path, storage=storage, report=lambda told: None, runtime=Runtime())
    row = results.finished_trials(tmp_path)[trial.trial_id]
    assert sys.modules["trial_callbacks"].STEPS == [1, 2, 3]
    assert (row["status"], row["updates"], row["planned_updates"]) == ("stopped", 3, 6)
    assert "a callback of training.callbacks ended the training" in row["reason"]
    assert row["win_rate"] is not None
