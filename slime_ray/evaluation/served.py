"""Answers of a server that has loaded the adapter of a policy: vLLM or SGLang, over the OpenAI-compatible API.

Prompts are sent as the token ids that our own chat template gives, so the server's template never matters. The server
is asked by the adapter's name, and a few of its log-probabilities are compared with the policy's own.
"""

import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from slime_ray.config.evaluation import AnswerServer, Decoding
from slime_ray.errors import RunError
from slime_ray.evaluation.generate import Answer, answer_of, seed_of
from slime_ray.evaluation.judges.asking import ask_all
from slime_ray.evaluation.judges.endpoint import Connection
from slime_ray.evaluation.judges.replies import Failure, printable
from slime_ray.world import World

logger = logging.getLogger(__name__)

COMPARED = 8
"""Prompts, the shortest ones, on which the server's first token is compared with the policy's."""
TOLERANCE = 0.1
"""Mean difference, in nats, of the first token's log-probability. Engines round as bfloat16 does: 0.008 was measured of
two ways to compute the same model in it."""
OPENING = 60.0
"""Seconds in which the server has to be there."""
UNLOADING = 10.0
"""Seconds that taking an adapter back may be tried for: the next trial loads another one all the same."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before another try, doubled from one to the next."""
FLAGS = {
    "vllm": "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    "sglang": "--enable-lora, --max-lora-rank and --lora-target-modules",
}
"""What servers need to load adapters while they run."""
NEEDED = "It has to see this path, and to allow adapters of this rank and these layers (--max-lora-rank)"
AGAIN = "Nothing that was trained is lost: give the same command again with --resume"


@dataclass(frozen=True)
class _Question:
    """One prompt to be continued."""

    prompt: Sequence[int]
    temperature: float
    seed: int


@dataclass(frozen=True)
class _Completion:
    """What the server sent. ids: None where it tells none. logp: of the first token, in nats."""

    ids: list[int] | None
    text: str
    finish: str
    logp: float | None


