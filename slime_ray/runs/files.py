"""Files and folders that are whole or not there, what a folder has to hold, and errors that are the storage's own."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

RECORD = ".complete"
"""File that is written last into a folder, with the sizes of all others, and their SHA-256 where that was asked for."""
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
_PHRASES = (
    *(os.strerror(number).lower() for number in _REFUSALS),
    *(f"(os error {number})" for number in _REFUSALS),
    # torch.save, by the version of its own file format.
    "pytorchstreamwriter failed",
    ". unexpected pos ",
    "iostream error",
    "database or disk is full",
)
"""How libraries that raise no OSError say that a disk is full, read-only or broken."""


class StorageError(OSError):
    """A storage refused what it was given, for as long as one waits. Its text is a sentence without a full stop."""


def storage_error(error: BaseException | None) -> OSError | None:
    """Find the storage's refusal behind an exception of any library.

    Returns:
        The OSError itself, or one that quotes what the library says; None where the storage is not to blame.
    """
    while error is not None:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _REFUSALS):
            return error
        text = str(error).lower()
        if any(phrase in text for phrase in _PHRASES):
            return OSError(" ".join(str(error).split()))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all


def partial_name(path: Path) -> Path:
    """Where something is written before it gets the name `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a name under which to write a file or folder, and put it at `path` when it is whole.

    Readers see the old one or the new one; what they have open stays as it was. After an error or an interrupt nothing
    is left of the new one.

    Args:
        path: A file or folder, which may be there already.
        durable: Whether it has to outlive a power failure, for which the disk is waited for.
    """
    partial, old = partial_name(path), partial_name(path)
    try:
        yield partial
        if durable:
            _flush(partial)
        if partial.is_dir() and path.exists():
            # A folder cannot be put over anything.
            os.replace(path, old)
        os.replace(partial, path)
        if durable:
            _flush_entry(path.parent)
    finally:
        _delete(partial)
        _delete(old)


def write(path: Path, content: Any, *, durable: bool = True, private: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file, in a folder that is there.
        content: Bytes, a buffer, or text, which is written in UTF-8.
        durable: As in `atomic_path`.
        private: Whether nobody but its owner may read it.
    """
    mode = 0o600 if private else 0o666
    with (
        atomic_path(path, durable=durable) as partial,
        open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream,
    ):
        stream.write(content.encode() if isinstance(content, str) else content)


def clear_partials(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder that nobody writes to now."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _PARTIAL.fullmatch(path.name):
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the disk has a file, or a folder with all that it holds."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _flush_entry(inner)
    _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have no such thing for folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# What a folder has to hold


def seal(folder: Path, *, digests: bool = True) -> None:
    """Record what a folder holds, so that `damage` tells whether it still does.

    Args:
        folder: A folder in which all has been written.
        digests: Whether SHA-256 is recorded beside the size. It takes a second or more for each GB.
    """
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _sha256(path) if digests else None]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    write(folder / RECORD, json.dumps({"files": files}, indent=1))


def damage(folder: Path) -> str | None:
    """Tell what is wrong with a sealed folder, naming the file; None where it is whole.

    Sizes are always compared. A file is hashed once in a process, and again when its time of change is another one.
    """
    try:
        entries = [(folder / name, *entry) for name, entry in _read_record(folder).items()]
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder} has no record of its files, {RECORD}" if folder.is_dir() else f"{folder} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / RECORD} cannot be read"
    for path, size, _ in entries:
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
    for path, _, digest in entries:
        if digest is not None and _sha256(path) != digest:
            return f"{path} has another content than was written"
    return None


def recorded_digests(folder: Path) -> dict[str, str | None]:
    """SHA-256 of the files that a sealed folder has to hold, by name; nothing where its record cannot be read."""
    try:
        return {name: digest for name, (_, digest) in _read_record(folder).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read_record(folder: Path) -> dict[str, tuple[int, str | None]]:
    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    return {name: (int(size), digest) for name, (size, digest) in content.items()}


def _sha256(path: Path) -> str:
    stat = path.stat()
    return digest(path, stat.st_size, stat.st_mtime_ns).hex()


@lru_cache(maxsize=1024)
def digest(file: Path, size: int, time: int) -> bytes:
    """SHA-256 of a file. Every trial of a worker asks for the same ones; size and time tell when one has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
