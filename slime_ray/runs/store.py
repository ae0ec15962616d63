"""Runs in an object store: a process works on a copy on its own disk, which is brought up to date before and after.

A file has one writer at a time: a trial's worker writes the trial's folder, the sweep's driver all else. An object
appears whole or not at all; what says that others are complete (`MARKER_FILES`) is written after them.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
from pyarrow import fs

from slime_ray.errors import InputError, RunError
from slime_ray.runs import files
from slime_ray.runs.redaction import redact_sentence, remember, strip_credentials
from slime_ray.runs.results import HEAVY

MARKER_FILES = ("state.json", "trial.json", "manifest.json", files.RECORD)
"""Files that say that what stands beside them is whole."""
TEMPORARY_FOLDERS = ("scratch",)
"""Folders that nobody else ever needs."""
CLAIM_FILE = ".held"
CLAIM_SECONDS = 180.0
"""For so long a process that has said that it holds a folder is believed to do so."""
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
AT_ONCE = 8
BLOCK = 1 << 22
"""Bytes that are copied at a time."""


def is_url(storage: str) -> bool:
    """Whether a storage is an address, such as s3://bucket/runs, and not a path."""
    return "://" in storage


def join_address(storage: str, name: str) -> str:
    """Return the address of `name` in a storage; the query of an address stays its end."""
    start, mark, query = storage.partition("?") if is_url(storage) else (storage, "", "")
    return f"{start.rstrip('/')}/{name}{mark}{query}"


def split_address(address: str) -> tuple[str, str]:
    """Split a run's address into storage and name, the reverse of `join_address`. Raises InputError."""
    start, mark, query = address.partition("?")
    storage, _, name = start.rstrip("/").rpartition("/")
    if not is_url(storage):
        raise InputError(f"{strip_credentials(address)}: give a run's address, such as s3://bucket/runs/first.")
    return f"{storage}{mark}{query}", name


