"""Which judge compares answers, and how it is asked: the schema of `evaluation.judge`. Nothing that judges is imported.

A judge has settings that its verdicts follow from, which its identity tells, and others (`RUNTIME_SETTINGS`) that say
where and how it runs: those may change when a run is resumed.
"""

import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from slime_ray.config.strict import Located, Positive, Strict, fingerprint, located
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError, near

PROMPT_VERSION = 2
"""Raised when the way in which answers are shown to a language model, or its judgment is read, changes, so that older
verdicts are not reused."""
RUNTIME_SETTINGS = {
    "api_key_env",
    "asks",
    "base_url",
    "batch",
    "budget",
    "concurrency",
    "deadline_seconds",
    "mode",
    "on_failure",
    "poll_seconds",
    "prices",
    "retries",
    "timeout_seconds",
    "wait_seconds",
}
"""Settings of a judge or an answer server that its verdicts or answers do not follow from."""
PLACEHOLDERS = re.compile(r"\{(question|answer|answer_a|answer_b)\}")
"""Where a template's user part has what is judged."""
RESERVED_FIELDS = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "evaluation.judge.max_tokens"),
    "model": "evaluation.judge.model",
    "temperature": "evaluation.judge.temperature",
    **dict.fromkeys(("messages", "n", "stream", "stream_options"), "fixed by the judge"),
}
"""Fields of a request that are not the user's to set, and what sets them."""
_WRAPPERS = ("extra_body", "extra_headers", "extra_query")
"""Arguments of OpenAI's client, which are no fields of a request."""
_SECRET = re.compile(r'(?i)(api|access|private|auth)[_-]?key|authorization|bearer|secret|passw|credential|"token"|"sk-')
"""In the JSON of fields, what names a secret or is one."""


class Repeats(Strict):
    """How often the same comparison is judged."""

    times: Positive = 1
    """Judgments of each comparison."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the prompts that are judged more than once."""


def _repeats(value: Any) -> Any:
    """A number alone is that of times."""
    return {"times": value} if isinstance(value, int) else value


class JudgeSettings(Strict):
    """What the settings of all judges have."""

    name: str

    @property
    def identity(self) -> str:
        """The judge with all that each of its verdicts follows from, as the results and the cache name it."""
        return self.name

    @property
    def repetition(self) -> str:
        """How often it judges the same comparison, behind its identity; nothing where that is once."""
        return ""

    @property
    def members(self) -> "tuple[JudgeSettings, ...]":
        """The judges that compare answers: those of a panel, or itself."""
        return (self,)

    @property
    def endpoints(self) -> "tuple[Llm, ...]":
        """Those of its members that ask a language model."""
        return tuple(member for member in self.members if isinstance(member, Llm))

    def lacks(self) -> str | None:
        """What this machine lacks for it, as a sentence with the way out."""
        return None


class NoJudge(JudgeSettings):
    """Answers are not judged: there is no win rate."""

    name: Literal["none"] = "none"


class Exact(JudgeSettings):
    """Scores answers with the embedded task's rubric or a function of yours."""

    name: Literal["exact"] = "exact"
    scorer: str | None = None
    """`package.module:function` of last user message and answer; null is the task's rubric."""

    @property
    def identity(self) -> str:
        return f"exact:{self.scorer}" if self.scorer else self.name


class RewardModel(JudgeSettings):
    """Scores answers with a sequence classifier of one label."""

    name: Literal["reward_model"] = "reward_model"
    model: Located
    """A folder with safetensors, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    tie_band: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference of scores that is a tie."""
    batch: Positive = 16
    """Conversations at a time."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Most tokens; longer conversations lose their start. Null is the model's limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of its weights."""
    trust_remote_code: bool = False
    """Whether the model's own code may run. Only for repositories that you trust."""

    @property
    def scoring(self) -> str:
        """What its scores follow from, the weights themselves aside."""
        return fingerprint([self.model, self.revision, self.max_tokens, self.dtype])

    @property
    def identity(self) -> str:
        name = Path(self.model).name if Path(self.model).is_absolute() else self.model
        return f"reward_model:{name}#{fingerprint([self.revision, self.max_tokens, self.dtype, self.tie_band])[:8]}"


