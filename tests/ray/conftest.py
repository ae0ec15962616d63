"""Studies of tests do not wait for the disk: each entry of one would."""

import os
import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is written is not brought to the disk at once."""

    def pragma(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    event.listen(Engine, "connect", pragma)
    yield
    event.remove(Engine, "connect", pragma)