@dataclass(frozen=True)
class RunStore:
    """A storage and the folder of this machine that holds the working copy. url: None where they are the same thing."""

    root: Path
    url: str | None = None
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, storage: str, role: str) -> "RunStore":
        """Return the storage, with a working copy by `role`: the driver and the trials keep apart, also on one machine.

        Working copies lie in the folder that SLIME_RAY_SCRATCH names, else in the system's for temporary files. Raises
        InputError for an address that is none.
        """
        if not is_url(storage):
            return cls(Path(storage).resolve())
        if (scheme := urlsplit(storage).scheme) not in SCHEMES:
            # Each file would be a commit there, and commits are limited.
            hub = " The Hub takes models (`slime-ray export --push-to-hub`), not runs." if scheme == "hf" else ""
            raise InputError(
                f"--storage {strip_credentials(storage)}: give a path, or an address that begins with s3://, gs:// or "
                f"abfs://.{hub}"
            )
        remember(storage)
        key = hashlib.sha256(storage.encode()).hexdigest()[:12]
        return cls(_scratch() / key / role, storage)

    def __reduce__(self) -> tuple[object, ...]:
        """The storage travels, what this process has sent does not; each machine has its own place for a copy."""
        return (RunStore, (self.root,)) if self.url is None else (RunStore.of, (self.url, self.root.name))

    def check(self, *, write: bool = True) -> None:
        """Raise InputError where the storage cannot be reached, listed or, with `write`, written and read."""
        if self.url is None:
            return
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            store, base = _store(self.url)
            store.get_file_info(fs.FileSelector(base, allow_not_found=True))
            if not write:
                return
            _make_room(store, f"{base}/{probe}")
            with store.open_output_stream(f"{base}/{probe}") as stream:
                stream.write(probe.encode())
            with store.open_input_stream(f"{base}/{probe}") as stream:
                intact = stream.read() == probe.encode()
            store.delete_file(f"{base}/{probe}")
        except (OSError, pa.ArrowException) as error:
            reason = redact_sentence(str(error).splitlines()[0])[:300]
            raise InputError(
                f"--storage {self.display_address}: it cannot be used: {reason}. Correct the address, or what allows "
                "this machine to use it, such as AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS."
            ) from None
        if not intact:
            raise InputError(f"--storage {self.display_address}: what was written there does not come back.")

    @property
    def display_address(self) -> str:
        """The storage without what may be secret in its address."""
        return str(self.root) if self.url is None else strip_credentials(self.url)

    @contextmanager
    def raise_store_errors(self) -> Iterator[None]:
        """Turn an OSError inside into a RunError that names the storage."""
        try:
            yield
        except OSError as error:
            reason = redact_sentence((str(error).strip().splitlines() or [""])[0])
            kind = "" if isinstance(error, files.StorageError) else f"{type(error).__name__}: "
            raise RunError(
                f"{self.display_address} could not be used ({kind}{reason}). What it has is kept; give "
                "the same command again, with --resume where a run had begun."
            ) from None

    @contextmanager
    def claim_folder(self, folder: Path, *, skip: Container[str] = ()) -> Iterator[None]:
        """Claim a folder of an object store for this process, with the copy of it up to date.

        skip: as in `pull`. On a disk, holding is a lock file's job. Raises InputError where another process said within
        the last minutes that it holds the folder, and RunError where the store cannot be used.
        """
        if self.url is None:
            yield
            return
        store, base = _store(self.url)
        name = f"{base}/{self._name(folder)}/{CLAIM_FILE}"
        process = f"{platform.node()} {os.getpid()}"

        def write_claim() -> None:
            with store.open_output_stream(name) as stream:
                stream.write(json.dumps({"who": process, "time": time.time()}).encode())

        holder, age = _read_claim(store, name)
        if holder and holder != process and age < CLAIM_SECONDS and not _is_gone(holder):
            raise InputError(
                f"Another sweep ({holder}) is at work on {self.display_address}/{folder.name}, or was {age:.0f} s ago. "
                f"Wait for it or end it; if its machine is lost, its claim ends {CLAIM_SECONDS - age:.0f} s from now."
            )
        end = threading.Event()

        def renew_claim() -> None:
            while not end.wait(CLAIM_SECONDS / 4):
                with suppress(OSError):
                    write_claim()

        with self.raise_store_errors():
            _make_room(store, name)
            write_claim()
        renewal = threading.Thread(target=renew_claim, daemon=True)
        renewal.start()
        try:
            with self.raise_store_errors():
                self.pull(folder, skip=skip)
            yield
        finally:
            end.set()
            renewal.join()
            with suppress(OSError):
                store.delete_file(name)

    def address(self, path: Path) -> str:
        """Where the storage has what the working copy has at `path`, in the words of Ray."""
        return str(path) if self.url is None else join_address(self.url, self._name(path))

    def pull(self, folder: Path, *, skip: Container[str] = ()) -> None:
        """Bring the copy of a folder up to date, and delete there what the storage does not have.

        Where that has nothing of the folder, there is no copy of it. skip: names of folders to leave out, wherever they
        are. Raises OSError.
        """
        if self.url is None:
            return
        store, base = _store(self.url)
        objects = [(name, info) for name, info in self._remote(folder) if not _is_partial(PurePosixPath(name).name)]
        if not objects:
            shutil.rmtree(folder, ignore_errors=True)
            return
        remote = {name: info for name, info in objects if not _is_skipped(name, skip)}
        for path in _files(folder):
            if (name := self._name(path)) not in remote and not _is_skipped(name, skip):
                path.unlink(missing_ok=True)

        def fetch(name: str) -> None:
            target, size = self.root / name, remote[name].size
            remote_stamp = (size, remote[name].mtime_ns or 0)
            if target.is_file() and self.stamps.get(name) == remote_stamp:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                files.atomic_path(target, durable=False) as partial,
                store.open_input_stream(f"{base}/{name}") as source,
                partial.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, BLOCK)
            self.stamps[name] = remote_stamp
            self.stamps[f"{name}@here"] = _stamp(target)

        _copy_files(fetch, remote)

    def push(self, path: Path, *, prune: bool = False) -> None:
        """Bring the storage up to date with a file or folder of the copy. Raises OSError.

        prune: also delete there what the copy does not have.
        """
        if self.url is None:
            return
        store, base = _store(self.url)
        names = list(map(self._name, [path] if path.is_file() else _files(path)))
        changed = [name for name in names if self.stamps.get(f"{name}@here") != _stamp(self.root / name)]

        def send(name: str) -> None:
            stamp = _stamp(self.root / name)
            _make_room(store, f"{base}/{name}")
            with (self.root / name).open("rb") as source, store.open_output_stream(f"{base}/{name}") as sink:
                shutil.copyfileobj(source, sink, BLOCK)
            self.stamps[f"{name}@here"] = stamp
            self.stamps.pop(name, None)

        _copy_files(send, changed)
        if prune:
            self._delete(path, keep=set(names))

    def push_files(self, folder: Path) -> None:
        """The same for the files that stand in a folder itself."""
        for path in sorted(folder.iterdir()) if self.url is not None else ():
            if path.is_file() and not _is_partial(path.name):
                self.push(path)

    def remove(self, path: Path) -> None:
        """Delete a folder, here and in the storage."""
        shutil.rmtree(path, ignore_errors=True)
        if self.url is not None:
            self._delete(path)

    def _delete(self, path: Path, keep: Container[str] = ()) -> None:
        """Delete what the storage has below `path`; what says that the others are whole goes first."""
        assert self.url is not None
        store, base = _store(self.url)
        stale = [name for name, _ in self._remote(path) if name not in keep]
        for name in sorted(stale, key=lambda name: PurePosixPath(name).name not in MARKER_FILES):
            store.delete_file(f"{base}/{name}")

    def has(self, path: Path) -> bool:
        """Whether the storage has a file."""
        if self.url is None:
            return path.is_file()
        store, base = _store(self.url)
        return bool(store.get_file_info(f"{base}/{self._name(path)}").type == fs.FileType.File)

    def _name(self, path: Path) -> str:
        """A path in the copy by its name in the storage."""
        return path.relative_to(self.root).as_posix()

    def _remote(self, folder: Path) -> Iterator[tuple[str, fs.FileInfo]]:
        assert self.url is not None
        store, base = _store(self.url)
        root = PurePosixPath(base, self._name(folder))
        for info in store.get_file_info(fs.FileSelector(str(root), allow_not_found=True, recursive=True)):
            if info.type == fs.FileType.File:
                yield PurePosixPath(info.path).relative_to(PurePosixPath(base)).as_posix(), info