class Template(Strict):
    """What a language model is asked."""

    name: str
    """Part of the judge's name."""
    system: str = ""
    """The system message."""
    user: str
    """Holds {question}, and {answer_a} with {answer_b} for a comparison that ends in [[A>B]], or {answer} for a rating
    that ends in [[1]] to [[10]]."""

    @model_validator(mode="after")
    def _check_placeholders(self) -> "Template":
        places = set(PLACEHOLDERS.findall(self.user))
        if places not in ({"question", "answer"}, {"question", "answer_a", "answer_b"}):
            raise ValueError(
                f"user holds {', '.join(f'{{{place}}}' for place in sorted(places)) or 'no place'}. It needs "
                "{question}, and either {answer}, to rate one answer, or {answer_a} and {answer_b}, to compare two"
            )
        return self

    @property
    def pairwise(self) -> bool:
        """Whether it compares two answers, rather than rate one."""
        return "{answer_a}" in self.user


def shipped_templates() -> tuple[str, ...]:
    """Names of the templates in slime_ray/presets/judges."""
    folder = resources.files("slime_ray.presets") / "judges"
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def _read_template(value: Any) -> Any:
    """The content of a template that is given by name or path, so that trials need no file."""
    if not isinstance(value, str):
        return value
    with resources.as_file(resources.files("slime_ray.presets") / "judges") as folder:
        path = folder / f"{value}.yaml" if value in shipped_templates() else Path(located(value))
        if path.suffix not in (".yaml", ".yml"):
            raise ValueError(
                f"{value!r} is neither a .yaml file nor a shipped template{near(value, shipped_templates())}"
            )
        data = load_yaml(path).data
    unknown_keys = [key for key, text in data.items() if key not in ("system", "user") or not isinstance(text, str)]
    if unknown_keys or "user" not in data:
        raise InputError(
            f"{path}: a judge's template has the keys `user` and `system`, both texts"
            + (f", not {unknown_keys[0]!r}." if unknown_keys else "; `user` is missing.")
        )
    return {"name": path.stem, **data}


class JudgeBudget(Strict):
    """What a judge may spend in a run."""

    requests: Positive | None = None
    """Judgments."""
    tokens: Positive | None = None
    """Tokens of questions and judgments."""
    cost: Annotated[float, Field(gt=0)] | None = None
    """In the currency of the prices."""


class Prices(Strict):
    """Cost of a million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Price of tokens sent."""
    output: Annotated[float, Field(ge=0)]
    """Price of tokens received."""


def variable(value: str) -> str:
    """Refuse what is no name of an environment variable."""
    # What was given may be the key itself, so it is not repeated.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("is not the name of an environment variable. Give the name of the one that holds the key")
    return value


def address(value: str) -> str:
    """Refuse what is no address of a server, or holds secrets."""
    parts = urlsplit(value)
    # A port that is none is told by reading it.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"is not an address such as {Llm.model_fields['base_url'].default}")
    if parts.username or parts.password or parts.query:
        raise ValueError("holds more than an address. Leave user, password and query out; the key has api_key_env")
    return value


