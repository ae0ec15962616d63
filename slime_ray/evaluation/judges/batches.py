"""Verdicts through an endpoint's batch interface: cheaper than one by one, and up to a day later.

A batch is written down before it is created, and named as soon as its id is known. Whatever ends the waiting, the next
asking finds it again, by its id or by the token in its metadata, and submits nothing that it holds.
"""

import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from slime_ray.evaluation.judges.asking import Asker, JudgeQuestion, Missing, ask_all
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.judges.replies import Failure, printable, read_reply
from slime_ray.evaluation.verdict_cache import OpenBatch, Reply

T = TypeVar("T")
MOST_REQUESTS, MOST_BYTES = 50_000, 150 * 2**20
"""Of one batch. OpenAI takes 50,000 requests and 200 MB."""
ENDED = ("completed", "failed", "expired", "cancelled")
CLOCKS_DIFFER = 3600.0
"""Seconds by which an endpoint's clock may be another one."""
TOKEN = "slime_ray"
"""Key of a batch's metadata under which it is found again where its id was lost."""
logger = logging.getLogger(__name__)


class BatchAsker(Asker):
    """Asks for verdicts in batches."""

    endpoint: Endpoint
    """Offline nothing is asked for."""

    def ask_for(self, questions: Mapping[str, JudgeQuestion]) -> dict[str, str | Missing]:
        """A verdict, or why there is none, by key. Raises RunError by the policy."""
        # Requests of the batch that is waited for that were answered, and all of it.
        self.answered = (0, len(questions))
        results, failure = ask_all(
            self.endpoint, {"": questions}, self._ask, concurrency=1, progress=lambda *_: self.progress(*self.answered)
        )
        if failure is not None:
            raise self.stopped(failure.reason)
        verdicts = {key: result for key, result in results[""].items() if key in questions}
        failed = Counter(each.reason for each in verdicts.values() if isinstance(each, Missing) and each.fails)
        if failed and self.judge.on_failure == "stop":
            words = ", ".join(f"{count} of {len(questions)} have {reason}" for reason, count in failed.most_common(3))
            raise self.stopped(words)
        return verdicts

    def _ask(self, questions: Mapping[str, JudgeQuestion], stop: threading.Event) -> dict[str, str | Missing]:
        """Return a verdict, or why there is none, for each question by key.

        Raises:
            Failure: The endpoint cannot be asked, or does not end a batch in time. Open batches stay written down.
        """
        self.stop = stop
        results: dict[str, str | Missing] = {}
        pending, rounds = dict(questions), 0
        while pending:
            batches = self.verdicts.open_batches(list(pending))
            if not batches:
                if rounds == self.judge.asks:
                    break
                spent = self._submit(pending, rounds)
                batches = self.verdicts.open_batches(list(pending))
                absent = pending.keys() - {key for batch in batches for key in batch.requests}
                # What another trial had asked for meanwhile may be answered by now.
                cached = self.verdicts.find(sorted(absent))
                results |= {key: cached.get(key) or Missing(str(spent)) for key in absent if spent or key in cached}
            limit, sample_question = self.endpoint.limit_name, next(iter(pending.values()))
            for batch in batches:
                results |= self._collect(batch, sample_question)
                # Where only the limit's name was refused, nothing has been judged.
                rounds = max(rounds, batch.round + (self.endpoint.limit_name == limit))
            pending = {key: question for key, question in pending.items() if _again(results.get(key))}
        return results

    def _submit(self, questions: Mapping[str, JudgeQuestion], rounds: int) -> str | None:
        """Create batches of these questions. Returns which budget is spent, if one is."""
        for lines in self._portions(questions, rounds):
            token = uuid.uuid4().hex
            batch_keys, spent = self.verdicts.begin_batch(
                token, self.judge.identity, list(lines), rounds, budget=self.judge.budget
            )
            if batch_keys:
                self._create(token, b"".join(lines[key] for key in batch_keys))
            if spent:
                return spent
        return None

    def _portions(self, questions: Mapping[str, JudgeQuestion], rounds: int) -> Iterator[dict[str, bytes]]:
        """Lines of the files to send, by key, each file within what a batch may hold."""
        lines: dict[str, bytes] = {}
        size = 0
        for key, question in questions.items():
            body = self.endpoint.body(question.chat(rounds))
            request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            line = json.dumps(request).encode() + b"\n"
            if lines and (len(lines) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
                yield lines
                lines, size = {}, 0
            lines[key] = line
            size += len(line)
        yield lines

    def _create(self, token: str, content: bytes) -> None:
        verdicts = self.verdicts
        try:
            file = _text_of(self._patiently(lambda: self.endpoint.upload(content)), "id")
        except Failure as failure:
            verdicts.end_batch(token, forget=True)
            raise self._without_batches(failure) from None
        try:
            batch = self._patiently(lambda: self.endpoint.create_batch(file, {TOKEN: token}), free=True)
        except Failure as failure:
            if not failure.paid:
                verdicts.end_batch(token, forget=True)
            # Otherwise it may have been created: the next asking looks for it.
            raise self._without_batches(failure) from None
        name = _text_of(batch, "id")
        verdicts.name_batch(token, name)
        logger.info("batch %s of %d requests was submitted", name, content.count(b"\n"))

    def _without_batches(self, failure: Failure) -> Failure:
        if failure.status == 404:
            address = self.endpoint.server.base_url
            return Failure(f"{address} has no batch interface (404). Set evaluation.judge.mode: live", "endpoint")
        return failure

    def _collect(self, batch: OpenBatch, sample_question: JudgeQuestion) -> dict[str, str | Missing]:
        """Wait for a batch, and keep each of its results. Keys that are to be asked anew are left out.

        sample_question: any of the questions, which are all read alike.
        """
        verdicts = self.verdicts
        state = self._wait(batch)
        if state is None:
            verdicts.end_batch(batch.token, forget=True)
            return {}
        status = state["status"]
        results: dict[str, str | Missing] = {}
        unread = 0
        anew: set[str] = set()
        for name in ("output_file_id", "error_file_id"):
            if not state.get(name):
                continue
            file = _text_of(state, name)
            for line in self._content(file).splitlines():
                key, reply = _line(line)
                if key not in batch.requests or key in results or key in anew:
                    unread += bool(line.strip())
                elif isinstance(reply, Failure):
                    reply.reason = self.endpoint.masked(reply.reason)
                    if not reply.paid:
                        verdicts.abandon(batch.requests[key])
                    if self.endpoint.renames(reply):
                        anew.add(key)
                    else:
                        results[key] = Missing(reply.reason)
                else:
                    reply = self.endpoint.without_key(reply)
                    value = self.keep(batch.requests[key], reply, sample_question)
                    results[key] = self.without_verdict(reply) if value is None else value
        if anew:
            self.endpoint.limit_name = "max_completion_tokens"
        if unread:
            logger.warning("batch %s: %d lines are garbled, repeated or of no request", batch.name, unread)
        absent = batch.requests.keys() - results.keys() - anew
        for key in sorted(absent):
            results[key] = Missing(f"no result in a batch that {_ended(state)}")
            if status != "completed" and not unread:
                verdicts.abandon(batch.requests[key])
        verdicts.end_batch(batch.token)
        return results

    def _content(self, file: str) -> bytes:
        """A file of results; nothing where the endpoint has it no more, so that what it held is asked for again."""
        try:
            return self._patiently(partial(self.endpoint.content, file))
        except Failure as failure:
            if failure.status != 404:
                raise
            logger.warning("the results %s of a batch are gone from %s", file, self.endpoint.server.base_url)
            return b""

    def _wait(self, batch: OpenBatch) -> dict[str, Any] | None:
        """The state of a batch that has ended; None if it was never created."""
        judge = self.judge
        until = time.monotonic() + judge.wait_seconds
        name = batch.name
        while True:
            if name is None:
                state = self._lost(batch)
                if state is None and time.time() > batch.submitted + 2 * judge.timeout_seconds:
                    return None
            else:
                state = self._state(name)
            if state is not None:
                if name is None:
                    name = _text_of(state, "id")
                    self.verdicts.name_batch(batch.token, name)
                if state.get("status") in ENDED:
                    return state
                self._tell(batch, state)
            if time.monotonic() >= until:
                words = f"the batch {name or batch.token} has not ended after {judge.wait_seconds:g} s"
                raise Failure(f"{words}, and is looked for the next time", "endpoint")
            if self.stop.wait(judge.poll_seconds):
                raise Failure(f"the batch {name or batch.token} is looked for the next time", "endpoint")

    def _state(self, name: str) -> dict[str, Any]:
        try:
            return self._patiently(lambda: self.endpoint.batch(name))
        except Failure as failure:
            if failure.status != 404:
                raise
            raise Failure(
                f"{self.endpoint.server.base_url} does not know the batch {name} that was submitted. Give the base_url "
                "and the key of then, or set evaluation.judge.mode: live, which asks and pays again",
                "endpoint",
            ) from None

    def _lost(self, batch: OpenBatch) -> dict[str, Any] | None:
        """Find a batch whose id did not arrive, among the endpoint's that are not older."""
        after: str | None = None
        while True:
            page, more = self._patiently(partial(self.endpoint.batches, after))
            for state in page:
                if _metadata(state).get(TOKEN) == batch.token:
                    return state
            before, last = after, page[-1] if more and page else {}
            after, created_at = last.get("id"), last.get("created_at")
            older = isinstance(created_at, (int, float)) and created_at < batch.submitted - CLOCKS_DIFFER
            if not isinstance(after, str) or after == before or older:
                return None

    def _tell(self, batch: OpenBatch, state: Mapping[str, Any]) -> None:
        counts = state.get("request_counts")
        done = counts.get("completed") if isinstance(counts, dict) else None
        self.answered = (done if isinstance(done, int) else 0, len(batch.requests))

    def _patiently(self, call: Callable[[], T], *, free: bool = False) -> T:
        """Make a request again while its failure may pass. free: only while it cannot have had an effect."""
        for retry in range(self.judge.retries + 1):
            try:
                return call()
            except Failure as failure:
                failure.reason = self.endpoint.masked(failure.reason)
                last = failure.kind != "passing" or (free and failure.paid) or retry == self.judge.retries
                if last or self.stop.wait(self.pause(retry, failure.wait)):
                    raise
        raise AssertionError


def _again(result: str | Missing | None) -> bool:
    return result is None or (isinstance(result, Missing) and result.judged)


def _text_of(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise Failure(f"an answer of the batch interface without {name}", "passing", paid=True)
    return text


def _metadata(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = batch.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _ended(state: Mapping[str, Any]) -> str:
    """How a batch ended, with what the endpoint says of it."""
    words = {"failed": "was refused", "cancelled": "was cancelled"}.get(state["status"], state["status"])
    try:
        return f"{words}: {printable(state['errors']['data'][0]['message'])[:200].rstrip('.')}"
    except (AttributeError, IndexError, KeyError, TypeError):
        return words


def _line(line: bytes) -> tuple[str, Reply | Failure]:
    """A result's key and judgment, or why there is none. Without a key the line says nothing."""
    garbled = Failure("a garbled line", "request", paid=True)
    try:
        result = json.loads(line.decode("utf-8", "replace"))
        key, response, error = result["custom_id"], result.get("response"), result.get("error")
        if not isinstance(key, str):
            return "", garbled
        status = response["status_code"] if isinstance(response, dict) else None
        if status == 200:
            return key, read_reply(json.dumps(response["body"]).encode())
        if status is not None:
            error = response["body"]["error"]
        words = printable(str(error.get("message") or error.get("code"))).strip().splitlines()[0]
        return key, Failure(f"refused in a batch: {words[:200].rstrip('.')}", "request", status=status)
    except Failure as failure:
        return key, failure
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return "", garbled
