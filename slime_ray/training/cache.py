"""Folders that are made once and shared: by the trials of a sweep, by its resumption, by the next sweep.

A folder is named by a hash of everything it depends on. It is built under another name and moved into place when whole,
behind a lock: a killed run leaves nothing half-made, and two runs do not build the same thing. The ranks of a process
group make it together. Where the storage is an object store, a machine that lacks a folder looks there first.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from slime_ray.mirror import Mirror
from slime_ray.training.orders import Report
from slime_ray.training.outcome import patiently, waiting_for_storage
from slime_ray.world import World

LOCK_SECONDS = 10.0
STORAGE_SECONDS = 900.0
"""How long an object store may refuse a folder before that counts as an error."""
STAGES = ".stages"
COMPLETE = ".complete"
"""In an object store's copy, the file that comes last."""


def cached(storage: Mirror, kind: str, key: str, make: Callable[[Path], None], report: Report) -> Path:
    """The storage's folder of `kind` and `key`; `make` fills it if it is not there.

    With several ranks all of them call `make` with the same folder, and only rank 0 may write into it.
    """
    world = World.current()
    cache = storage.root / STAGES
    folder = cache / f"{kind}-{key}"
    if world.broadcast(_is_whole(storage, folder)):
        return _brought(storage, folder, report)
    lock = FileLock(cache / f"{kind}-{key}.lock")
    partial = cache / f".{kind}-{key}.{uuid.uuid4().hex[:8]}"
    try:
        if world.main:
            cache.mkdir(parents=True, exist_ok=True)
            _acquire(lock, lambda: report({"doing": f"waiting for {kind}"}))
            if not _is_whole(storage, _brought(storage, folder, report, locked=True)):
                report({"doing": f"making {kind}"})
                partial.mkdir()
        if world.broadcast(partial.is_dir()):
            make(Path(world.broadcast(str(partial))))
            if world.main:
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
                if storage.url is not None:
                    (folder / COMPLETE).touch()
                    _patiently(lambda: storage.push(folder), report)
            # Nobody reads it before it stands under its name.
            world.broadcast(None)
    finally:
        if world.main:
            shutil.rmtree(partial, ignore_errors=True)
            lock.release()
    return _brought(storage, folder, report)


def _is_whole(storage: Mirror, folder: Path) -> bool:
    return folder.is_dir() if storage.url is None else (folder / COMPLETE).is_file()


def _brought(storage: Mirror, folder: Path, report: Report, *, locked: bool = False) -> Path:
    """The folder, from the object store if this machine lacks it and it is there."""
    if storage.url is None or _is_whole(storage, folder):
        return folder

    def bring() -> None:
        if not _is_whole(storage, folder) and storage.has(folder / COMPLETE):
            storage.pull(folder)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext() if locked else FileLock(folder.with_name(f"{folder.name}.lock")):
        _patiently(bring, report)
    return folder


def _patiently(work: Callable[[], None], report: Report) -> None:
    patiently(work, seconds=STORAGE_SECONDS, say=waiting_for_storage(report))


def _acquire(lock: BaseFileLock, say: Callable[[], object]) -> None:
    """Wait for the lock, and say so every now and then: who waits in silence counts as hung."""
    while True:
        say()
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            continue
        return


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
