"""One request to an OpenAI-compatible endpoint, and what may become of it."""

import os
from typing import Any, Literal

from slime_ray.errors import InputError
from slime_ray.evaluation.verdict_cache import Reply
from slime_ray.judge_settings import Llm

PASSING = (408, 409, 425, 429)
"""Refusals that may be over when one asks again; so may all errors of the server."""


class Failure(Exception):
    """A request without a judgment. reason: a few words, equal for failures of a kind.

    kind: `passing` may work when it is tried again, `request` will not, `endpoint` no request will. wait: seconds after
    which the endpoint wants to be asked again. paid: whether it may have been paid for all the same.
    """

    def __init__(
        self,
        reason: str,
        kind: Literal["passing", "request", "endpoint"],
        *,
        wait: float | None = None,
        paid: bool = False,
    ):
        super().__init__(reason)
        self.reason, self.kind, self.wait, self.paid = reason, kind, wait, paid


class Endpoint:
    """An endpoint for chat completions, asked with the official client. Threads may share it."""

    def __init__(self, judge: Llm):
        """Raises InputError where the package or the key is missing."""
        if lack := judge.lacks():
            raise InputError(lack)
        import openai

        self.openai, self.judge = openai, judge
        # An endpoint that wants no key gets one all the same, or the client would look for another one.
        self.key = os.environ[judge.api_key_env] if judge.api_key_env else "none"
        # Tried again, and counted, by whoever asks.
        self.client = openai.OpenAI(
            api_key=self.key, base_url=judge.base_url, timeout=judge.timeout_seconds, max_retries=0
        )
        self.limit_name = "max_tokens"

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The judgment. Raises Failure."""
        api = self.openai
        sent_as = self.limit_name
        decoding: dict[str, Any] = {sent_as: self.judge.max_tokens}
        if self.judge.temperature is not None:
            decoding["temperature"] = self.judge.temperature
        try:
            given: Any = self.client.chat.completions.create(
                model=self.judge.model,
                messages=messages,  # type: ignore[arg-type]
                **decoding,
            )
        except api.APIConnectionError as error:
            # Once a connection stands, what was asked may be answered, and paid for, without our hearing of it.
            cause = error.__cause__ or error
            late = isinstance(error, api.APITimeoutError)
            reason = (
                f"no answer within {self.judge.timeout_seconds:g} s" if late else f"no connection: {self._said(cause)}"
            )
            raise Failure(reason, "passing", paid="Connect" not in type(cause).__name__) from None
        except api.APIStatusError as error:
            if error.status_code == 400 and sent_as == "max_tokens" and "max_completion_tokens" in str(error):
                # What OpenAI's reasoning models call it.
                self.limit_name = "max_completion_tokens"
                return self.ask(messages)
            raise self._failure(error) from None
        except (api.OpenAIError, ValueError) as error:
            raise Failure(f"an answer that is no JSON ({type(error).__name__})", "passing", paid=True) from None
        return _reply(given)

    def _failure(self, error: Any) -> Failure:
        status, judge = error.status_code, self.judge
        if status in (401, 403):
            # What is said here may repeat the key.
            held = f"the key in {judge.api_key_env}" if judge.api_key_env else "requests without a key"
            way_out = "Put a valid one there" if judge.api_key_env else "Name its variable in api_key_env"
            return Failure(f"{judge.base_url} refuses {held} ({status}). {way_out}", "endpoint")
        if status == 404:
            return Failure(
                f"{judge.base_url} does not know the model {judge.model}, or is no such endpoint: {self._said(error)}. "
                "Correct evaluation.judge.model or base_url",
                "endpoint",
            )
        if status in PASSING or status >= 500:
            name = "rate limit" if status == 429 else "error of the server"
            return Failure(f"{name} ({status})", "passing", wait=_seconds(error.response.headers.get("retry-after")))
        return Failure(f"refused ({status}): {self._said(error)}", "request")

    def _said(self, error: BaseException) -> str:
        lines = str(error).replace(self.key, "***").strip().splitlines()
        return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _reply(given: Any) -> Reply:
    try:
        text, usage = given.choices[0].message.content, given.usage
        return Reply(
            text=text or "",
            model=given.model,
            input_tokens=usage and usage.prompt_tokens,
            output_tokens=usage and usage.completion_tokens,
        )
    except (AttributeError, IndexError, TypeError):
        raise Failure("an answer that is no chat completion", "passing", paid=True) from None


def _seconds(value: str | None) -> float | None:
    """A Retry-After in seconds; one that is a date is as good as none."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
