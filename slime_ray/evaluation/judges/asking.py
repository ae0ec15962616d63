"""Many judgments asked for at a time: not those that are known, again where that helps, and within the budget.

Every judgment is kept when it arrives, so whatever ends the asking, the same command given again asks for the rest.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from slime_ray.config.judge import Llm
from slime_ray.errors import RunError
from slime_ray.evaluation.judges.base import Progress, Summary
from slime_ray.evaluation.judges.endpoint import Connection, Endpoint
from slime_ray.evaluation.judges.replies import CUT_OFF, Failure
from slime_ray.evaluation.verdict_cache import BudgetSpent, Reply, Verdicts

FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0
"""Seconds before a retry, doubled from one to the next. Whoever wants to be left alone for longer has failed."""
HEARTBEAT = 2.0
"""Seconds after which progress is told, also where there is none: silence counts as hanging, and an order to leave
comes as the answer."""
GRACE = 2.0
"""Seconds in which, after an interrupt, judgments that are on their way may still arrive."""
Chat = list[dict[str, str]]
Key = TypeVar("Key", bound=Hashable)
Job = TypeVar("Job")
Result = TypeVar("Result")


def ask_all(
    connection: Connection,
    jobs: Mapping[Key, Job],
    do_job: Callable[[Job, threading.Event], Result],
    *,
    concurrency: int,
    progress: Progress,
) -> tuple[dict[Key, Result], Failure | None]:
    """Do many jobs at a time over one connection.

    Args:
        connection: Opened here, and closed in the end.
        jobs: By key, at least one.
        do_job: Does a job; it looks at the event, which says that nothing else is to be sent.
        concurrency: Jobs at a time.
        progress: Told how many are done, at least every HEARTBEAT.

    Returns:
        The results by key, and the first Failure. After one, what is on its way arrives and nothing else is sent.
    """
    results: dict[Key, Result] = {}
    # In the order in which they happen: what is stopped comes after what stops it.
    failures: list[Failure] = []
    stop = threading.Event()

    def run(job: Job) -> Result:
        try:
            return do_job(job, stop)
        except BaseException as error:
            failures.extend([error] if isinstance(error, Failure) else [])
            stop.set()
            raise

    with connection, ThreadPoolExecutor(min(concurrency, len(jobs))) as pool:
        waiting: dict[Future[Result], Key] = {pool.submit(run, job): key for key, job in jobs.items()}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
                for future in done:
                    key = waiting.pop(future)
                    with suppress(Failure):
                        results[key] = future.result()
                progress(len(results), len(jobs))
        except BaseException:
            # Whoever interrupts gets what arrives in a moment kept, and does not wait for the rest.
            stop.set()
            try:
                wait(waiting, timeout=GRACE)
            finally:
                connection.cancel()
            raise
    return results, failures[0] if failures else None


@dataclass(frozen=True)
class JudgeQuestion:
    """One verdict to be asked for. key: names it in the cache. chat: the messages of the nth time it is asked for.
    read: the verdict in a judgment as text, None if it has none."""

    key: str
    chat: Callable[[int], Chat]
    read: Callable[[str], str | None]


@dataclass(frozen=True)
class Missing:
    """Why there is no verdict. judged: whether there is a judgment, which holds none."""

    reason: str
    judged: bool = False

    @property
    def fails(self) -> bool:
        """Whether the endpoint has failed."""
        return not self.judged and self != STOPPED


INVALID = Missing("no valid verdict", judged=True)
STOPPED = Missing("the judge was stopped")


class Asker:
    """Asks for verdicts. endpoint: None answers from the cache alone."""

    def __init__(
        self,
        judge: Llm,
        *,
        verdicts: Verdicts,
        endpoint: Endpoint | None,
        progress: Progress = lambda done, of: None,
    ):
        self.judge, self.verdicts, self.endpoint, self.progress = judge, verdicts, endpoint, progress
        self.models: set[str] = set()

    def ask(self, questions: Sequence[JudgeQuestion]) -> tuple[list[str | None], Summary]:
        """Return a verdict, as text, or None for each question, and what they took. Equal questions are asked once.

        Raises RunError by the policy that the settings name, where the endpoint refuses the key, and where the cache
        alone has to answer and does not know everything.
        """
        cached = self._cached_verdicts(questions)
        uncached = {question.key: question for question in questions if question.key not in cached}
        if self.endpoint is None and uncached:
            raise RunError(
                f"{len(uncached)} of {len(uncached) + len(cached)} verdicts of {self.judge.identity} are not in "
                f"{self.verdicts.folder}, and offline nothing is asked for. Judge online first."
            )
        self.models = set()
        results = self.ask_for(uncached) if uncached else {}
        reasons = Counter(
            result.reason for result in results.values() if isinstance(result, Missing) and result != INVALID
        )
        values = cached | {key: result for key, result in results.items() if isinstance(result, str)}
        spent = self.verdicts.spent(self.judge.identity)
        summary = Summary(
            new=len(values) - len(cached),
            cached=len(cached),
            invalid=sum(result == INVALID for result in results.values()),
            missing=dict(sorted(reasons.items())),
            requests=spent.requests,
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            cost=spent.cost(self.judge.prices),
            models=tuple(sorted(self.models)),
        )
        return [values.get(question.key) for question in questions], summary

    def _cached_verdicts(self, questions: Sequence[JudgeQuestion]) -> dict[str, str]:
        """Return the kept verdicts by key. Raises RunError for one that could not have been read."""
        read = {question.key: question.read for question in questions}
        cached = self.verdicts.find(sorted(read))
        for key, value in cached.items():
            if read[key](f"[[{value}]]") != value:
                raise self.verdicts.unreadable(value)
        return cached

    def ask_for(self, questions: Mapping[str, JudgeQuestion]) -> dict[str, "str | Missing"]:
        """Ask for a verdict, or why there is none, by key. Raises RunError where the judge cannot go on."""
        assert self.endpoint is not None
        results, failure = ask_all(
            self.endpoint, questions, self._ask_question, concurrency=self.judge.concurrency, progress=self.progress
        )
        if failure is not None:
            raise self.stopped(failure.reason)
        return results

    def _ask_question(self, question: JudgeQuestion, stop: threading.Event) -> str | Missing:
        """Ask for one verdict. Raises Failure, which ends all asking, where none helps or `on_failure` says so."""
        result = self._try(question, stop)
        if self.judge.on_failure == "stop" and isinstance(result, Missing) and result.fails:
            raise Failure(result.reason, "endpoint")
        return result

    def _try(self, question: JudgeQuestion, stop: threading.Event) -> str | Missing:
        assert self.endpoint is not None
        missing = INVALID
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
                    pause = self.pause(retry, failure.wait)
                    if pause > LONGEST_WAIT:
                        return Missing(f"{failure.reason} that asks to wait longer than {LONGEST_WAIT:g} s")
                    if failure.kind == "request" or retry == self.judge.retries:
                        return Missing(failure.reason)
                    stop.wait(pause)
                    continue
                value = self.keep(request, reply, question)
                self._check_usage(reply)
                if value is not None:
                    return value
                missing = self.without_verdict(reply)
                break
        return missing

    def keep(self, request: int, reply: Reply, question: JudgeQuestion) -> str | None:
        """Keep a judgment, and note which model gave it. Returns the verdict that counts, if there is one."""
        self.models |= {reply.model} if reply.model else set()
        return self.verdicts.finish(request, reply, question.read(reply.text))

    def without_verdict(self, reply: Reply) -> Missing:
        """Why a judgment holds no verdict."""
        if reply.lack == CUT_OFF:
            limit = f"{CUT_OFF} by max_tokens {self.judge.max_tokens}; raise evaluation.judge.max_tokens"
            return Missing(limit, judged=True)
        return Missing(reply.lack, judged=True) if reply.lack else INVALID

    def pause(self, retry: int, retry_after: float | None) -> float:
        """Return the seconds until the next try. retry_after: those that the endpoint asks for, if any."""
        # Cut at random, so that requests do not come back all at once.
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2.0**retry) * random.uniform(0.5, 1.0)
        return backoff if retry_after is None else retry_after

    def _check_usage(self, reply: Reply) -> None:
        budget = self.judge.budget
        if (budget.tokens or budget.cost) and (reply.input_tokens is None or reply.output_tokens is None):
            raise Failure(
                f"{self.judge.base_url} does not say how many tokens a judgment took, so budget.tokens and budget.cost "
                "cannot be kept. Use budget.requests",
                "endpoint",
            )

    def stopped(self, reason: str) -> RunError:
        """The error that ends the asking."""
        spent = self.verdicts.spent(self.judge.identity)
        return RunError(
            f"The judge {self.judge.identity} stopped: {reason.rstrip('.')}. What it said in {spent.requests} requests "
            f"of this run is kept in {self.verdicts.folder}, so giving the same command again, with --resume, pays "
            "for nothing twice."
        )
