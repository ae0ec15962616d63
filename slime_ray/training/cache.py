"""Folders that are made once and shared: by the trials of a sweep, by its resumption, by the next sweep.

A folder is named by a hash of everything it depends on. It is built under another name and moved into place when whole,
behind a lock: a killed run leaves nothing half-made, and two runs do not build the same thing.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

Report = Callable[[Mapping[str, Any]], str | None]
"""Told how things get on; may answer with the reason why a trial should stop."""


def cached(cache: Path, kind: str, key: str, make: Callable[[Path], None], report: Report) -> Path:
    """The folder of `kind` and `key`; `make` fills it if it is not there."""
    folder = cache / f"{kind}-{key}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    report({"doing": f"waiting for {kind}"})
    with FileLock(cache / f"{kind}-{key}.lock"):
        if not folder.is_dir():
            report({"doing": f"making {kind}"})
            partial = cache / f".{kind}-{key}.{uuid.uuid4().hex[:8]}"
            partial.mkdir()
            try:
                make(partial)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def content_of(source: str | None, *, by_time: bool = False) -> str | None:
    """A hash of what a local file or folder holds; None for anything else, such as a hub id.

    by_time: by sizes and modification times instead of bytes, for weights.
    """
    if source is None or not Path(source).exists():
        return None
    path = Path(source)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        digest.update(file.name.encode())
        size, time = file.stat().st_size, file.stat().st_mtime_ns
        digest.update(f"{size} {time}".encode() if by_time else _digest(file, size, time))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, time: int) -> bytes:
    """SHA-256 of a file. Every trial of a worker asks for the same ones; size and time tell when one has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
