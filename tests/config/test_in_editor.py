"""Experiments in an editor: the YAML language server of VS Code, Neovim and others reads them with our schema.

It is taken from the PATH, or else installed from npm into a folder of its own, for these tests alone.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slime_ray.search_spaces import shipped_spaces

from slime_ray.config.reference import ID, LINE

pytestmark = pytest.mark.slow
PACKAGE = "yaml-language-server@1.25.0"
HUNG_SECONDS = 120.0
"""After which a server that says nothing is ended."""
GOOD = f"{LINE}\nname: one\npreset: arithmetic\nbase:\n  training:\n    learning_rate: 1.0e-4\n"


class LanguageServer:
    """A server of the Language Server Protocol, over its standard input and output."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.last = 0
        self.ask("initialize", {"processId": None, "rootUri": None, "capabilities": {}})
        self.tell("initialized", {})

    def tell(self, method: str, params: Any, **more: Any) -> None:
        """Send a notification, or with an `id` a request."""
        self._send({"method": method, "params": params, **more})

    def ask(self, method: str, params: Any) -> Any:
        """Send a request and return its result."""
        self.last += 1
        self.tell(method, params, id=self.last)
        return next(each["result"] for each in self._heard() if each.get("id") == self.last and "method" not in each)

    def opened(self, file: Path) -> list[tuple[int, str]]:
        """Open a file; return the line, from 0, and the sentence of each complaint."""
        document = {"uri": file.as_uri(), "languageId": "yaml", "version": 1, "text": file.read_text("utf-8")}
        self.tell("textDocument/didOpen", {"textDocument": document})
        told = (each["params"] for each in self._heard() if each.get("method") == "textDocument/publishDiagnostics")
        found = next(params["diagnostics"] for params in told if params["uri"] == file.as_uri())
        return [(each["range"]["start"]["line"], each["message"]) for each in found]

    def close(self) -> None:
        """End it as an editor does."""
        self.ask("shutdown", None)
        self.tell("exit", None)
        assert self.process.wait() == 0
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _heard(self) -> Iterator[dict[str, Any]]:
        """What it says. What it asks for is answered with nothing."""
        guard = threading.Timer(HUNG_SECONDS, self.process.kill)
        guard.start()
        try:
            while True:
                message = self._read()
                if "method" in message and "id" in message:
                    items = message["params"].get("items") if message["params"] else None
                    self._send({"id": message["id"], "result": None if items is None else [None] * len(items)})
                yield message
        finally:
            guard.cancel()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the server has ended"
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        return message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    """The server, which runs as long as this module."""
    program = shutil.which("yaml-language-server")
    if program is None:
        npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
        if npm is None or shutil.which("node") is None:
            pytest.skip("neither yaml-language-server nor npm is here")
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), PACKAGE]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_SECONDS)
        if installed.returncode:
            pytest.skip(f"npm does not install {PACKAGE}: {installed.stderr[-200:]}")
        program = str(folder / "node_modules" / ".bin" / "yaml-language-server")
    running = LanguageServer([program, "--stdio"])
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the schema, as `slime-ray init` leaves it."""
    shutil.copy(shipped_spaces()["demo"].parent / ID, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_file_has_no_complaint(server, name):
    assert server.opened(shipped_spaces()[name]) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("name: one", "nam: one", 1, "nam is not allowed"),
        ("learning_rate:", "learning_rat:", 5, "learning_rat is not allowed"),
        ("1.0e-4", "fast", 5, "Incorrect type"),
        ("base:", "sampler: grdi\nbase:", 3, "Value is not accepted"),
    ],
)
def test_a_mistake_is_underlined_where_it_stands(server, folder, old, new, line, sentence):
    assert server.opened(written(folder / "good.yaml", GOOD)) == []
    complaints = server.opened(written(folder / "wrong.yaml", GOOD.replace(old, new)))
    assert line in [place for place, text in complaints if sentence in text], complaints


def test_a_key_says_what_it_is_and_others_are_offered(server, folder):
    file = written(folder / "good.yaml", f"{GOOD}    \n")
    server.opened(file)
    document = {"textDocument": {"uri": file.as_uri()}}
    shown = server.ask("textDocument/hover", document | {"position": {"line": 5, "character": 6}})
    properties = json.loads((folder / ID).read_text())["$defs"]["Training"]["properties"]
    assert properties["learning_rate"]["description"] in shown["contents"]["value"]
    offered = server.ask("textDocument/completion", document | {"position": {"line": 6, "character": 4}})
    labels = {item["label"] for item in offered["items"]}
    assert labels >= properties.keys() - {"learning_rate"}


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file
