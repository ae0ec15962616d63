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
    """How answers are drawn, the same for every trial."""

    temperature: Temperature = 1.0
    """Sampling temperature; 0 takes the likeliest token."""
    temperatures: dict[str, Temperature] = {}
    """Temperatures by category of `evaluation.questions`."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of the likeliest tokens that answers are drawn from."""
    max_new_tokens: Positive = 512
    """Most tokens of an answer; one without an end counts as broken."""
    batch: Positive | None = None
    """Answers at a time; null is 256 on a GPU and 64 elsewhere. It changes random draws."""
    engine: Literal["generate", "continuous"] = "generate"
    """transformers' `generate`, or its `continuous` batching, whose random draws differ."""

    def batch_on(self, *, gpu: bool) -> int:
        """Answers at a time on a device."""
        return self.batch or (256 if gpu else 64)

    def temperature_of(self, category: str | None) -> float:
        """The temperature of answers to questions of one category; None is that of questions without any."""
        return self.temperature if category is None else self.temperatures.get(category, self.temperature)


class Sentinel(Strict):
    """Watches the parts of stability-v1 during training."""

    action: Literal["warn", "stop", "none"] = "warn"
    """What an alarm does: `stop` ends training and measures the policy, `none` watches nothing."""
    tolerances: Annotated[float, Field(gt=0)] = 3.0
    """How many tolerances off a part has to be."""
    prompts: Positive = 32
    """Selection prompts answered at each evaluation."""
    judge: bool | None = None
    """Whether these answers are judged; null judges them with the exact judge alone."""


class AnswerServer(Strict):
    """An OpenAI-compatible server of the SFT checkpoint, which loads trials' adapters."""

    name: Literal["openai"] = "openai"
    model: str
    """The server's name of the SFT checkpoint."""
    base_url: Annotated[str, AfterValidator(address)] = "http://localhost:8000/v1"
    """Address of the server."""
    server: Literal["vllm", "sglang"] = "vllm"
    """Whose calls load adapters."""
    api_key_env: Annotated[str, AfterValidator(variable)] | None = None
    """Environment variable that holds the key; null is none."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest request."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Longest set of answers, with retries."""
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
    """Whether the policy keeps what the SFT checkpoint could do."""

    prompts: Located
    """A file of questions, as of `evaluation.questions`."""
    scorer: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:function` of last user message and answer, which returns a number, higher is better."""


class Evaluation(Strict):
    """Win rate against the SFT checkpoint's answers, and stability-v1."""

    judge: NamedJudge = NoJudge()
    """Who compares answers: `none`, `exact`, a mapping, or a list of judges, which is a panel."""
    questions: Located | None = None
    """A file of Arena-Hard or MT-Bench questions, in place of report prompts from the data."""
    prompts: Positive = 512
    """Report prompts, which arms and confirmed winners answer."""
    selection_prompts: Positive = 256
    """Prompts that guide the search; none is a report prompt."""
    judge_first: Positive | None = None
    """Selection prompts judged first; the rest only where a trial can still be on the front. Null judges all."""
    kl_prompts: Positive = 64
    """Prompts on whose answers the KL divergence to the SFT checkpoint is measured."""
    decoding: Decoding = Decoding()
    """How answers are drawn."""
    engine: AnswerServer | None = None
    """A server that draws the answers, but not the sentinel's; null draws them where trials run."""
    retention: Retention | None = None
    """Prompts of the column `retention`; null measures none."""

    def lacks(self) -> str | None:
        """What this machine lacks to judge and to ask the server, as a sentence with the way out."""
        return self.judge.lacks() or (self.engine.lacks() if self.engine else None)