class Served:
    """A model of an answer server: its base, or an adapter, which is loaded for as long as a `with` lasts.

    Every rank of a process group makes the same calls; rank 0 asks. Whatever the server does not do raises RunError.
    """

    def __init__(self, server: AnswerServer, adapter: Path | None = None):
        """Take the server and the folder of the adapter, which the server has to see under the same path.

        Raises:
            InputError: A package or a key is missing.
        """
        self.server, self.adapter = server, adapter
        self.connection = Connection(server, setting="evaluation.engine")
        name = "slime-" + hashlib.sha256(str(adapter).encode()).hexdigest()[:16]
        # SGLang calls an adapter by the base's name as well.
        prefix = f"{server.model}:" if server.server == "sglang" else ""
        self.adapter_name, self.model = name, server.model if adapter is None else prefix + name

    def __enter__(self) -> Self:
        World.current().from_main(lambda: self._at_once(self._open))
        return self

    def __exit__(self, *_: object) -> None:
        if self.adapter is None or not World.current().main:
            return
        try:
            self._at_once(lambda: self._call("unload", time.monotonic() + UNLOADING))
        except RunError as error:
            logger.warning("An adapter stays loaded: %s", error)

    def answers(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        stop_tokens: Sequence[int],
        seed: int,
        categories: Sequence[str | None] | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Answer]:
        """Draw one answer for each prompt, in the order given; see `generate_answers`.

        Each prompt has a seed of its own, from `seed` and its place. progress: told of answers, instead of batches.
        """
        of = categories or [None] * len(prompts)
        questions = {
            # What every server takes for a seed.
            place: _Question(prompt, decoding.temperature_of(category), seed_of(seed, place) % 2**31)
            for place, (prompt, category) in enumerate(zip(prompts, of, strict=True))
        }
        sampling_params = {
            "max_tokens": decoding.max_new_tokens,
            "top_p": decoding.top_p,
            "stop_token_ids": list(stop_tokens),
        }
        completions = World.current().from_main(lambda: self._complete(questions, sampling_params, progress))
        return [
            answer_of(
                _ids(completion, tokenizer),
                tokenizer,
                set(stop_tokens),
                stopped=completion.finish == "stop",
            )
            for _, completion in sorted(completions.items())
        ]

    def check(self, policy: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> None:
        """Compare the server's log-probabilities of first tokens with the policy's own.

        Raises:
            RunError: They differ by more than rounding may cause: it is another model, or has not got the adapter.
        """
        shortest = dict(enumerate(sorted(prompts, key=len)[:COMPARED]))
        questions = {place: _Question(prompt, 0.0, 0) for place, prompt in shortest.items()}
        sampling_params = {"max_tokens": 1, "top_p": 1.0, "logprobs": 1}
        completions = World.current().from_main(
            lambda: self._complete(questions, sampling_params, lambda done, of: None)
        )
        differences, was_training = [], policy.training
        policy.eval()
        for place, prompt in shortest.items():
            ids, logp = _ids(completions[place], tokenizer), completions[place].logp
            with torch.no_grad():
                logits = policy.own_logits(torch.tensor([list(prompt)], device=policy.device))[0, -1]
            if len(ids) == 1 and logp is not None and ids[0] < len(logits):
                differences.append(abs(logp - float(logits.double().log_softmax(0)[ids[0]])))
        policy.train(was_training)
        if not differences:
            raise self._error("it tells no log-probabilities, so it cannot be told which model answers")
        # Ranks that round otherwise come to one decision.
        mean = World.current().broadcast(sum(differences) / len(differences))
        if not mean <= TOLERANCE:
            raise self._error(
                f"its log-probabilities of {len(differences)} first tokens differ by {mean:.3g} nats from this "
                f"policy's, where rounding explains {TOLERANCE:g}: {self.server.model} is not the SFT checkpoint of "
                "this run, or the adapter is not in use. Start the server with the checkpoint that the run has made"
            )

    def _open(self) -> None:
        """Look for the base, and load the adapter."""
        until = time.monotonic() + min(OPENING, self.server.deadline_seconds)
        reply = self._patiently(lambda: self.connection.send("/models", seconds=_seconds_left(until)), until)
        names = _models(reply)
        if self.server.model not in names:
            raise Failure(
                f"it serves {', '.join(names[:5]) or 'nothing'}, not {self.server.model}. Correct "
                "evaluation.engine.model, or start it with that name",
                "endpoint",
            )
        if self.adapter is not None:
            with suppress(Failure):
                # Left by an attempt that was killed.
                self._send("unload", time.monotonic() + UNLOADING)
            self._call("load", self._until())

    def _send(self, what: str, until: float) -> bytes:
        """Load or unload the adapter."""
        address, body = f"/{what}_lora_adapter", {"lora_name": self.adapter_name}
        if self.server.server == "sglang":
            # Not below /v1.
            address = self.server.base_url.rstrip("/").removesuffix("/v1") + address
        if what == "load":
            body["lora_path"] = str(self.adapter)
        return self.connection.send(address, body, seconds=_seconds_left(until))

    def _call(self, what: str, until: float) -> None:
        """Load or unload the adapter, tried again where that may help. Raises Failure with the way out."""
        try:
            reply = self._patiently(lambda: self._send(what, until), until)
        except Failure as failure:
            if failure.status == 404 and what == "load":
                failure.reason = f"it loads no adapters (404). Start it with {FLAGS[self.server.server]}"
            elif failure.kind == "request" and "already" in failure.reason and what == "load":
                # Asked for by another request of ours, or before an answer was lost.
                return
            elif failure.kind == "request":
                failure.reason = f"it did not {what} the adapter {self.adapter}: {failure.reason}. {NEEDED}"
            raise
        if b'"success":false' in reply.replace(b" ", b""):
            reason = printable(reply.decode("utf-8", "replace"))[:200]
            raise Failure(f"it did not {what} the adapter {self.adapter}: {reason}. {NEEDED}", "request")

    def _complete(
        self, questions: dict[int, _Question], sampling_params: dict[str, Any], progress: Callable[[int, int], None]
    ) -> dict[int, _Completion]:
        """Ask for all completions. Raises RunError where one has no answer by the deadline."""
        until = self._until()

        def complete(question: _Question, stop: threading.Event) -> _Completion:
            body = {
                "model": self.model,
                "prompt": list(question.prompt),
                "n": 1,
                "temperature": question.temperature,
                "seed": question.seed,
                # What is left out a server takes from the model's own configuration, as it came with its weights.
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "ignore_eos": True,
                "skip_special_tokens": False,
                "return_token_ids": True,
                **sampling_params,
            }

            def send() -> _Completion:
                try:
                    reply = self.connection.send("/completions", body, seconds=_seconds_left(until))
                except Failure as failure:
                    if failure.status == 404 and self.adapter is not None:
                        # It has been started anew, or another replica answers.
                        self._call("load", until)
                        raise Failure(f"it does not keep the adapter: {failure.reason}", "passing") from None
                    raise
                return read_completion(reply, model=self.model, max_tokens=sampling_params["max_tokens"])

            return self._patiently(send, until, stop)

        if not questions:
            return {}
        results, failure = ask_all(
            self.connection, questions, complete, concurrency=self.server.concurrency, progress=progress
        )
        if failure is not None:
            raise self._error(failure.reason)
        return results

    def _patiently(self, send: Callable[[], Any], until: float, stop: threading.Event | None = None) -> Any:
        """What `send` gives, tried again until the deadline where that may help. Raises Failure."""
        pause = FIRST_WAIT
        while True:
            if stop and stop.is_set():
                raise Failure("the asking was stopped", "passing")
            try:
                return send()
            except Failure as failure:
                wait = pause * random.uniform(0.5, 1.0) if failure.wait is None else failure.wait
                if failure.kind != "passing" or (stop and stop.is_set()):
                    raise
                if wait >= until - time.monotonic():
                    limit = f"evaluation.engine.deadline_seconds is {self.server.deadline_seconds:g}"
                    failure.reason = f"{failure.reason}, again and again ({limit})"
                    raise
            if stop:
                stop.wait(wait)
            else:
                time.sleep(wait)
            pause = min(2 * pause, LONGEST_WAIT)

    def _at_once(self, work: Callable[[], None]) -> None:
        """Do what takes a connection of its own. Raises RunError."""
        try:
            with self.connection:
                work()
        except Failure as failure:
            raise self._error(failure.reason) from None

    def _until(self) -> float:
        return time.monotonic() + self.server.deadline_seconds

    def _error(self, reason: str) -> RunError:
        return RunError(
            f"The answer server {self.server.base_url} was given up: {self.connection.masked(reason).rstrip('.')}. "
            f"{AGAIN}."
        )


@contextmanager
def answering(
    server: AnswerServer | None,
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: Path | None = None,
) -> Iterator[Any]:
    """Yield what gives a policy's answers: the policy itself, or the server, which has its adapter and was compared.

    Args:
        server: None draws answers here.
        policy: Without an adapter, the base that the server has.
        tokenizer: Of the policy.
        prompts: To compare the server on, as token ids.
        adapter: Folder of the policy's adapter.

    Raises:
        RunError: The server does not give this policy's answers.
    """
    if server is None:
        yield policy
        return
    with Served(server, adapter) as served:
        served.check(policy, tokenizer, prompts)
        yield served


def read_completion(body: bytes, *, model: str, max_tokens: int) -> _Completion:
    """Read a completion of one prompt. Nothing in it is trusted to have the type that it should have.

    Args:
        body: As it was sent.
        model: That was asked.
        max_tokens: That it was allowed.

    Raises:
        Failure: It is none, of another model, or longer.
    """
    try:
        reply = json.loads(body.decode("utf-8", "replace"))
        choice = reply["choices"][0]
        text, finish, ids = choice["text"], choice["finish_reason"], choice.get("token_ids")
        logps = (choice.get("logprobs") or {}).get("token_logprobs") or [None]
        name, logp = reply["model"], logps[0]
    except (ValueError, RecursionError, AttributeError, IndexError, KeyError, TypeError):
        raise Failure("an answer that is no completion", "passing") from None
    if name != model:
        raise Failure(f"it answers with the model {printable(str(name))[:80]} in place of {model}", "endpoint")
    sound = isinstance(text, str) and (logp is None or (isinstance(logp, (int, float)) and not isinstance(logp, bool)))
    if ids is not None:
        sound = sound and isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
    if not sound or finish not in ("stop", "length"):
        raise Failure(f"an answer that is no whole completion (finish_reason {str(finish)[:20]!r})", "passing")
    # Room for the token that ends it.
    if ids is not None and len(ids) > max_tokens + 1:
        raise Failure(f"an answer of {len(ids)} tokens, where max_tokens is {max_tokens}", "endpoint")
    return _Completion(ids, printable(text), finish, logp)


def _ids(completion: _Completion, tokenizer: Any) -> list[int]:
    """The tokens of an answer; of a server that does not tell them, those that its text has."""
    if completion.ids is not None:
        return completion.ids
    ids: list[int] = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    return ids


def _models(body: bytes) -> list[str]:
    try:
        return [printable(str(model["id"]))[:200] for model in json.loads(body)["data"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Failure("its list of models is none", "endpoint") from None


def _seconds_left(until: float) -> float:
    return max(0.05, until - time.monotonic())
