"""What one trial does, in full: the schema of `base` in an experiment's YAML.

Fixed and searched values share this schema: a searched knob is a path into it, such as `training.learning_rate`.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)

from slime_ray.config.arguments import TrainerArguments
from slime_ray.config.data_source import DataSource, Train
from slime_ray.config.evaluation import Evaluation, Sentinel
from slime_ray.config.judge import Exact, JudgeSettings
from slime_ray.config.metrics import Estimate, Way
from slime_ray.config.model import Lora, Model
from slime_ray.config.strict import EMBEDDED, Fraction, Positive, Seed, Strict, fingerprint
from slime_ray.objectives import OBJECTIVES, Objective, find_objective

__all__ = ["EMBEDDED", "Positive", "Settings", "Strict", "fingerprint"]


ROW_MARGIN = 0.9
"""Share of a GPU's memory for which rows are chosen; the rest is for what an estimate misses."""


class Data(Strict):
    """Where pairs come from, how they are split and cut."""

    train: Train
    """A .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, a Hub id, `embedded/arithmetic` or
    `embedded/notes`, or a list of data sets."""
    split: str = "train"
    """Split of a Hub data set."""
    subset: str | None = None
    """Configuration of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    sft_fraction: Fraction = 0.34
    """Share of the prompts that goes to the SFT stage, with all their pairs."""
    sft_examples: Positive | None = None
    """Most examples of the SFT stage; null takes all."""
    pairs: Positive | None = None
    """Most pairs of preference training; null takes all."""
    held_out_pairs: Positive = 1000
    """Pairs held out for measuring and for prompts to answer."""
    max_tokens: Annotated[int, Field(ge=8)] = 2048
    """Most tokens of prompt and completion; longer completions lose their end."""
    max_prompt_tokens: Annotated[int, Field(ge=4)] | None = None
    """Most tokens of a prompt; longer ones lose their start. Null is no limit."""
    row_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a packed row, one micro-batch. A number also cuts pairs to it; null cuts none, and is 2048 on a CPU and
    what fits on a GPU."""
    strict: bool = False
    """Whether an unusable row or text in other columns ends the run, instead of being left out and counted."""
    metadata: list[str] = []
    """Columns and message fields without text to train on, which `strict` ignores."""
    seed: Seed = 0
    """Seed of the split."""

    @property
    def task(self) -> str | None:
        """Name of the embedded task, or None for preference data of the user's."""
        name = self.label
        return name.removeprefix(EMBEDDED) if name.startswith(EMBEDDED) else None

    @property
    def sources(self) -> list[DataSource]:
        """The data sets of `train`, one or more, each with its split."""
        if isinstance(self.train, str):
            return [DataSource(source=self.train, split=self.split, subset=self.subset, revision=self.revision)]
        return [entry.model_copy(update={"split": entry.split or self.split}) for entry in self.train]

    @property
    def label(self) -> str:
        """The name of the data set, or the names of all."""
        return self.train if isinstance(self.train, str) else ", ".join(entry.source for entry in self.train)

    @model_validator(mode="after")
    def _check_single_source(self) -> "Data":
        for name in ("subset", "revision"):
            if not isinstance(self.train, str) and getattr(self, name) is not None:
                raise ValueError(f"{name} is of a single data set. Write it into the entries of train")
        return self

    def row_budget(self, *, gpu: bool) -> int:
        """Tokens of one packed row, at most that of a GPU. Losses and gradients do not depend on it."""
        return self.row_tokens or (max(8192, 2 * self.max_tokens) if gpu else 2048)

    def row_reason(self, row: int, memory: float | None = None) -> str:
        """Say why a row has so many tokens. memory: bytes of the GPU that one worker may take."""
        if self.row_tokens:
            return "as data.row_tokens says"
        if memory is None:
            return "since data.row_tokens is null"
        more = "they fit" if row >= self.row_budget(gpu=True) else "more would not fit"
        return f"since data.row_tokens is null and {more} {ROW_MARGIN:.0%} of {memory / 2**30:.1f} GiB"


