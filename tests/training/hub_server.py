"""A small Hub that speaks what an upload of a model asks: who, repository, modes, LFS, files, commit.

`refuse` answers a part of the path, in place of the server, with a status and a sentence.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "onlyfortests" * 3
LFS = (".safetensors",)


class HubServer(ThreadingHTTPServer):
    """Keeps what was committed. requests: method and path of each, in their order."""

    daemon_threads = True

    def __init__(self, refuse: dict[str, tuple[int, str]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse = refuse
        self.requests: list[tuple[str, str]] = []
        self.made: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        length = self.headers["content-length"]
        body = self.rfile.read(int(length)) if length else self._chunks()
        self.server.requests.append((self.command, self.path))
        for part, (status, sentence) in self.server.refuse.items():
            if part in self.path:
                self._answer({"error": sentence}, status)
                return
        # Addresses for uploading are signed; everything else wants the token.
        if "/blob/" not in self.path and self.headers["authorization"] != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
            return
        answer = self._do(body)
        self._answer({"error": "Repository not found"} if answer is None else answer, 404 if answer is None else 200)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _chunks(self) -> bytes:
        body = b""
        while self.headers["transfer-encoding"] == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return body

    def _do(self, body: bytes) -> Any:
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "orgs": [{"name": "lab"}]}
        if path == "/api/repos/create":
            hub.made |= (made := json.loads(body))
            return {"url": f"{hub.url}/{made['organization']}/{made['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": "lfs" if name.endswith(LFS) else "regular", "shouldIgnore": False}
                    for name in names
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{hub.url}/blob/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        if path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            return {}
        if "/commit/" in path:
            return self._commit([json.loads(line) for line in body.splitlines()])
        if path.startswith("/api/models/") and hub.made:
            return {"id": "lab/model", "sha": "0" * 40, "siblings": []}
        return None

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        hub = self.server
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                hub.files[value["path"]] = content
        address = f"{hub.url}/lab/model/commit/1"
        return {"success": True, "commitUrl": address, "commitOid": "1" * 40, "hookOutput": ""}

    def _answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if status >= 400:
            self.send_header("x-error-message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving_hub(refuse: dict[str, tuple[int, str]] | None = None) -> Iterator[HubServer]:
    """Serve for as long as the `with` lasts."""
    server = HubServer(refuse or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
