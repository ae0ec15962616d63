"""Requests to an OpenAI-compatible endpoint, and what may become of one.

They run in an event loop, in a thread of its own: there a request ends at its deadline, or when it is cancelled,
wherever it stands, be that a name that is looked up, a handshake, or an answer that comes byte by byte.
"""

import asyncio
import email.utils
import importlib
import math
import os
import threading
import time
import zlib
from concurrent.futures import CancelledError
from typing import Any
from urllib.parse import urlsplit

from slime_ray.config.judge import Llm
from slime_ray.errors import InputError
from slime_ray.evaluation.judges.replies import PASSING, Failure, printable, read_reply
from slime_ray.evaluation.verdict_cache import Reply

LARGEST = 16 * 2**20
"""Bytes of an answer, as sent and decompressed: some hundred times what judgments take."""
LONGEST_CONNECT = 30.0
"""Seconds that a connection may take."""

UNCONNECTED = ("Connect", "Proxy", "UnsupportedProtocol")
"""In the names of errors before anything was sent to the endpoint."""
CLOSING = 2.0
"""Seconds that cancelled requests have to close their connections."""


class TooLarge(Exception):
    """An answer beyond LARGEST."""


class UnknownEncoding(Exception):
    """An answer compressed in a way that was not asked for."""


class Endpoint:
    """An endpoint for chat completions, asked with the official client. Threads may share it.

    Requests can be made inside of a `with`, which ends those that are on their way. It raises InputError where the
    environment allows no HTTP client.
    """

    def __init__(self, judge: Llm):
        """Raises InputError where the package or the key is missing, or the key cannot be sent."""
        if lack := judge.lacks():
            raise InputError(lack)
        import openai

        self.openai, self.judge = openai, judge
        # The client's own HTTP library, under the name that it has had since version 3.
        self.http = importlib.import_module("httpx2" if int(openai.__version__.partition(".")[0]) >= 3 else "httpx")
        self.key = os.environ[judge.api_key_env].strip() if judge.api_key_env else ""
        if not all("!" <= letter <= "~" for letter in self.key):
            raise InputError(
                f"The environment variable {judge.api_key_env} holds a key with blanks, line breaks or letters beyond "
                "ASCII, which cannot be sent. Put the key alone there."
            )
        self.limit_name = "max_tokens"

    def __enter__(self) -> "Endpoint":
        self.loop = asyncio.new_event_loop()
        self.cancelled = False
        self.thread = threading.Thread(target=self.loop.run_forever, name="judge", daemon=True)
        self.thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._connect(), self.loop).result()
        except Exception as error:  # of a proxy or certificates that the environment names; it may hold a password
            self._end()
            raise InputError(
                f"No HTTP client can be made here for evaluation.judge ({type(error).__name__}). Correct the variables "
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

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The judgment. Raises Failure."""
        clean = [{name: printable(text) for name, text in message.items()} for message in messages]
        try:
            body = asyncio.run_coroutine_threadsafe(self._ask(clean), self.loop).result()
        except CancelledError:
            raise Failure("the judge was stopped", "passing", paid=True) from None
        try:
            return read_reply(body)
        except Failure as failure:
            failure.reason = self._masked(failure.reason)
            raise

    async def _connect(self) -> None:
        seconds = self.judge.timeout_seconds
        timeout = self.http.Timeout(seconds, connect=min(LONGEST_CONNECT, seconds))
        self.client = self.openai.AsyncOpenAI(
            # An endpoint that wants no key gets one all the same, or the client would look for another one.
            api_key=self.key or "none",
            base_url=self.judge.base_url,
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

    async def _ask(self, messages: list[dict[str, str]]) -> bytes:
        if self.cancelled:
            raise asyncio.CancelledError
        sent_as = self.limit_name
        decoding: dict[str, Any] = {sent_as: self.judge.max_tokens}
        if self.judge.temperature is not None:
            decoding["temperature"] = self.judge.temperature
        create: Any = self.client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self.judge.timeout_seconds):
                given = await create(model=self.judge.model, messages=messages, **decoding)
        except TimeoutError:
            raise self._late() from None
        except self.openai.APIStatusError as error:
            if error.status_code == 400 and sent_as == "max_tokens" and "max_completion_tokens" in str(error):
                # What OpenAI's reasoning models call it.
                self.limit_name = "max_completion_tokens"
                return await self._ask(messages)
            raise self._refusal(error) from None
        except Exception as error:  # whatever the libraries below raise
            raise self._lost(error) from None
        body: bytes = given.http_response.content
        return body

    async def _read(self, response: Any) -> None:
        """Read an answer before the client does, which would take whatever comes, and decompress it however large."""
        encodings = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
        encodings = [name for name in encodings if name not in ("", "identity")]
        if encodings not in ([], ["gzip"], ["deflate"]):
            raise UnknownEncoding(", ".join(encodings))
        # Of either form.
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encodings else None
        body = bytearray()
        async for part in response.stream:
            body += unpack.decompress(part, LARGEST + 1 - len(body)) if unpack else part
            if len(body) > LARGEST:
                raise TooLarge
        await response.stream.aclose()
        if encodings:
            del response.headers["content-encoding"]
        response.stream = self.http.ByteStream(bytes(body))

    def _late(self) -> Failure:
        return Failure(f"no answer within {self.judge.timeout_seconds:g} s", "passing", paid=True)

    def _lost(self, error: BaseException) -> Failure:
        cause = error.__cause__ or error
        if isinstance(cause, TooLarge):
            return Failure(f"an answer of more than {LARGEST // 2**20} MB", "passing", paid=True)
        if isinstance(cause, (UnknownEncoding, zlib.error)):
            return Failure(f"an answer that cannot be decompressed: {self._words(cause)}", "passing", paid=True)
        kind = type(cause).__name__
        if "Timeout" in kind and "Connect" not in kind:
            return self._late()
        # Once a connection stands, what was asked may be answered, and paid for, without our hearing of it.
        paid = not any(word in kind for word in UNCONNECTED)
        return Failure(f"no connection: {self._words(cause)}", "passing", paid=paid)

    def _refusal(self, error: Any) -> Failure:
        status, judge = error.status_code, self.judge
        if 300 <= status < 400:
            return Failure(
                f"{judge.base_url} redirects to {_shown(error.response.headers.get('location', ''))} ({status}), where "
                "nothing is sent. Write the address that answers in evaluation.judge.base_url",
                "endpoint",
            )
        if status in (401, 403):
            # What is said here may repeat the key.
            held = f"the key in {judge.api_key_env}" if judge.api_key_env else "requests without a key"
            way_out = "Put a valid one there" if judge.api_key_env else "Name its variable in api_key_env"
            return Failure(f"{judge.base_url} refuses {held} ({status}). {way_out}", "endpoint")
        if status == 404:
            return Failure(
                f"{judge.base_url} does not know the model {judge.model}, or is no such endpoint: "
                f"{self._words(error)}. Correct evaluation.judge.model or base_url",
                "endpoint",
            )
        if status in PASSING or status >= 500:
            name = "rate limit" if status == 429 else "error of the server"
            wait = seconds_of(error.response.headers.get("retry-after"))
            return Failure(f"{name} ({status})", "passing", wait=wait)
        return Failure(f"refused ({status}): {self._words(error)}", "request")

    def _words(self, error: BaseException) -> str:
        lines = self._masked(str(error)).strip().splitlines()
        return printable(lines[0])[:200].rstrip(".") if lines else type(error).__name__

    def _masked(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _shown(location: str) -> str:
    """An address without user, password and query, which may be secrets."""
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