class Schedule(Strict):
    """One optimisation run: AdamW, a learning rate that warms up and falls, and how long it lasts."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    """Highest learning rate."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    updates: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps, instead of `epochs`; 0 trains nothing."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls."""
    warmup_fraction: Fraction = 0.0
    """Share of the updates in which it rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """AdamW's second beta."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm to which gradients are clipped; null clips none."""
    arguments: TrainerArguments = TrainerArguments()
    """Further arguments of transformers' Trainer."""


class Sft(Schedule):
    """Stage 1: supervised fine-tuning on chosen completions."""

    examples_per_update: Positive = 64
    """Examples of an update, over all workers."""
    seed: Seed = 0
    """Seed of the examples' order and of new weights."""
    lora: Literal["same"] | Lora | None = "same"
    """Its adapters, merged at its end: `same` as model.lora, others, or null for every weight."""


def _check_keep(value: Any) -> Any:
    """`last`, `best`, or one column that is told during training."""
    metrics = typing.get_args(Estimate)
    if not isinstance(value, Mapping) and value not in ("last", "best"):
        raise ValueError(f"{value!r} is neither last, best nor a number with its direction, as {{win_rate: maximize}}")
    if isinstance(value, Mapping) and (len(value) != 1 or next(iter(value)) not in metrics):
        raise ValueError(
            f"{dict(value)} does not say by which number weights are kept: name one that is measured during training, "
            f"of {', '.join(metrics)}, such as {{win_rate: maximize}}"
        )
    return value


