"""Studies of tests do not wait for the disk: each entry of one would."""

import os
import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from tests.ray import studies


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


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is promised of a study holds for both places that it may be in."""
    if request.param == "database":
        monkeypatch.setattr(studies, "place", studies.in_database)
