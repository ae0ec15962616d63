"""A small endpoint for chat completions that judges by a rule: the text with more `good` is better.

It finds the texts between their markers, like a model that reads. Whatever else a test wants it to do is a behaviour:
a function of the number of the request, from 0, and of the judgment, that answers in another way.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from slime_ray.config.judge import Llm
from slime_ray.evaluation.judges import AnswerPair, Messages

KEY = "sk-test-only-0123456789"
VARIABLE = "JUDGE_SERVER_KEY"


@dataclass(frozen=True)
class Response:
    """What is sent. body: text or bytes as they are, or a JSON value. length: announced instead of the real one."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


Behaviour = Callable[[int, str], "Response | str | None"]
"""(number of the request, its judgment by the rule) -> another judgment or response; None leaves it as it is."""


class JudgeServer(ThreadingHTTPServer):
    """Counts what it is asked. at_once: the most requests that were there at a time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave: Behaviour):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave = behave
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.running = self.at_once = 0

    def other(self, method: str, path: str, headers: Any, body: bytes) -> Response:
        """Answer what is no chat completion."""
        return Response(404, {"error": {"message": "no such path"}})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(self.server.other("GET", self.path, self.headers, b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/chat/completions":
            self._send(self.server.other("POST", self.path, self.headers, body))
            return
        said = json.loads(body)
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(said)
            self.server.running += 1
            self.server.at_once = max(self.server.at_once, self.server.running)
        try:
            self._send(self._answer(number, said))
        except BrokenPipeError:
            pass
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _answer(self, number: int, said: dict[str, Any]) -> Response:
        if self.headers["authorization"] != f"Bearer {KEY}":
            return Response(401, {"error": {"message": f"Incorrect API key: {self.headers['authorization']}"}})
        judgment = judge(said["messages"][-1]["content"])
        other = self.server.behave(number, judgment)
        return other if isinstance(other, Response) else Response(body=completion(judgment if other is None else other))

    def _send(self, response: Response) -> None:
        body = response.body if isinstance(response.body, (str, bytes)) else json.dumps(response.body)
        body = body.encode() if isinstance(body, str) else body
        self.send_response(response.status)
        for name, value in {"content-type": "application/json", **response.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if response.length is None else response.length))
        self.end_headers()
        self.wfile.write(body)
        if response.length is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


def judge(shown: str) -> str:
    """The judgment by the rule, with a word about each text, as judges write it."""
    texts = dict(re.findall(r"<(answer\w*) [0-9a-f]{16}>\n(.*?)\n</\1 ", shown, re.DOTALL))
    good = {place: len(re.findall(r"\bgood\b", text)) for place, text in texts.items()}
    if "answer" in texts:
        return f"It says {texts['answer']!r}. So my rating is [[{min(10, 1 + good['answer'])}]]"
    a, b = good["answer_a"], good["answer_b"]
    label = "A=B" if a == b else ("A>>B" if a > b + 1 else "A>B") if a > b else ("B>>A" if b > a + 1 else "B>A")
    return f"A says {texts['answer_a']!r}, B says {texts['answer_b']!r}. My verdict: [[{label}]]"


def completion(judgment: Any, *, finish: Any = "stop", message: Any = None, **changes: Any) -> dict[str, Any]:
    """A chat completion; `changes` over its own keys, `message` over those of its message."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "rule-2026-01-01",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": judgment, **(message or {})},
            },
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        **changes,
    }


Server = TypeVar("Server", bound=JudgeServer)


@contextmanager
def serving(behave: Behaviour = lambda number, judgment: None) -> Iterator[JudgeServer]:
    """A server for as long as it is needed."""
    with running(JudgeServer(behave)) as server:
        yield server


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, answering."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pairs(prompts: Sequence[Messages], answers: Sequence[str], baseline: Sequence[str]) -> list[AnswerPair]:
    """Answers of both sides to the same prompts."""
    return [AnswerPair(prompt, a, prompt, b) for prompt, a, b in zip(prompts, answers, baseline, strict=True)]


def settings(server: JudgeServer | str, **changes: Any) -> Llm:
    """Settings of a judge that asks the server."""
    url = server if isinstance(server, str) else server.url
    given = {"name": "llm", "model": "rule", "template": "arena-hard", "base_url": url, "api_key_env": VARIABLE}
    return Llm.model_validate({**given, "timeout_seconds": 20.0, **changes})