class Training(Schedule):
    """Stage 2: preference training from the SFT checkpoint."""

    pairs_per_update: Positive = 128
    """Pairs of an update, over all workers."""
    gradient_checkpointing: bool = False
    """Whether layers are computed again in the backward pass, which saves memory and costs time."""
    evaluations: Annotated[int, Field(ge=1)] = 5
    """Held-out measurements after step 0, evenly spread."""
    keep: Annotated[Literal["last", "best"] | dict[Estimate, Way], BeforeValidator(_check_keep)] = "last"
    """Weights to measure and save: the `last`, the `best` evaluation's, or the best by a metric, `{win_rate:
    maximize}`."""
    callbacks: list[Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = []
    """TrainerCallbacks, as `package.module:Class`, made without arguments."""

    @model_validator(mode="after")
    def _check_keep_choice(self) -> "Training":
        if self.keep != "last" and self.evaluations == 1:
            raise ValueError(
                "keep chooses among training.evaluations, and there is 1, after the last update. Set more of them, or "
                "keep: last"
            )
        return self


def _objective_schema(name: str, objective: type) -> type[BaseModel]:
    """A pydantic model with the fields of an objective's dataclass; building the objective checks their ranges."""
    hints = typing.get_type_hints(objective)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(objective):
        hint = hints[field.name]
        # YAML has lists where dataclasses have tuples; nothing else may change its type on the way in.
        lenient = typing.get_origin(hint) is tuple
        fields[field.name] = (Annotated[hint, Field(strict=False)] if lenient else hint, field.default)

    def check(self: Any) -> Any:
        self.build()
        return self

    return create_model(
        f"{objective.__name__}Settings",
        __base__=ObjectiveSettings,
        __validators__={"check": model_validator(mode="after")(check)},  # type: ignore[dict-item]
        name=(Literal[name], name),  # type: ignore[arg-type]
        **fields,
    )


class ObjectiveSettings(Strict):
    """One objective by its registered name, with the knobs of its dataclass."""

    # The docstrings are the dataclass's. Of a model that is made from fields, pydantic would look for them in the
    # source of every module that is loaded.
    model_config = ConfigDict(use_attribute_docstrings=False)

    name: str

    def build(self) -> Objective:
        """The objective itself. Raises ValueError with a sentence that starts with the field's name."""
        return find_objective(self.name)(**{key: value for key, value in self if key != "name"})


OBJECTIVE_SETTINGS = {name: _objective_schema(name, objective) for name, objective in OBJECTIVES.items()}


def _validate_objective(value: Any, validate_registered: ValidatorFunctionWrapHandler) -> Any:
    """Settings of a registered objective, or of one of the user's, which is imported because the file names it."""
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    if not isinstance(name, str) or ":" not in name:
        return validate_registered(value)
    if name not in OBJECTIVE_SETTINGS:
        OBJECTIVE_SETTINGS[name] = _objective_schema(name, find_objective(name))
    try:
        return OBJECTIVE_SETTINGS[name].model_validate(value)
    except ValidationError as error:
        # The name stands in the place of the error, as it does for registered ones.
        details: Any = [{**detail, "loc": (name, *detail["loc"])} for detail in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(name, details) from None


if typing.TYPE_CHECKING:
    AnyObjective = ObjectiveSettings
else:
    AnyObjective = Annotated[
        typing.Union[tuple(OBJECTIVE_SETTINGS.values())],  # noqa: UP007
        Field(discriminator="name"),
        SerializeAsAny(),
        WrapValidator(_validate_objective),
    ]


class Settings(Strict):
    """What one trial computes, besides its seed."""

    model: Model
    """The model to train."""
    data: Data
    """The pairs."""
    sft: Sft | None = None
    """Stage 1, the start of all trials; null starts from the model as it is."""
    objective: AnyObjective
    """The preference loss."""
    training: Training
    """Stage 2."""
    sentinel: Sentinel = Sentinel()
    """The watch for collapse."""
    evaluation: Evaluation = Evaluation()
    """How trials are measured."""

    @model_validator(mode="after")
    def _check_parts(self) -> "Settings":
        if self.model.task and self.model.task != self.data.task:
            raise ValueError(
                f"model.source is {self.model.source!r}, a tiny model that knows only its own task's words, but "
                f"data.train is {self.data.label!r}. Give both the same embedded task, or a real model"
            )
        idle = "sft" if self.sft and not self.data.sft_fraction else "training" if self.data.sft_fraction == 1 else None
        if idle and not self.data.task:
            raise ValueError(
                f"data.sft_fraction is {self.data.sft_fraction:g}, which leaves no pair for {idle}. Give a share "
                "between 0 and 1" + (", or set sft: null" if idle == "sft" else "")
            )
        if self.kept_by and self.kept_by[0] == "win_rate" and not self.judged_on_the_way:
            raise ValueError(
                "training.keep chooses by win_rate, and nothing is judged during training. Set sentinel: {judge: true} "
                "(sentinel.action warn or stop, and a judge), or choose by preference_accuracy"
            )
        if self.model.kept and self.sft is not None and self.sft_model.lora != self.model.lora:
            raise ValueError(
                "model.lora keeps an adapter, and sft.lora trains others, which it was not trained on. Set sft.lora: "
                "same, or sft: null"
            )
        if self.evaluation.engine is not None:
            self._check_answer_server()
        if self.model.quantization is not None:
            self._check_quantization()
        members = self.evaluation.judge.members
        if not self.data.task and any(isinstance(judge, Exact) and not judge.scorer for judge in members):
            raise ValueError(
                "evaluation.judge is exact, but this data has no rubric of its own. Name a scorer, "
                "judge: {name: exact, scorer: 'package.module:function'}, or use judge: none"
            )
        return self

    def _check_answer_server(self) -> None:
        """Refuse what a server cannot load beside its base, as long as nothing has been trained."""
        lora, way_out = self.model.lora, "or leave evaluation.engine out, to draw the answers where trials run"
        if lora is None:
            raise ValueError(
                "evaluation.engine: the server loads adapters, and model.lora is null, which trains every weight. Set "
                f"model.lora, {way_out}"
            )
        if lora.kept:
            raise ValueError(
                "evaluation.engine: the server loads adapters on the SFT checkpoint, and model.lora keeps one that "
                f"belongs on its own base. Give settings of new adapters, {way_out}"
            )
        if lora.train_head:
            raise ValueError(
                "evaluation.engine: the server loads adapters of low rank alone, and model.lora.train_head trains the "
                f"output head in full. Set it to false, {way_out}"
            )

    def _check_quantization(self) -> None:
        """Refuse what cannot be trained, or not be exported as it was trained, on 4-bit weights."""
        fact, model, stage = f"model.quantization is {self.model.quantization}", self.model, self.sft_model
        adapters = [adapter for adapter in (model.lora, stage.lora if self.sft else None) if adapter]
        if self.sft is not None and stage.lora is None:
            raise ValueError(
                f"{fact}, and sft.lora is null, which trains every weight; 4-bit weights cannot be trained. Set "
                "sft.lora: same, or model.quantization: null"
            )
        if any(adapter.train_head for adapter in adapters):
            raise ValueError(
                f"{fact}, and lora.train_head trains the head in full, which the adapters of SFT and of a trial, side "
                "by side on the 4-bit base, cannot share. Set train_head: false, or model.quantization: null"
            )
        if self.sft is not None and not model.kept and any(adapter.dora for adapter in adapters):
            raise ValueError(
                f"{fact}, and DoRA's updates do not add up with those of the SFT stage, whose adapter stays beside a "
                "trial's on the 4-bit base. Set dora: false, sft: null, or model.quantization: null"
            )
        if self.evaluation.engine is not None:
            raise ValueError(
                f"{fact}, and the server of evaluation.engine loads adapters on a whole SFT checkpoint, which a 4-bit "
                "base has none of. Leave evaluation.engine out, or set model.quantization: null"
            )

    @property
    def undivided(self) -> tuple[str, str] | None:
        """Why the model cannot be divided among workers, and what else to set; None where it can."""
        adapters = [self.model.lora, self.sft_model.lora if self.sft else None]
        if any(lora and lora.dora for lora in adapters):
            return "DoRA takes norms of whole weights", ", or dora: false"
        if self.model.kept:
            return "model.lora keeps an adapter, which can be divided only where it is new to the model", ""
        if self.model.quantization is not None:
            reason = f"model.quantization {self.model.quantization} makes 4-bit weights, which cannot be divided"
            return reason, ", or model.quantization: null"
        return None

    @property
    def judged_on_the_way(self) -> bool:
        """Whether the sentinel's answers are judged during training."""
        judge = self.evaluation.judge
        judge_answers = isinstance(judge, Exact) if self.sentinel.judge is None else self.sentinel.judge
        return judge_answers and self.sentinel.action != "none" and judge.name != "none"

    @property
    def kept_by(self) -> tuple[Estimate, Way] | None:
        """The number by which weights are kept, and its direction; None keeps the last."""
        keep = self.training.keep
        if isinstance(keep, str):
            best: Estimate = "win_rate" if self.judged_on_the_way else "preference_accuracy"
            return None if keep == "last" else (best, "maximize")
        return next(iter(keep.items()))

    @property
    def sft_model(self) -> Model:
        """The model with the adapters of stage 1; without any where there is no such stage."""
        if self.sft is not None and self.sft.lora == "same":
            return self.model
        return self.model.model_copy(update={"lora": self.sft.lora if self.sft else None})

    @property
    def judge_identity(self) -> str:
        """The judge as the results name it, with all that its verdicts follow from."""
        judge = self.evaluation.judge
        names = [self.name_of(member) + member.repetition for member in judge.members]
        return f"{judge.name}:{' + '.join(names)}" if len(names) > 1 else names[0]

    def name_of(self, judge: JudgeSettings) -> str:
        """One judge as each of its verdicts names it."""
        return f"exact:{self.data.task}" if judge.identity == "exact" else judge.identity
