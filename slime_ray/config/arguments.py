"""The arguments of transformers' Trainer that a file may set, and why it may not set the others."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slime_ray.config.strict import Strict
from slime_ray.errors import near

Optimizer = Literal["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop"]
Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
_MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
SCHEDULER_KWARGS: Mapping[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": (*_MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
}  # fmt: skip
"""What `lr_scheduler_kwargs` may hold; the others take nothing."""
REQUIRED_KWARGS: Mapping[str, tuple[str, ...]] = {
    "warmup_stable_decay": ("num_decay_steps",),
    **dict.fromkeys(("cosine_with_min_lr", "cosine_warmup_with_min_lr"), ("min_lr", "min_lr_rate")),
}
"""Of which just one has to be there."""
EQUIVALENTS = {
    "learning_rate": "training.learning_rate", "num_train_epochs": "training.epochs", "max_steps": "training.updates",
    "warmup_steps": "training.warmup_fraction", "weight_decay": "training.weight_decay",
    "adam_beta2": "training.adam_beta2", "max_grad_norm": "training.max_grad_norm",
    "per_device_train_batch_size": "training.pairs_per_update",
    "gradient_accumulation_steps": "training.pairs_per_update",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing", "eval_steps": "training.evaluations",
    "eval_strategy": "training.evaluations", "bf16": "model.dtype", "fp16": "model.dtype", "tf32": "model.dtype",
    "seed": "seeds", "data_seed": "seeds", "report_to": "trackers", "fsdp": "resources.strategy",
    "fsdp_config": "resources.strategy", "use_cpu": "resources.gpu_per_worker", "output_dir": "--storage",
    "save_steps": "faults.checkpoint_minutes", "save_strategy": "faults.checkpoint_minutes",
    "hub_model_id": "slime-ray export", "push_to_hub": "slime-ray export", "use_liger_kernel": "model.fused",
    "load_best_model_at_end": "training.keep", "metric_for_best_model": "training.keep",
    "greater_is_better": "training.keep",
}  # fmt: skip
"""Our own setting for one of Trainer's."""
REASONS = {
    "torch_compile": "rows have all lengths, so a compiled model would be compiled again and again. model.fused "
    "compiles what pays",
    "neftune_noise_alpha": "its noise is scaled by the length of a sequence, and a packed row holds several",
    "label_smoothing_factor": "the loss is the objective's. Objectives that smooth labels have a knob for it",
    "deepspeed": "large models are divided by resources.strategy: fsdp2",
    "auto_find_batch_size": "where memory runs out, rows are halved and the update is made again",
    "optim_args": "the optimizers that may be chosen take none",
}
ENGINE = "the engine packs rows, counts over whole updates and writes checkpoints itself"


class TrainerArguments(Strict):
    """Arguments of transformers' TrainingArguments; null is Trainer's default."""

    optim: Optimizer | None = None
    """The optimizer; null is AdamW."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """AdamW's first beta."""
    adam_epsilon: Annotated[float, Field(gt=0)] | None = None
    """AdamW's epsilon."""
    lr_scheduler_type: Scheduler | None = None
    """Scheduler instead of `schedule`."""
    lr_scheduler_kwargs: dict[str, float | int | str] = {}
    """Arguments of that scheduler, such as `{num_cycles: 3}`."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_engine_arguments(cls, arguments: Any) -> Any:
        for name in arguments if isinstance(arguments, Mapping) else ():
            if name in EQUIVALENTS:
                raise ValueError(f"{name} is {EQUIVALENTS[name]} here. Set that")
            if name in REASONS:
                raise ValueError(f"{name} cannot be set: {REASONS[name]}. Leave it out")
            if name not in cls.model_fields:
                raise ValueError(f"{name} is none of those that may be set: {ENGINE}{near(name, cls.model_fields)}")
        return arguments

    @model_validator(mode="after")
    def _check_scheduler_kwargs(self) -> "TrainerArguments":
        kind = self.lr_scheduler_type
        if kind is None:
            if self.lr_scheduler_kwargs:
                raise ValueError("lr_scheduler_kwargs has no effect without lr_scheduler_type. Name one")
            return self
        parameters = SCHEDULER_KWARGS.get(kind, ())
        if unknown := sorted(set(self.lr_scheduler_kwargs) - set(parameters)):
            raise ValueError(
                f"lr_scheduler_kwargs: {kind} takes {', '.join(parameters) or 'nothing'}, not {unknown[0]}"
            )
        if (names := REQUIRED_KWARGS.get(kind)) and len(set(names) & set(self.lr_scheduler_kwargs)) != 1:
            raise ValueError(f"lr_scheduler_kwargs: {kind} needs {'one of ' * (len(names) > 1)}{' and '.join(names)}")
        return self

    def as_arguments(self) -> dict[str, Any]:
        """What is set, by the names of TrainingArguments."""
        return {name: value for name, value in self if value not in (None, {})}
