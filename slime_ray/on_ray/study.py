"""Where a search's study is kept: a journal file in the run's folder, or a database."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from slime_ray.errors import InputError, RunError
from slime_ray.runs.redaction import redact, redact_sentence, remember
from slime_ray.training.outcome import one_sentence

MADE_AGAIN = "it is made again from the trials' results"


class StudyFailed(RunError):
    """The study could not be read or written. reason: without a full stop."""

    def __init__(self, error: Exception):
        failed = f"study's database failed ({redact_sentence(one_sentence(error))})"
        self.reason = f"the {failed}"
        super().__init__(
            f"The {failed}. What finished is kept; give the same command with --resume once it can be used again, or "
            f"without the damaged file: {MADE_AGAIN}."
        )


@contextmanager
def asking() -> Iterator[None]:
    """Around whatever needs the study. Raises StudyFailed."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise StudyFailed(error) from error


def study_storage(run: Path, url: str | None = None) -> BaseStorage:
    """Where the run's study is: a journal file in its folder, or the database at `url`, as SQLAlchemy writes it.

    `optuna-dashboard` opens either as it is.

    Raises:
        InputError: the database cannot be used, or the journal cannot be read.
    """
    if url is None:
        return _journal(run / "study.journal")
    remember(url)
    where = redact(url)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError) as error:
        reason, way = str(error).splitlines()[0], "Install its driver, such as psycopg[binary] for postgresql://"
    except ArgumentError:
        reason, way = "it is no such address", "Write it as postgresql://user:password@host/database"
    except (SQLAlchemyError, RuntimeError) as error:
        reason, way = str(error).splitlines()[0], "Start the database or correct the address"
        if url.startswith("sqlite"):
            way += f"; a damaged file may be moved away, and {MADE_AGAIN}"
    raise InputError(f"The study's database {where} cannot be used: {redact_sentence(reason).rstrip('.')}. {way}.")


def _journal(path: Path) -> BaseStorage:
    try:
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # What a full disk has cut off would join the next entry to something that cannot be read.
            os.truncate(path, len(whole))
        if lines := whole.splitlines():
            # Of the last line Optuna complains only when another follows.
            json.loads(lines[-1])
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror}. Mend that, and give the command again.") from None
    except Exception as error:  # Optuna raises whatever an entry that it did not write makes it raise.
        raise InputError(
            f"{path} is damaged: {one_sentence(error).rstrip('.')}. Move it away, and give the command with --resume: "
            f"{MADE_AGAIN}."
        ) from None
