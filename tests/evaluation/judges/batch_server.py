"""The test endpoint with OpenAI's batch interface. A batch ends when it has been looked at often enough.

Results come in the reverse order of what was asked. What else becomes of them is a test's `shape`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from .judge_server import KEY, JudgeServer, Response, completion, judge, running

Lines = list[Any]
"""What a file of results holds: JSON values, or bytes as they are."""


@dataclass
class Ended:
    """How a batch ends."""

    output: Lines
    errors: Lines = field(default_factory=list)
    status: str = "completed"
    message: str | None = None


Shape = Callable[[Lines], Ended]


class BatchServer(JudgeServer):
    """looks: how often a batch is not done yet. lose: whether the answer to its creation is lost; "before" creates none.

    say: the judgment of the nth request of all batches, None as the rule says.
    """

    def __init__(self, shape: Shape = Ended, *, looks: int = 1):
        super().__init__(lambda number, judgment: None)
        self.shape, self.looks = shape, looks
        self.say: Callable[[int, dict[str, Any]], str | Response | None] = lambda number, body: None
        self.lose: str | None = None
        self.page = 100
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.asked: list[list[dict[str, Any]]] = []

    def other(self, method: str, path: str, headers: Any, body: bytes) -> Response:
        """Answer what is no chat completion."""
        if headers["authorization"] != f"Bearer {KEY}":
            return Response(401, {"error": {"message": f"Incorrect API key: {headers['authorization']}"}})
        _, kind, *rest = path.partition("?")[0].strip("/").split("/")
        with self.lock:
            if (method, kind, rest) == ("POST", "files", []):
                return Response(body={"id": self._file(_part(body, b'name="file"')), "object": "file"})
            if (method, kind, rest) == ("POST", "batches", []):
                return self._create(json.loads(body))
            if (method, kind, rest) == ("GET", "batches", []):
                return Response(body=self._page(parse_qs(path.partition("?")[2])))
            if kind == "batches" and rest[0] in self.batches:
                return Response(body=self._look(self.batches[rest[0]]))
            if kind == "files" and rest[0] in self.files:
                return Response(body=self.files[rest[0]], headers={"content-type": "application/octet-stream"})
        return Response(404, {"error": {"message": "no such path"}})

    def _page(self, asked: dict[str, list[str]]) -> dict[str, Any]:
        """Batches, the latest first."""
        latest = list(self.batches.values())[::-1]
        begin = [batch["id"] for batch in latest].index(asked["after"][0]) + 1 if "after" in asked else 0
        end = begin + min(self.page, int(asked["limit"][0]))
        return {"object": "list", "data": latest[begin:end], "has_more": end < len(latest)}

    def _file(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def _create(self, said: dict[str, Any]) -> Response:
        assert (said["endpoint"], said["completion_window"]) == ("/v1/chat/completions", "24h")
        if self.lose == "before":
            return Response(200, "", length=100)
        lines = [json.loads(line) for line in self.files[said["input_file_id"]].splitlines()]
        assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
        name = f"batch-{len(self.batches)}"
        self.asked.append(lines)
        self.batches[name] = {"id": name, "status": "validating", "metadata": said["metadata"], "looked": 0}
        return Response(200, "", length=100) if self.lose else Response(body=self.batches[name])

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["looked"] += 1
        if batch["looked"] <= self.looks:
            return {**batch, "status": "in_progress"}
        if batch["status"] == "validating":
            number = int(batch["id"].removeprefix("batch-"))
            before = sum(len(lines) for lines in self.asked[:number])
            ended = self.shape([self._result(before + n, line) for n, line in enumerate(self.asked[number])][::-1])
            batch["status"] = ended.status
            batch["errors"] = {"data": [{"message": ended.message}]} if ended.message else None
            for name, lines in (("output_file_id", ended.output), ("error_file_id", ended.errors)):
                content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
                batch[name] = self._file(b"\n".join(content)) if content else None
        return batch

    def _result(self, number: int, line: dict[str, Any]) -> dict[str, Any]:
        said = self.say(number, line["body"])
        if not isinstance(said, Response):
            judgment = judge(line["body"]["messages"][-1]["content"]) if said is None else said
            said = Response(body=completion(judgment))
        response = {"status_code": said.status, "request_id": "r", "body": said.body}
        return {"id": f"result-{number}", "custom_id": line["custom_id"], "response": response, "error": None}


def _part(body: bytes, name: bytes) -> bytes:
    """The content of one part of a form."""
    boundary = body.split(b"\r\n", 1)[0]
    (part,) = [part for part in body.split(boundary) if name in part]
    return part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")


@contextmanager
def batching(shape: Shape = Ended, *, looks: int = 1) -> Iterator[BatchServer]:
    """A server for as long as it is needed."""
    with running(BatchServer(shape, looks=looks)) as server:
        yield server
