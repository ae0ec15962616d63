"""Folders that are made once and shared: by the trials of a sweep, by its resumption, by the next sweep.

A folder is named by a hash of everything it depends on. It is built under another name and moved into place when whole,
behind a lock: a killed run leaves nothing half-made, and two runs do not build the same thing. The ranks of a process
group make it together. Where the storage is an object store, a machine that lacks a folder looks there first.

What a folder holds is recorded in it, and compared whenever it is used: a damaged one is made again.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from slime_ray.errors import SlimeRayError, is_memory_error
from slime_ray.runs import files
from slime_ray.runs.store import RunStore
from slime_ray.training.orders import Report
from slime_ray.training.outcome import StageError, one_sentence, patiently
from slime_ray.world import World

LOCK_SECONDS = 10.0
STORAGE_MINUTES = 15.0
"""How long an object store may refuse a folder before that counts as an error."""
STAGES = ".stages"
logger = logging.getLogger(__name__)


def cached(storage: RunStore, kind: str, key: str, make: Callable[[Path], None], report: Report) -> Path:
    """The storage's folder of `kind` and `key`; `make` fills it if it is not there, or not whole.

    With several ranks all of them call `make` with the same folder, and only rank 0 may write into it. Raises
    StageError where it cannot be made.
    """
    world = World.current()
    folder = storage.root / STAGES / f"{kind}-{key}"
    if world.broadcast(world.main and files.damage(folder) is None):
        return _brought(storage, folder, report)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        with stage_errors("made", storage):
            before: dict[str, str | None] | None = None
            if world.main:
                folder.parent.mkdir(parents=True, exist_ok=True)
                _acquire(lock, lambda: report({"doing": f"waiting for {kind}"}))
                before = _lacking(storage, folder, report)
            if world.broadcast(before is not None):
                with files.atomic_path(folder) if world.main else nullcontext(folder) as partial:
                    if world.main:
                        report({"doing": f"making {kind}"})
                        clear_unfinished(storage, stage=folder.name)
                        partial.mkdir()
                    partial = world.broadcast(partial)
                    make(partial)
                    if world.main:
                        files.seal(partial)
                if world.main:
                    _patiently(lambda: storage.push(folder), report)
                # Nobody reads it before it stands under its name.
                world.broadcast(None)
                _refuse_other_weights(folder, before or {})
    finally:
        if world.main:
            lock.release()
    return _brought(storage, folder, report)


def _lacking(storage: RunStore, folder: Path, report: Report) -> dict[str, str | None] | None:
    """The digests of a folder that has to be made, if there was one that is not whole; None where there is no need."""
    damaged = files.damage(_brought(storage, folder, report, locked=True))
    before = files.recorded_digests(folder)
    if damaged and folder.is_dir():
        _tell(f"A shared stage is not whole and is made again: {damaged}.", report)
        if storage.url is not None:
            # Nobody may fetch it meanwhile.
            _patiently(lambda: storage.remove(folder), report)
    return before if damaged else None


def _refuse_other_weights(folder: Path, before: Mapping[str, str | None]) -> None:
    """Raise StageError where a stage that is made again has other weights: finished trials began with the old ones."""
    now = files.recorded_digests(folder)
    if changed := [name for name in before if name.endswith(".safetensors") and now.get(name) != before[name]]:
        raise StageError(
            f"{folder} was damaged, and what was made again has other weights ({changed[0]}), as it may on another "
            "machine, on a GPU or with other versions. Start the run anew under another name with --name."
        )


def _tell(sentence: str, report: Report) -> None:
    logger.warning(sentence)
    report({"notice": sentence})


def clear_unfinished(storage: RunStore, *, stage: str | None = None, seconds: float = 0.0) -> None:
    """Delete what killed processes left of folders that they were making, but for those that are being made.

    stage: name of the stage folder whose lock this process holds. seconds: how long to wait for the locks of processes
    that are about to end.
    """
    for path in (storage.root / STAGES).glob(".*"):
        name = path.name[1:].rpartition(".")[0]
        if name == stage:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(Timeout, OSError), FileLock(path.with_name(f"{name}.lock")).acquire(timeout=seconds):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def stage_errors(done: str, storage: RunStore) -> Iterator[None]:
    """Raise whatever goes wrong with shared stages as a StageError, but for memory that ran out: no trial is to blame.

    Args:
        done: What could not be done with them: "made" or "used".
        storage: Where damaged files are looked for, to be named.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlimeRayError) or is_memory_error(error):
            raise
        logger.info("The shared stages could not be %s.", done, exc_info=True)
        refusal = files.storage_error(error)
        reasons = [*_damaged(storage), one_sentence(refusal or error).rstrip(".")]
        way_out = (
            f" Make room in {storage.display_address}, and give the same command with --resume." if refusal else ""
        )
        raise StageError(f"The shared stages could not be {done}: {'; '.join(reasons)}.{way_out}") from error


def _damaged(storage: RunStore) -> list[str]:
    """What is wrong with the stages on this machine."""
    with suppress(OSError):
        records = sorted((storage.root / STAGES).glob(f"[!.]*/{files.RECORD}"))
        return [damage for record in records if (damage := files.damage(record.parent))]
    return []


def _brought(storage: RunStore, folder: Path, report: Report, *, locked: bool = False) -> Path:
    """The folder, from the object store if this machine lacks it, or part of it, and it is there."""
    if storage.url is None or files.damage(folder) is None:
        return folder

    def bring() -> None:
        if files.damage(folder) is not None and storage.has(folder / files.RECORD):
            if folder.is_dir():
                _tell(f"A shared stage is not whole here and is fetched again: {files.damage(folder)}.", report)
            # What was fetched before would count as up to date.
            shutil.rmtree(folder, ignore_errors=True)
            storage.pull(folder)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext() if locked else FileLock(folder.with_name(f"{folder.name}.lock")):
        _patiently(bring, report)
    return folder


def _patiently(work: Callable[[], None], report: Report) -> None:
    patiently(work, report, minutes=STORAGE_MINUTES)


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
    hashed = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        hashed.update(file.name.encode())
        size, time = file.stat().st_size, file.stat().st_mtime_ns
        hashed.update(f"{size} {time}".encode() if by_time else files.digest(file, size, time))
    return hashed.hexdigest()[:16]
