"""Requests to an OpenAI-compatible endpoint, and what may become of one.

They run in an event loop, in a thread of its own: there a request ends at its deadline, or when it is cancelled,
wherever it stands, be that a name that is looked up, a handshake, or an answer that comes byte by byte.
"""

import asyncio
import email.utils
import importlib
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from slime_ray.config.evaluation import AnswerServer
from slime_ray.config.judge import Llm
from slime_ray.errors import InputError
from slime_ray.evaluation.judges.replies import PASSING, Failure, printable, read_reply
from slime_ray.evaluation.verdict_cache import Reply

T = TypeVar("T")
LARGEST = 16 * 2**20
"""Bytes of an answer, as sent and decompressed: some hundred times what judgments take."""
LARGEST_FILE = 2**30
"""Bytes of a batch's results."""
LONGEST_CONNECT = 30.0
"""Seconds that a connection may take."""

UNCONNECTED = ("Connect", "Proxy", "UnsupportedProtocol")
"""In the names of errors before anything was sent to the endpoint."""
SHORTEST_KEY = 8
"""Letters of a key that may be looked for in a judgment; a shorter one is a stopgap, and may be a part of a verdict."""
CLOSING = 2.0
"""Seconds that cancelled requests have to close their connections."""


class TooLarge(Exception):
    """An answer of more bytes than its argument."""


class UnknownEncoding(Exception):
    """An answer compressed in a way that was not asked for."""