def request_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse fields of a request that are ours, and secrets."""
    for name in fields:
        if name in RESERVED_FIELDS:
            raise ValueError(f"holds {name}, which is {RESERVED_FIELDS[name]}")
        if name in _WRAPPERS:
            raise ValueError(f"holds {name}, an argument of a client. Write the fields of the body themselves")
    # What was given may be the key itself, so it is not repeated.
    if _SECRET.search(json.dumps(fields)):
        raise ValueError("holds what looks like a secret. The key has api_key_env, and nothing else is sent as one")
    return fields


def client_lack(setting: str, name: str, api_key_env: str | None) -> str | None:
    """What this machine lacks to ask an endpoint, as a sentence; None where it lacks nothing."""
    if find_spec("openai") is None:
        return f"{setting} is {name}, which needs the package openai: pip install 'slime-ray[llm]'."
    if api_key_env and not os.environ.get(api_key_env):
        return (
            f"{setting}: the environment variable {api_key_env} holds no key. Set it wherever trials run, or name "
            f"another one with {setting}.api_key_env (null for an endpoint that wants no key)."
        )
    return None


class Llm(JudgeSettings):
    """Asks a language model at an OpenAI-compatible endpoint."""

    name: Literal["llm"] = "llm"
    model: str
    """The endpoint's name of the model."""
    template: Annotated[Template, BeforeValidator(_read_template, json_schema_input_type=Template | str)]
    """`arena-hard` (compares), `mt-bench-single` (rates) or a .yaml file."""
    base_url: Annotated[str, AfterValidator(address)] = "https://api.openai.com/v1"
    """Address of the endpoint."""
    api_key_env: Annotated[str, AfterValidator(variable)] | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null is none."""
    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    """Sampling temperature; null leaves it out."""
    max_tokens: Positive = 2048
    """Most tokens of a judgment."""
    request: Annotated[dict[str, Any], AfterValidator(request_fields)] = {}
    """Further fields of each request, such as {reasoning_effort: low}."""
    repeats: Annotated[Repeats, BeforeValidator(_repeats, json_schema_input_type=Repeats | int)] = Repeats()
    """How often it judges the same: a number, or {times, share}."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest request."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Retries after a rate limit, time-out, server error or lost connection."""
    asks: Positive = 3
    """How often a judgment without a valid verdict is asked for."""
    concurrency: Positive = 16
    """Requests at a time."""
    mode: Literal["live", "batch"] = "live"
    """`batch` sends an evaluation as one batch of OpenAI's batch interface; search trials ask live."""
    poll_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Time between looks at a batch."""
    wait_seconds: Annotated[float, Field(ge=0)] = 90_000.0
    """Wait for a batch before the trial pauses."""
    budget: JudgeBudget = JudgeBudget()
    """What it may spend."""
    prices: Prices | None = None
    """Its prices, for its cost."""
    on_failure: Literal["stop", "continue"] = "stop"
    """When retries or budget are spent: `stop` the trial, which can be resumed, or `continue` without the verdicts."""

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> "Llm":
        if self.budget.cost is not None and self.prices is None:
            raise ValueError("budget.cost needs prices: {input, output}, per million tokens")
        if self.mode == "batch" and (self.budget.tokens or self.budget.cost):
            raise ValueError("mode: batch tells what tokens it took only in the end. Use budget.requests")
        return self

    @property
    def identity(self) -> str:
        """Names model and template, with a hash of the template's content and the decoding."""
        template = self.template
        parts = [PROMPT_VERSION, self.model, template.system, template.user, self.temperature, self.max_tokens]
        parts += [self.request] if self.request else []
        return f"llm:{self.model}:{template.name}#{fingerprint(parts)[:8]}"

    @property
    def requests_an_answer(self) -> float:
        """Requests for each of a policy's answers, on average: both orders of a comparison or one rating, repeated."""
        return (2 if self.template.pairwise else 1) * (1 + (self.repeats.times - 1) * self.repeats.share)

    @property
    def repetition(self) -> str:
        if self.repeats.times == 1:
            return ""
        return f" x{self.repeats.times}" + (f" on {self.repeats.share:g}" if self.repeats.share < 1 else "")

    def lacks(self) -> str | None:
        return client_lack("evaluation.judge", self.name, self.api_key_env)


def judge_by_name(value: Any) -> Any:
    """`none` and `exact` need no more than their name, and a list is a panel."""
    if isinstance(value, list):
        return {"name": "panel", "judges": value}
    return {"name": value} if isinstance(value, str) else value


Member = Annotated[Annotated[Exact | RewardModel | Llm, Field(discriminator="name")], BeforeValidator(judge_by_name)]


class PanelSettings(JudgeSettings):
    """Several judges of every answer; the outcome is the mean of theirs."""

    name: Literal["panel"] = "panel"
    judges: Annotated[list[Member], Field(min_length=2)]
    """Two judges or more; `evaluation.judge` may be this list itself."""

    @model_validator(mode="after")
    def _refuse_duplicates(self) -> "PanelSettings":
        names = [judge.identity for judge in self.judges]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"judges has {duplicates[0]} twice. Leave one out, or give it `repeats`")
        return self

    @property
    def members(self) -> tuple[JudgeSettings, ...]:
        return tuple(self.judges)

    def lacks(self) -> str | None:
        return next((lack for judge in self.judges if (lack := judge.lacks())), None)


Judge = NoJudge | Exact | RewardModel | Llm | PanelSettings
JUDGE_SETTINGS: dict[str, type[JudgeSettings]] = {
    kind.model_fields["name"].default: kind for kind in (NoJudge, Exact, RewardModel, Llm, PanelSettings)
}
AnyJudge = Annotated[Judge, Field(discriminator="name")]
NamedJudge = Annotated[
    AnyJudge, BeforeValidator(judge_by_name, json_schema_input_type=AnyJudge | list[Member] | Literal["none", "exact"])
]


def outcome_settings(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain values without those of judge and server that change no outcome."""
    evaluation = base.get("evaluation")
    if not isinstance(evaluation, Mapping):
        return dict(base)
    parts = {part: _outcome_part(evaluation[part]) for part in ("judge", "engine") if part in evaluation}
    return {**base, "evaluation": {**evaluation, **parts}}


def _outcome_part(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_outcome_part(judge) for judge in settings]
    if not isinstance(settings, Mapping):
        return settings
    return {
        key: _outcome_part(value) if key == "judges" else value
        for key, value in settings.items()
        if key not in RUNTIME_SETTINGS
    }
