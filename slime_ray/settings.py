"""What one trial does, in full: the schema of `base` in an experiment's YAML.

Fixed and searched values share this schema: a searched knob is a path into it, such as `training.learning_rate`.
"""

import dataclasses
import typing
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model, model_validator

from slime_ray.judge_settings import AnyJudge, Exact, NoJudge, judge_by_name
from slime_ray.objectives import OBJECTIVES, Objective
from slime_ray.strict import EMBEDDED, Fraction, Located, Positive, Strict, fingerprint, located

__all__ = ["EMBEDDED", "Positive", "Settings", "Strict", "fingerprint"]


def _located_template(value: str) -> str:
    """A chat template's file by its absolute path; it may also be the name of a shipped one."""
    return located(value) if value.endswith(".jinja") else value


Temperature = Annotated[float, Field(ge=0)]


class Lora(Strict):
    """Low-rank adapters on the linear layers (Hu et al. 2021); the update is scaled by alpha / rank."""

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    train_head: bool = False


class Model(Strict):
    """The pretrained model. `lora: null` trains every weight.

    attention: over packed rows, flex_attention (`flex`, a GPU only) or segment by segment; `auto` is flex on a GPU.
    chunk_logits: logits alive at a time, positions times vocabulary; null is right for the device.
    """

    source: Located
    tokenizer: Located | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    chat_template: Annotated[str, AfterValidator(_located_template)] | None = None
    lora: Lora | None = None
    attention: Literal["auto", "segments", "flex"] = "auto"
    chunk_logits: Positive | None = None

    @property
    def task(self) -> str | None:
        """Name of the embedded task whose tiny model this is, or None for a real model."""
        return self.source.removeprefix(EMBEDDED) if self.source.startswith(EMBEDDED) else None


class Data(Strict):
    """Where pairs come from, how they are split and how long they may be. Limits of None mean all there are.

    row_tokens: the budget of one packed row, which is one micro-batch; a pair has to fit. None: 8192, or twice
    max_tokens where that is more, so that every pair does. The objective slime-released makes its own micro-batches.
    """

    train: Located
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    sft_fraction: Fraction = 0.34
    sft_examples: Positive | None = None
    pairs: Positive | None = None
    held_out_pairs: Positive = 1000
    max_tokens: Annotated[int, Field(ge=8)] = 2048
    max_prompt_tokens: Annotated[int, Field(ge=4)] | None = None
    row_tokens: Annotated[int, Field(ge=8)] | None = None
    strict: bool = False
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def task(self) -> str | None:
        """Name of the embedded task, or None for preference data of the user's."""
        return self.train.removeprefix(EMBEDDED) if self.train.startswith(EMBEDDED) else None

    @property
    def row_budget(self) -> int:
        """Tokens of one packed row."""
        return self.row_tokens or max(8192, 2 * self.max_tokens)


class Schedule(Strict):
    """One optimisation run: AdamW, a learning rate that warms up and falls, and how long it lasts.

    `updates` counts optimizer steps and wins over `epochs` where it is given.
    """

    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    epochs: Annotated[float, Field(gt=0)] = 1.0
    updates: Annotated[int, Field(ge=0)] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None


class Sft(Schedule):
    """Stage 1: supervised fine-tuning on the chosen completions of the SFT split.

    lora: its adapters, which are merged at its end; `same` as model.lora, or null to train every weight.
    """

    examples_per_update: Positive = 64
    seed: Annotated[int, Field(ge=0)] = 0
    lora: Literal["same"] | Lora | None = "same"


class Training(Schedule):
    """Stage 2: preference training from the SFT checkpoint. `evaluations` held-out measurements besides step 0."""

    pairs_per_update: Positive = 128
    gradient_checkpointing: bool = False
    evaluations: Annotated[int, Field(ge=1)] = 5


class Decoding(Strict):
    """How answers are drawn. One decoding configuration serves every cell of a table.

    temperature: 0 takes the likeliest token. temperatures: instead of it, for the categories that are named.
    """

    temperature: Temperature = 1.0
    temperatures: dict[str, Temperature] = {}
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 512
    batch: Positive = 64

    def temperature_of(self, category: str | None) -> float:
        """The temperature of answers to questions of one category; None is that of questions without any."""
        return self.temperature if category is None else self.temperatures.get(category, self.temperature)


class Sentinel(Strict):
    """Watches for collapse at every evaluation during training, by the parts of stability-v1 as they stand then.

    action: what an alarm does; `stop` ends the training there and measures the policy as it is, `none` watches nothing.
    tolerances: how many of its tolerances a part has to be beyond. prompts: selection prompts answered each time.
    judge: whether these answers are judged as well, which early stopping by the win rate needs; null is where that
    costs nothing, which is the exact judge.
    """

    action: Literal["warn", "stop", "none"] = "warn"
    tolerances: Annotated[float, Field(gt=0)] = 3.0
    prompts: Positive = 32
    judge: bool | None = None


class Evaluation(Strict):
    """Win rate against the SFT checkpoint's answers, and stability-v1.

    judge_first: selection prompts on which a trial of the search is judged first; on the others only where it can still
    be on the front. None judges all of them.
    questions: a file of Arena-Hard or MT-Bench, whose questions, all of them, are the report prompts instead of
    `prompts` ones from the data.
    """

    judge: Annotated[AnyJudge, BeforeValidator(judge_by_name)] = NoJudge()
    questions: Located | None = None
    prompts: Positive = 512
    selection_prompts: Positive = 256
    judge_first: Positive | None = None
    kl_prompts: Positive = 64
    decoding: Decoding = Decoding()


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

    name: str

    def build(self) -> Objective:
        """The objective itself. Raises ValueError with a sentence that starts with the field's name."""
        return OBJECTIVES[self.name](**{key: value for key, value in self if key != "name"})


OBJECTIVE_SETTINGS = {name: _objective_schema(name, objective) for name, objective in OBJECTIVES.items()}

if typing.TYPE_CHECKING:
    AnyObjective = ObjectiveSettings
else:
    AnyObjective = Annotated[typing.Union[tuple(OBJECTIVE_SETTINGS.values())], Field(discriminator="name")]  # noqa: UP007


class Settings(Strict):
    """All that decides what one trial computes but its seed. `sft: null` starts from the model as it is."""

    model: Model
    data: Data
    sft: Sft | None = None
    objective: AnyObjective
    training: Training
    sentinel: Sentinel = Sentinel()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _embedded_parts_agree(self) -> "Settings":
        if self.model.task and self.model.task != self.data.task:
            raise ValueError(
                f"model.source is {self.model.source!r}, a tiny model that knows only its own task's words, but "
                f"data.train is {self.data.train!r}. Give both the same embedded task, or a real model"
            )
        judge = self.evaluation.judge
        if isinstance(judge, Exact) and not (self.data.task or judge.scorer):
            raise ValueError(
                "evaluation.judge is exact, but this data has no rubric of its own. Name a scorer, "
                "judge: {name: exact, scorer: 'package.module:function'}, or use judge: none"
            )
        return self

    @property
    def judged_on_the_way(self) -> bool:
        """Whether the sentinel's answers are judged during training."""
        judge = self.evaluation.judge
        wanted = isinstance(judge, Exact) if self.sentinel.judge is None else self.sentinel.judge
        return wanted and self.sentinel.action != "none" and judge.name != "none"

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
        return f"exact:{self.data.task}" if judge.identity == "exact" else judge.identity
