"""The schema of `base.evaluation` and `base.sentinel`: how answers are drawn and judged."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from slime_ray.config.judge import NamedJudge, NoJudge, address, client_lack, variable
from slime_ray.config.strict import Located, Positive, Strict

Temperature = Annotated[float, Field(ge=0)]


class Decoding(Strict):
    """How answers are drawn. One decoding configuration serves every cell of a table."""

    temperature: Temperature = 1.0
    """0 takes the likeliest token."""
    temperatures: dict[str, Temperature] = {}
    """Instead of it, for the categories of `evaluation.questions` that are named."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Answers are drawn from the likeliest tokens that make up this share."""
    max_new_tokens: Positive = 512
    """Of an answer. One that gets there without an end counts as broken."""
    batch: Positive | None = None
    """Answers at a time; null is 256 on a GPU and 64 elsewhere. With a temperature above 0 another batch draws
    others."""
    engine: Literal["generate", "continuous"] = "generate"
    """How they are drawn here: batch by batch, or by transformers' continuous batching, whose random draws are
    others."""

    def batch_on(self, *, gpu: bool) -> int:
        """Answers at a time on a device."""
        return self.batch or (256 if gpu else 64)

    def temperature_of(self, category: str | None) -> float:
        """The temperature of answers to questions of one category; None is that of questions without any."""
        return self.temperature if category is None else self.temperatures.get(category, self.temperature)


class Sentinel(Strict):
    """Watches for collapse at every evaluation during training, by the parts of stability-v1 as they stand then."""

    action: Literal["warn", "stop", "none"] = "warn"
    """What an alarm does: `stop` ends the training there and measures the policy as it is, `none` watches nothing."""
    tolerances: Annotated[float, Field(gt=0)] = 3.0
    """How many of its tolerances a part has to be beyond."""
    prompts: Positive = 32
    """Selection prompts that are answered each time."""
    judge: bool | None = None
    """Whether these answers are judged as well, which early stopping by the win rate needs; null is where that costs
    nothing, which is the exact judge."""


class AnswerServer(Strict):
    """An OpenAI-compatible server of the SFT checkpoint. It loads each trial's adapter and gives the answers."""

    name: Literal["openai"] = "openai"
    model: str
    """What the server calls the SFT checkpoint."""
    base_url: Annotated[str, AfterValidator(address)] = "http://localhost:8000/v1"
    """Of the server."""
    server: Literal["vllm", "sglang"] = "vllm"
    """Whose calls load and unload adapters."""
    api_key_env: Annotated[str, AfterValidator(variable)] | None = None
    """Name of the environment variable that holds the key; null where none is asked for."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Of one request."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Of one set of answers, with everything that is tried again."""
    concurrency: Positive = 256
    """Requests at a time, of each trial."""

    @property
    def identity(self) -> list[str]:
        """What answers follow from, besides the policy and the decoding."""
        return [self.name, self.server, self.model]

    def lacks(self) -> str | None:
        """What this machine lacks to ask it, as a sentence with the way out."""
        return client_lack("evaluation.engine", self.name, self.api_key_env)


class Retention(Strict):
    """What the SFT checkpoint could do besides, and whether the policy still can."""

    prompts: Located
    """A file of questions that test it, in any form that `evaluation.questions` takes."""
    scorer: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:function` of the last user message and an answer, importable where trials run; it returns a
    number, higher is better."""


class Evaluation(Strict):
    """Win rate against the SFT checkpoint's answers, and stability-v1."""

    judge: NamedJudge = NoJudge()
    """Who compares answers. `none` and `exact` may stand by their name alone; a list of judges is a panel."""
    questions: Located | None = None
    """A file of Arena-Hard or MT-Bench, whose questions are the report prompts, instead of `prompts` ones from the
    data."""
    prompts: Positive = 512
    """Report prompts, which arms and confirmed winners answer."""
    selection_prompts: Positive = 256
    """Prompts that guide the search, none of them a report prompt."""
    judge_first: Positive | None = None
    """Selection prompts on which a search trial is judged first; null judges all of them. On the others only where it
    can still be on the front."""
    kl_prompts: Positive = 64
    """Prompts on whose answers the KL divergence to the SFT checkpoint is measured."""
    decoding: Decoding = Decoding()
    """How answers are drawn."""
    engine: AnswerServer | None = None
    """A server that draws the answers of baseline and policies, but not the sentinel's; null draws them where trials
    run."""
    retention: Retention | None = None
    """Prompts of their own on which the column `retention` is measured; null measures none."""

    def lacks(self) -> str | None:
        """What this machine lacks to judge and to ask the server, as a sentence with the way out."""
        return self.judge.lacks() or (self.engine.lacks() if self.engine else None)