def _copy_files(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Copy files, several at a time; what says that others are whole comes after them."""
    groups: dict[bool, list[str]] = {False: [], True: []}
    for name in names:
        groups[PurePosixPath(name).name in MARKER_FILES].append(name)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for group in groups.values():
            list(pool.map(work, group))


def local_folder(run: str) -> Path:
    """The folder of a run on this machine, or a copy without models of one in an object store. Raises as `copy_run`."""
    return copy_run(run)[0] if is_url(run) else Path(run)


def copy_run(address: str, run_store: RunStore | None = None) -> tuple[Path, RunStore]:
    """Copy the run at an address in an object store to this machine, but for models.

    Returns the copy and the store.

    run_store: of an earlier call, which knows what it has fetched. Raises InputError for an address that is none
    or cannot be read, and RunError where the store fails on the way.
    """
    storage, name = split_address(address)
    run_store = run_store or RunStore.of(storage, "reports")
    run_store.check(write=False)
    with run_store.raise_store_errors():
        run_store.pull(run_store.root / name, skip=HEAVY)
    return run_store.root / name, run_store


def _read_claim(store: fs.FileSystem, name: str) -> tuple[str | None, float]:
    """Return who claims a folder, and how many seconds ago it said so."""
    try:
        with store.open_input_stream(name) as stream:
            claim = json.loads(stream.read())
        return str(claim["who"]), max(0.0, time.time() - float(claim["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0.0


def _is_gone(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    node, _, pid = holder.rpartition(" ")
    return node == platform.node() and pid.isdigit() and not psutil.pid_exists(int(pid))


def _scratch() -> Path:
    """The folder of all working copies. Raises InputError where it belongs to somebody else."""
    setting = os.environ.get("SLIME_RAY_SCRATCH")
    scratch = Path(setting).absolute() if setting else Path(tempfile.gettempdir(), f"slime-ray-{os.getuid()}")
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_private = scratch.stat().st_uid == os.getuid() and not scratch.is_symlink()
    except OSError as error:
        raise InputError(
            f"{scratch} cannot be made: {error.strerror}. Name another folder in SLIME_RAY_SCRATCH."
        ) from None
    if not (is_private or setting):
        raise InputError(f"{scratch} belongs to somebody else. Name another folder in SLIME_RAY_SCRATCH.")
    return scratch


def _make_room(store: fs.FileSystem, path: str) -> None:
    """Only real file systems have folders."""
    if isinstance(store, fs.LocalFileSystem):
        store.create_dir(str(PurePosixPath(path).parent))


def _is_skipped(name: str, skip: Container[str]) -> bool:
    return any(part in skip or part in TEMPORARY_FOLDERS for part in PurePosixPath(name).parts[:-1])


def _files(folder: Path) -> list[Path]:
    """Whole files, not those that are being written under another name."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not _is_skipped(path.relative_to(folder).as_posix(), ())
        and not any(_is_partial(part) for part in path.relative_to(folder).parts)
    ]


def _is_partial(name: str) -> bool:
    return name.endswith((".partial", ".lock")) or (name.startswith(".") and name != files.RECORD)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


_LOCK = threading.Lock()


@lru_cache(maxsize=8)
def _store(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path of its root there."""
    with _LOCK:
        try:
            store, base = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, OSError) as error:
            address = strip_credentials(url)
            raise InputError(
                f"--storage {address}: {redact_sentence(str(error).splitlines()[0].replace(url, address))}."
            ) from None
    return store, base.rstrip("/")
