"""Many judgments asked for at a time: not those that are known, again where that helps, and within the budget.

Every judgment is kept when it arrives, so whatever ends the asking, the same command given again asks for the rest.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from slime_ray.errors import RunError
from slime_ray.evaluation.judges.base import Progress, Summary
from slime_ray.evaluation.judges.endpoint import Failure
from slime_ray.evaluation.verdict_cache import BudgetSpent, Reply, Verdicts
from slime_ray.judge_settings import Llm

LONGEST_WAIT = 120.0
"""Seconds. An endpoint that wants to be left alone for longer has failed."""
HEARTBEAT = 5.0
"""Seconds after which progress is told, also where there is none: silence counts as hanging."""
Chat = list[dict[str, str]]


class Asked(Protocol):
    """What judgments are asked of: an Endpoint."""

    def ask(self, messages: Chat) -> Reply: ...


@dataclass(frozen=True)
class Question:
    """One verdict to be asked for. key: names it in the cache. chat: the messages of the nth time it is asked for.
    read: the verdict in a judgment as text, None if it has none."""

    key: str
    chat: Callable[[int], Chat]
    read: Callable[[str], str | None]


@dataclass(frozen=True)
class Missing:
    """Why there is no verdict."""

    reason: str


INVALID = Missing("no valid verdict")
STOPPED = Missing("the judge was stopped")


class Asker:
    """Asks for verdicts. endpoint: None answers from the cache alone. first_wait: seconds, doubled from one retry to
    the next; each wait is cut by up to a half at random, so that requests do not come back all at once."""

    def __init__(
        self,
        judge: Llm,
        *,
        verdicts: Verdicts,
        endpoint: Asked | None,
        progress: Progress = lambda done, of: None,
        first_wait: float = 1.0,
    ):
        self.judge, self.verdicts, self.endpoint = judge, verdicts, endpoint
        self.progress, self.first_wait = progress, first_wait
        self.chance = random.Random()

    def ask(self, questions: Sequence[Question]) -> tuple[list[str | None], Summary]:
        """A verdict, as text, or None for each question, and what it took. Equal questions are asked once.

        Raises RunError by the policy that the settings name, where the endpoint refuses the key, and where the cache
        alone has to answer and does not know everything.
        """
        known = self.verdicts.find(sorted({question.key for question in questions}))
        left = {question.key: question for question in questions if question.key not in known}
        if self.endpoint is None and left:
            raise RunError(
                f"{len(left)} of {len(left) + len(known)} verdicts of {self.judge.identity} are not in "
                f"{self.verdicts.folder}, and offline nothing is asked for. Judge online first."
            )
        found, models = self._all(list(left.values())) if left else ({}, set())
        reasons = Counter(one.reason for one in found.values() if isinstance(one, Missing) and one != INVALID)
        values = known | {key: one for key, one in found.items() if isinstance(one, str)}
        spent = self.verdicts.spent(self.judge.identity)
        summary = Summary(
            new=len(values) - len(known),
            cached=len(known),
            invalid=sum(one == INVALID for one in found.values()),
            missing=dict(sorted(reasons.items())),
            requests=spent.requests,
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            cost=spent.cost(self.judge.prices),
            models=tuple(sorted(models)),
        )
        return [values.get(question.key) for question in questions], summary

    def _all(self, questions: Sequence[Question]) -> tuple[dict[str, "str | Missing"], set[str]]:
        found: dict[str, str | Missing] = {}
        models: set[str] = set()
        stop = threading.Event()
        failed: Failure | None = None
        with ThreadPoolExecutor(min(self.judge.concurrency, len(questions))) as pool:
            waiting: dict[Future[str | Missing], Question] = {
                pool.submit(self._one, question, stop, models): question for question in questions
            }
            try:
                while waiting:
                    done, _ = wait(waiting, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
                    for future in done:
                        found[waiting.pop(future).key] = future.result()
                    self.progress(len(found), len(questions))
            except Failure as failure:
                failed = failure
            finally:
                # What is on its way arrives, and is kept; nothing else is sent.
                stop.set()
                pool.shutdown(cancel_futures=True)
        if failed is not None:
            raise self._stopped(failed.reason)
        return found, models

    def _one(self, question: Question, stop: threading.Event, models: set[str]) -> str | Missing:
        """Raises Failure, so that nothing else is sent, where no request would do better or the policy says so."""
        try:
            found = self._try(question, stop, models)
            if isinstance(found, Missing) and found not in (INVALID, STOPPED) and self.judge.on_failure == "stop":
                raise Failure(found.reason, "endpoint")
        except BaseException:
            stop.set()
            raise
        return found

    def _try(self, question: Question, stop: threading.Event, models: set[str]) -> str | Missing:
        assert self.endpoint is not None
        for time in range(self.judge.asks):
            for retry in range(self.judge.retries + 1):
                if stop.is_set():
                    return STOPPED
                try:
                    request = self.verdicts.begin(
                        self.judge.identity, question.key, budget=self.judge.budget, prices=self.judge.prices
                    )
                    reply = self.endpoint.ask(question.chat(time))
                except BudgetSpent as spent:
                    return Missing(str(spent))
                except Failure as failure:
                    if not failure.paid:
                        self.verdicts.abandon(request)
                    if failure.kind == "endpoint":
                        raise
                    pause = self._pause(retry, failure.wait)
                    if failure.kind == "request" or retry == self.judge.retries or pause > LONGEST_WAIT:
                        return Missing(failure.reason)
                    stop.wait(pause)
                    continue
                value = self.verdicts.finish(request, reply, question.read(reply.text))
                models |= {reply.model} if reply.model else set()
                self._check_usage(reply)
                if value is not None:
                    return value
                break
        return INVALID

    def _pause(self, retry: int, wanted: float | None) -> float:
        own = min(LONGEST_WAIT, self.first_wait * 2.0**retry) * self.chance.uniform(0.5, 1.0)
        return own if wanted is None else wanted

    def _check_usage(self, reply: Reply) -> None:
        budget = self.judge.budget
        if (budget.tokens or budget.cost) and (reply.input_tokens is None or reply.output_tokens is None):
            raise Failure(
                f"{self.judge.base_url} does not say how many tokens a judgment took, so budget.tokens and budget.cost "
                "cannot be kept. Use budget.requests",
                "endpoint",
            )

    def _stopped(self, reason: str) -> RunError:
        spent = self.verdicts.spent(self.judge.identity)
        return RunError(
            f"The judge {self.judge.identity} stopped: {reason.rstrip('.')}. What it said in {spent.requests} requests "
            f"of this run is kept in {self.verdicts.folder}, so giving the same command again, with --resume, pays "
            "for nothing twice."
        )
