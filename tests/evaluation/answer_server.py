"""A small server of a model with adapters: the calls of vLLM and SGLang, answered by transformers and peft.

Whatever else a test wants it to do is a behaviour: a function of the call that answers it in another way.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_ray.config.evaluation import AnswerServer

LOADING = threading.Lock()
BASE = "base"
VARIABLE, KEY = "ANSWER_SERVER_KEY", "sk-answers-0123456789"


@dataclass(frozen=True)
class Call:
    """One request. number: of its path, from 0."""

    path: str
    number: int
    body: dict[str, Any]


Reply = tuple[int, Any]
"""Status, and text, bytes or a JSON value."""
Behaviour = Callable[[Call], Reply | None]
"""Another reply; None leaves it as it is."""


class ModelServer(ThreadingHTTPServer):
    """Serves the model in the folder that `base` names once it is asked. adapters: those that are loaded, by name."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, base: Callable[[], Path], behave: Behaviour, prefix: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base, self.behave, self.prefix = base, behave, prefix
        self.lock = threading.Lock()
        self.calls: list[Call] = []
        self.adapters: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def called(self, path: str) -> list[dict[str, Any]]:
        """The bodies of the requests to a path."""
        return [call.body for call in self.calls if call.path == path]

    @cached_property
    def model(self) -> Any:
        return self._fresh().eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.base(), local_files_only=True)

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        with self.lock:
            call = Call(path, len(self.called(path)), body)
            self.calls.append(call)
        other = self.behave(call)
        if other is not None:
            return other
        with self.lock, torch.no_grad():
            if path == "/v1/models":
                return 200, {"data": [{"id": name} for name in (BASE, *self.adapters)]}
            if path == f"{self.prefix}/load_lora_adapter":
                return self._load(body["lora_name"], Path(body["lora_path"]))
            if path == f"{self.prefix}/unload_lora_adapter":
                known = self.adapters.pop(body["lora_name"], None)
                return (200, "Success") if known else (404, {"error": {"message": "The lora adapter cannot be found."}})
            if path == "/v1/completions":
                return self._complete(body)
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: Path) -> Reply:
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter {name} has already been loaded."}}
        if not (path / "adapter_config.json").is_file():
            return 400, {"error": {"message": f"No adapter found at {path}"}}
        self.adapters[name] = PeftModel.from_pretrained(self._fresh(), path).eval().requires_grad_(False)
        return 200, "Success"

    def _fresh(self) -> Any:
        # transformers patches its own classes while it loads: two threads at once leave no model tied in this process.
        with LOADING:
            return AutoModelForCausalLM.from_pretrained(self.base(), local_files_only=True)

    def _complete(self, body: dict[str, Any]) -> Reply:
        base, _, name = body["model"].rpartition(":")
        if body["model"] != BASE and (name not in self.adapters or base not in ("", BASE)):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        model = self.model if body["model"] == BASE else self.adapters[name]
        generator = torch.Generator().manual_seed(body["seed"])
        ids: list[int] = []
        logps: list[float] = []
        for _ in range(body["max_tokens"]):
            logits = model(input_ids=torch.tensor([body["prompt"] + ids])).logits[0, -1].double()
            if body["temperature"]:
                chances = (logits / body["temperature"]).softmax(0)
                token = int(torch.multinomial(chances, 1, generator=generator))
            else:
                token = int(logits.argmax())
            ids.append(token)
            logps.append(float(logits.log_softmax(0)[token]))
            if token in body.get("stop_token_ids", []):
                break
        return 200, completion(body["model"], ids, logps, stop=body.get("stop_token_ids", []))

    @contextmanager
    def running(self) -> Iterator["ModelServer"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def completion(model: str, ids: list[int], logps: Sequence[float] = (), *, stop: Any = (), **changes: Any) -> Any:
    """A completion of token ids; `changes` over the keys of its choice."""
    choice = {
        "index": 0,
        "text": " ".join(map(str, ids)),
        "token_ids": ids,
        "finish_reason": "stop" if ids and ids[-1] in stop else "length",
        "logprobs": {"token_logprobs": list(logps)},
    }
    return {"object": "text_completion", "model": model, "choices": [choice | changes]}


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        status, reply = 401, {"error": {"message": f"Incorrect API key: {self.headers['authorization']}"}}
        if self.headers["authorization"] in (f"Bearer {KEY}", "Bearer none"):
            status, reply = self.server.reply(self.path, body)
        sent = reply if isinstance(reply, bytes) else reply.encode() if isinstance(reply, str) else None
        sent = json.dumps(reply).encode() if sent is None else sent
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_: object) -> None:
        """Nothing."""


def model_server(base: Path | Callable[[], Path], behave: Behaviour = lambda call: None, *, prefix: str = "/v1") -> Any:
    """A server for as long as a `with` lasts. prefix: before the calls that load adapters; SGLang has none."""
    return ModelServer((lambda: base) if isinstance(base, Path) else base, behave, prefix).running()


def settings(at: ModelServer | str, **changes: Any) -> AnswerServer:
    """Settings of an engine that asks the server."""
    url = at if isinstance(at, str) else at.url
    return AnswerServer.model_validate({"model": BASE, "base_url": url, "deadline_seconds": 20.0, **changes})