class Connection:
    """An OpenAI-compatible server, asked with the official client. Threads may share it.

    Requests can be made inside of a `with`, which ends those that are on their way. It raises InputError where the
    environment allows no HTTP client.
    """

    def __init__(self, server: Llm | AnswerServer, *, setting: str):
        """Take what `setting` says, such as evaluation.judge.

        Raises:
            InputError: The package or the key is missing, or the key cannot be sent.
        """
        if lack := server.lacks():
            raise InputError(lack)
        import openai

        self.openai, self.server, self.setting = openai, server, setting
        # The client's own HTTP library, under the name that it has had since version 3.
        self.http = importlib.import_module("httpx2" if int(openai.__version__.partition(".")[0]) >= 3 else "httpx")
        self.key = os.environ[server.api_key_env].strip() if server.api_key_env else ""
        if not all("!" <= letter <= "~" for letter in self.key):
            raise InputError(
                f"The environment variable {server.api_key_env} holds a key with blanks, line breaks or letters beyond "
                "ASCII, which cannot be sent. Put the key alone there."
            )

    def __enter__(self) -> Self:
        self.loop = asyncio.new_event_loop()
        self.cancelled = False
        self.thread = threading.Thread(target=self.loop.run_forever, name="endpoint", daemon=True)
        self.thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._connect(), self.loop).result()
        except Exception as error:  # of a proxy or certificates that the environment names; it may hold a password
            self._end()
            raise InputError(
                f"No HTTP client can be made here for {self.setting} ({type(error).__name__}). Correct the variables "
                "ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE or SSL_CERT_DIR, where trials run."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        asyncio.run_coroutine_threadsafe(self.client.close(), self.loop).result()
        self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def cancel(self) -> None:
        """End the requests that are on their way, and all that are made later, as Failures."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self.loop).result()

    def send(self, path: str, body: Any = None, *, seconds: float | None = None) -> bytes:
        """POST `body` as JSON, or GET where there is none, and return what comes back.

        Args:
            path: Below the base URL, or a whole address.
            seconds: Less than `timeout_seconds`, where less time is left.

        Raises:
            Failure: There is no answer, or it is a refusal.
        """
        if body is None:
            answer = self.call(lambda client: client.get(path, cast_to=self.http.Response), seconds=seconds)
        else:
            answer = self.call(lambda client: client.post(path, cast_to=self.http.Response, body=body), seconds=seconds)
        content: bytes = answer.content
        return content

    def call(self, ask: Callable[[Any], Awaitable[T]], *, seconds: float | None = None) -> T:
        """What the official client, which `ask` is given, returns. Arguments and errors are those of `send`."""
        limit = min(self.server.timeout_seconds, seconds or math.inf)
        try:
            return asyncio.run_coroutine_threadsafe(self._call(ask, limit), self.loop).result()
        except CancelledError:
            raise Failure("the asking was stopped", "passing", paid=True) from None

    async def _connect(self) -> None:
        seconds = self.server.timeout_seconds
        timeout = self.http.Timeout(seconds, connect=min(LONGEST_CONNECT, seconds))
        self.client = self.openai.AsyncOpenAI(
            # An endpoint that wants no key gets one all the same, or the client would look for another one.
            api_key=self.key or "none",
            base_url=self.server.base_url,
            timeout=timeout,
            # Tried again, and counted, by whoever asks.
            max_retries=0,
            default_headers={"Accept-Encoding": "gzip"},
            http_client=self.openai.DefaultAsyncHttpxClient(
                timeout=timeout,
                # What is judged, and the key, goes to the address that was given and to no other.
                follow_redirects=False,
                event_hooks={"response": [self._read]},
            ),
        )

    async def _cancel(self) -> None:
        self.cancelled = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)

    async def _call(self, ask: Callable[[Any], Awaitable[T]], seconds: float) -> T:
        if self.cancelled:
            raise asyncio.CancelledError
        try:
            async with asyncio.timeout(seconds):
                return await ask(self.client)
        except TimeoutError:
            raise self._late(seconds) from None
        except self.openai.APIStatusError as error:
            raise self._refusal(error) from None
        except Exception as error:  # whatever the libraries below raise
            raise self._lost(error, seconds) from None

    async def _read(self, response: Any) -> None:
        """Read an answer before the client does, which would take whatever comes, and decompress it however large."""
        encodings = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
        encodings = [name for name in encodings if name not in ("", "identity")]
        if encodings not in ([], ["gzip"], ["deflate"]):
            raise UnknownEncoding(", ".join(encodings))
        # Of either form.
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encodings else None
        body = bytearray()
        largest = LARGEST_FILE if response.request.url.path.endswith("/content") else LARGEST
        async for part in response.stream:
            body += unpack.decompress(part, largest + 1 - len(body)) if unpack else part
            if len(body) > largest:
                raise TooLarge(largest)
        await response.stream.aclose()
        if encodings:
            del response.headers["content-encoding"]
        response.stream = self.http.ByteStream(bytes(body))

    def _late(self, seconds: float) -> Failure:
        return Failure(f"no answer within {seconds:g} s", "passing", paid=True)

    def _lost(self, error: BaseException, seconds: float) -> Failure:
        cause = error.__cause__ or error
        if isinstance(cause, TooLarge):
            return Failure(f"an answer of more than {cause.args[0] // 2**20} MB", "passing", paid=True)
        if isinstance(cause, (UnknownEncoding, zlib.error)):
            return Failure(f"an answer that cannot be decompressed: {self._words(cause)}", "passing", paid=True)
        kind = type(cause).__name__
        if "Timeout" in kind and "Connect" not in kind:
            return self._late(seconds)
        # Once a connection stands, what was asked may be answered, and paid for, without our hearing of it.
        paid = not any(word in kind for word in UNCONNECTED)
        return Failure(f"no connection: {self._words(cause)}", "passing", paid=paid)

    def _refusal(self, error: Any) -> Failure:
        status, server = error.status_code, self.server
        if 300 <= status < 400:
            return Failure(
                f"{server.base_url} redirects to {_public_address(error.response.headers.get('location', ''))} "
                f"({status}), where nothing is sent. Write the address that answers in {self.setting}.base_url",
                "endpoint",
                status=status,
            )
        if status in (401, 403):
            # What is said here may repeat the key.
            credentials = f"the key in {server.api_key_env}" if server.api_key_env else "requests without a key"
            way_out = "Put a valid one there" if server.api_key_env else "Name its variable in api_key_env"
            return Failure(f"{server.base_url} refuses {credentials} ({status}). {way_out}", "endpoint", status=status)
        if status == 404:
            return Failure(
                f"{server.base_url} does not know the model {server.model}, or is no such endpoint: "
                f"{self._words(error)}. Correct {self.setting}.model or base_url",
                "endpoint",
                status=status,
            )
        if status in PASSING or status >= 500:
            name = "rate limit" if status == 429 else "error of the server"
            wait = seconds_of(error.response.headers.get("retry-after"))
            return Failure(f"{name} ({status})", "passing", wait=wait, status=status)
        return Failure(f"refused ({status}): {self._words(error)}", "request", status=status)

    def _words(self, error: BaseException) -> str:
        lines = self.masked(str(error)).strip().splitlines()
        return printable(lines[0])[:200].rstrip(".") if lines else type(error).__name__

    def masked(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "***") if self.key else text


class Endpoint(Connection):
    """A judge's endpoint for chat completions."""

    server: Llm

    def __init__(self, judge: Llm):
        super().__init__(judge, setting="evaluation.judge")
        self.limit_name = "max_tokens"

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Request one judgment. Raises Failure."""
        request = self.body(messages)
        try:
            return self.without_key(read_reply(self.send("/chat/completions", request)))
        except Failure as failure:
            if "max_tokens" in request and _renames(failure):
                self.limit_name = "max_completion_tokens"
                return self.ask(messages)
            failure.reason = self.masked(failure.reason)
            raise

    def without_key(self, reply: Reply) -> Reply:
        """The judgment without the key, should the server have sent that: it is kept, and its model is reported."""
        if len(self.key) < SHORTEST_KEY:
            return reply
        return replace(reply, text=self.masked(reply.text), model=reply.model and self.masked(reply.model))

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the request for one judgment."""
        clean = [{name: printable(text) for name, text in message.items()} for message in messages]
        request: dict[str, Any] = {**self.server.request, "model": self.server.model, "messages": clean}
        request[self.limit_name] = self.server.max_tokens
        if self.server.temperature is not None:
            request["temperature"] = self.server.temperature
        return request

    def renames(self, failure: Failure) -> bool:
        """Whether the endpoint wants the limit of tokens under the other name."""
        return self.limit_name == "max_tokens" and _renames(failure)

    def upload(self, content: bytes) -> dict[str, Any]:
        """The file that a batch's requests were sent in. This and what follows raise Failure."""
        file = ("requests.jsonl", content, "application/jsonl")
        return self._json(lambda client: client.files.with_raw_response.create(file=file, purpose="batch"))

    def create_batch(self, file: str, metadata: dict[str, str]) -> dict[str, Any]:
        """A new batch, as the endpoint describes it."""
        return self._json(
            lambda client: client.batches.with_raw_response.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
            )
        )

    def batch(self, name: str) -> dict[str, Any]:
        """The state of a batch."""
        state = self._json(lambda client: client.batches.with_raw_response.retrieve(name))
        if not isinstance(state.get("status"), str):
            raise Failure("an answer of the batch interface without status", "passing", paid=True)
        return state

    def batches(self, after: str | None = None) -> tuple[list[dict[str, Any]], bool]:
        """A page of the endpoint's batches, the latest first, and whether there are more; those behind `after`."""
        begin = {"after": after} if after else {}
        listing = self._json(lambda client: client.batches.with_raw_response.list(limit=100, **begin))
        page = listing.get("data")
        states = [state for state in page if isinstance(state, dict)] if isinstance(page, list) else []
        return states, listing.get("has_more") is True

    def content(self, file: str) -> bytes:
        """A file of a batch's results."""
        content: bytes = self.call(lambda client: client.files.with_raw_response.content(file)).content
        return content

    def _json(self, ask: Callable[[Any], Awaitable[Any]]) -> dict[str, Any]:
        try:
            answer = json.loads(self.call(ask).content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Failure("an answer of the batch interface that is no JSON object", "passing", paid=True)
        return answer


def _renames(failure: Failure) -> bool:
    # OpenAI's reasoning models have another name for it.
    return failure.status == 400 and "max_completion_tokens" in failure.reason


def _public_address(location: str) -> str:
    """Return an address without user, password and query, which may be secrets."""
    try:
        place = urlsplit(location)
        place = place._replace(netloc=place.netloc.rpartition("@")[2], query="", fragment="")
    except ValueError:
        return "no address"
    return printable(place.geturl())[:200] or "no address"


def seconds_of(value: str | None) -> float | None:
    """A Retry-After, of seconds or a date, in seconds; None for what is neither or lies in the past."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value or "").timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    return seconds if seconds >= 0 and not math.isnan(seconds) else None
