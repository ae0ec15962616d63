"""Verdicts that were paid for or took long, kept in SQLite so that none is paid for twice, and what they cost.

The folder holds one file for each host, which alone writes to it; all files are looked through. A paid judgment is
written when it arrives, whether it holds a valid verdict or not; only valid ones are ever found again.

    verdicts    key -> value: a label, or a number as text; request: the judgment that said so, if there was one
    requests    every request that was or may have been paid for, with the judgment's text, for one run and judge
    batched     which key, of which request, each batch holds, under a token that names the batch before it has an id
    batches     the batches' ids, once they are known, and which are done with
"""

import hashlib
import logging
import platform
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from operator import add
from pathlib import Path
from typing import TypeVar

from slime_ray.config.judge import JudgeBudget, Prices
from slime_ray.errors import RunError

T = TypeVar("T")
VERDICTS = ".verdicts"
"""Folder, in a storage, of the verdicts that are kept, beside its runs."""
BUSY_SECONDS = 60.0
ELSEWHERE_SECONDS = 10.0
"""How old the known spending of other hosts may be."""
AT_ONCE = 500
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judge TEXT, value TEXT NOT NULL, request INTEGER, time REAL);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, judge TEXT, run TEXT, key TEXT, time REAL, judgment TEXT, value TEXT,
    model TEXT, input_tokens INTEGER, output_tokens INTEGER
);
CREATE TABLE IF NOT EXISTS batched (
    token TEXT, judge TEXT, key TEXT, request INTEGER, round INTEGER, time REAL, PRIMARY KEY (token, key)
);
CREATE TABLE IF NOT EXISTS batches (token TEXT PRIMARY KEY, name TEXT, ended INTEGER);
CREATE INDEX IF NOT EXISTS spending ON requests (judge, run, input_tokens, output_tokens);
"""
_BatchRow = tuple[str, str, str, int, int, float]
"""A row of `batched`."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A judgment. model: as the endpoint calls it. Tokens are None where the endpoint does not say.

    lack: why the text may hold no verdict, None where the endpoint names no reason.
    """

    text: str
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    lack: str | None = None


@dataclass(frozen=True)
class OpenBatch:
    """A batch that was submitted and not done with. name: its id at the endpoint, None where that did not arrive.

    requests: by key, all that it holds. round: how often they had been judged before. submitted: a time.
    """

    token: str
    name: str | None
    round: int
    submitted: float
    requests: Mapping[str, int]


@dataclass(frozen=True)
class Spending:
    """What one judge has taken in one run."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Spending") -> "Spending":
        return Spending(*map(add, astuple(self), astuple(other)))

    def cost(self, prices: Prices | None) -> float | None:
        """In the prices' currency; None without prices."""
        if prices is None:
            return None
        return (self.input_tokens * prices.input + self.output_tokens * prices.output) / 1e6

    def spends(self, budget: JudgeBudget, prices: Prices | None) -> str | None:
        """Which part of the budget is spent, as words; None while there is some left."""
        for name, limit, spent in (
            ("requests", budget.requests, self.requests),
            ("tokens", budget.tokens, self.input_tokens + self.output_tokens),
            ("cost", budget.cost, self.cost(prices)),
        ):
            if limit is not None and spent is not None and spent >= limit:
                return f"budget.{name} {limit:g} is spent"
        return None


class BudgetSpent(Exception):
    """No further request may be made."""


class Verdicts:
    """The cache of one storage, used for one run. Threads and processes of a host may use it at the same time."""

    def __init__(self, folder: Path, *, run: str):
        self.folder, self.run = folder, run
        self.host_file = folder / f"{_host()}.sqlite"
        self._lock = threading.Lock()
        self._warned: set[Path] = set()
        self._elsewhere: dict[str, tuple[float, Spending]] = {}

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """Look up the values of the keys: this host's first, then the oldest."""
        entries: dict[str, tuple[float, str]] = {}

        def look(connection: sqlite3.Connection) -> list[tuple[str, float, str]]:
            rows: list[tuple[str, float, str]] = []
            for start in range(0, len(keys), AT_ONCE):
                chunk = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(chunk))
                rows += connection.execute(f"SELECT key, time, value FROM verdicts WHERE key IN ({marks})", chunk)
            return rows

        nothing: list[tuple[str, float, str]] = []
        for path in self._files():
            for key, when, value in self._read(path, look, nothing):
                when = float("-inf") if path == self.host_file else when
                if key not in entries or when < entries[key][0]:
                    entries[key] = (when, value)
        return {key: value for key, (_, value) in entries.items()}

    def keep(self, judge: str, values: Mapping[str, str]) -> None:
        """Keep verdicts that cost no request."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, NULL, ?)",
                [(key, judge, value, time.time()) for key, value in values.items()],
            )

    def begin(self, judge: str, key: str, *, budget: JudgeBudget, prices: Prices | None) -> int:
        """Note a request before it is made, so that no process makes one too many. Raises BudgetSpent."""
        elsewhere = self._spent_elsewhere(judge)
        with self._writing() as connection:
            spent = self._spending(connection, judge) + elsewhere
            if reason := spent.spends(budget, prices):
                raise BudgetSpent(reason)
            return self._note(connection, judge, key)

    def _note(self, connection: sqlite3.Connection, judge: str, key: str) -> int:
        values = (judge, self.run, key, time.time())
        cursor = connection.execute("INSERT INTO requests (judge, run, key, time) VALUES (?, ?, ?, ?)", values)
        return int(cursor.lastrowid or 0)

    def finish(self, request: int, reply: Reply, value: str | None) -> str | None:
        """Keep a judgment with its verdict, if it is valid. Returns the verdict that counts: the first one kept."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE requests SET judgment = ?, value = ?, model = ?, input_tokens = ?, output_tokens = ? "
                "WHERE id = ?",
                (reply.text, value, reply.model, reply.input_tokens, reply.output_tokens, request),
            )
            if value is None:
                return None
            connection.execute(
                "INSERT OR IGNORE INTO verdicts SELECT key, judge, value, id, ? FROM requests WHERE id = ?",
                (time.time(), request),
            )
            (verdict,) = connection.execute(
                "SELECT value FROM verdicts WHERE key = (SELECT key FROM requests WHERE id = ?)", (request,)
            ).fetchone()
            return str(verdict)

    def abandon(self, request: int) -> None:
        """Forget a request that was refused, and so was not paid for."""
        with self._writing() as connection:
            connection.execute("DELETE FROM requests WHERE id = ?", (request,))

    def begin_batch(
        self, token: str, judge: str, keys: Sequence[str], rounds: int, *, budget: JudgeBudget
    ) -> tuple[list[str], str | None]:
        """Note the requests of a batch before it is created: not those that an open batch holds, nor beyond the budget.

        Returns:
            The keys that it is to hold, and which budget is spent, if one is.
        """
        elsewhere, now = self._spent_elsewhere(judge), time.time()
        batch_keys: list[str] = []
        with self._writing() as connection:
            spent = self._spending(connection, judge) + elsewhere
            open_keys = {key for (key,) in connection.execute("SELECT key FROM batched")}
            for key in keys:
                if key in open_keys:
                    continue
                if reason := spent.spends(budget, None):
                    return batch_keys, reason
                self._hold(connection, token, judge, key, rounds, now)
                spent += Spending(1)
                batch_keys.append(key)
        return batch_keys, None

    def _hold(
        self, connection: sqlite3.Connection, token: str, judge: str, key: str, rounds: int, submitted: float
    ) -> int:
        row = (token, judge, key, self._note(connection, judge, key), rounds, submitted)
        connection.execute("INSERT INTO batched VALUES (?, ?, ?, ?, ?, ?)", row)
        return row[3]

    def name_batch(self, token: str, name: str) -> None:
        """Keep a batch's id."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, 0)", (token, name))

    def end_batch(self, token: str, *, forget: bool = False) -> None:
        """Be done with a batch. forget: its requests, too, since it was not created."""
        with self._writing() as connection:
            if forget:
                connection.execute(
                    "DELETE FROM requests WHERE id IN (SELECT request FROM batched WHERE token = ?)", (token,)
                )
            connection.execute("DELETE FROM batched WHERE token = ?", (token,))
            # It stays, since another host may have written the batch down.
            connection.execute("INSERT OR REPLACE INTO batches VALUES (?, NULL, 1)", (token,))

    def open_batches(self, keys: Sequence[str]) -> list[OpenBatch]:
        """Return the open batches, of all hosts, that hold any of these keys, the oldest first.

        Those of other hosts are written down here as well, so their requests count once more in a budget.
        """
        names: dict[str, str | None] = {}
        rows_by_token: dict[str, tuple[Path, list[_BatchRow]]] = {}
        # This host's own come last, and count.
        for path in sorted(self._files(), key=lambda path: path == self.host_file):
            nothing: tuple[list[_BatchRow], list[tuple[str, str | None]]] = ([], [])
            rows, batch_names = self._read(path, _batches, nothing)
            names |= {token: name for token, name in batch_names if names.get(token, "") is not None}
            for row in rows:
                place, token_rows = rows_by_token.get(row[0], (path, []))
                rows_by_token[row[0]] = (path, [*(token_rows if place == path else []), row])
        batches: list[OpenBatch] = []
        key_set = set(keys)
        for token, (path, rows) in rows_by_token.items():
            if names.get(token, "") is None:
                if path == self.host_file:
                    # Another host was done with it: what it left without a verdict may be asked for again.
                    self.end_batch(token)
                continue
            if key_set.isdisjoint(row[2] for row in rows):
                continue
            requests = {row[2]: row[3] for row in rows}
            if path != self.host_file:
                with self._writing() as connection:
                    # Another trial of this host may have written it down since.
                    local_requests = dict(
                        connection.execute("SELECT key, request FROM batched WHERE token = ?", (token,))
                    )
                    requests = local_requests or {
                        row[2]: self._hold(connection, token, row[1], row[2], *row[4:]) for row in rows
                    }
            batches.append(OpenBatch(token, names.get(token), rows[0][4], rows[0][5], requests))
        return sorted(batches, key=lambda batch: batch.submitted)

    def spent(self, judge: str) -> Spending:
        """Return what the judge has taken in this run, on all hosts."""
        spending = Spending()
        if self.host_file.exists():
            spending = self._read(self.host_file, lambda connection: self._spending(connection, judge), spending)
        return spending + self._spent_elsewhere(judge)

    def _spent_elsewhere(self, judge: str) -> Spending:
        with self._lock:
            looked, spent = self._elsewhere.get(judge, (float("-inf"), Spending()))
        if time.monotonic() - looked < ELSEWHERE_SECONDS:
            return spent
        spent = Spending()
        for path in self._files():
            if path != self.host_file:
                spent += self._read(path, lambda connection: self._spending(connection, judge), Spending())
        with self._lock:
            self._elsewhere[judge] = (time.monotonic(), spent)
        return spent

    def _spending(self, connection: sqlite3.Connection, judge: str) -> Spending:
        row = connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0) FROM requests "
            "WHERE judge = ? AND run = ?",
            (judge, self.run),
        ).fetchone()
        return Spending(*row)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.sqlite"))

    def _read(self, path: Path, look: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Apply `look` to a file. One of another host that cannot be read counts as absent."""
        local = path == self.host_file
        # Another host's file may be in use there, and is not worth waiting for.
        address, seconds = f"{path.absolute().as_uri()}?mode={'rw' if local else 'ro'}", BUSY_SECONDS if local else 1.0
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=seconds)) as connection:
                return look(connection)
        except sqlite3.Error as error:
            if local and "no such table" in str(error):
                # Another process is about to write the first row.
                return otherwise
            if local:
                raise self._damaged(error) from None
            if path not in self._warned:
                self._warned.add(path)
                logger.warning("%s cannot be read and counts as absent: %s", path, error)
            return otherwise

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """This host's file, in one transaction. A rollback journal, as a write-ahead log wants a disk of its own."""
        try:
            with self._lock:
                self.folder.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(self.host_file, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in filter(str.strip, _TABLES.split(";")):
                        connection.execute(statement)
                    # Whatever is raised in between closes the connection, which takes everything back.
                    yield connection
                    connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise self._damaged(error) from None

    def unreadable(self, value: str) -> RunError:
        """The error of a kept value that is no verdict of its judge."""
        return RunError(
            f"{self.folder} keeps {value[:40]!r} as a verdict, which is none. A file there is damaged or was changed: "
            "move it away, and the other files there are still used."
        )

    def _damaged(self, error: Exception) -> RunError:
        return RunError(
            f"{self.host_file}, which keeps verdicts, cannot be used: {error}. Make room or correct the rights; if it "
            "is damaged, move it away: the other files there are still used."
        )


def _batches(connection: sqlite3.Connection) -> tuple[list[_BatchRow], list[tuple[str, str | None]]]:
    """Return the requests in open batches, and the batches' names, None for those that are done with."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'batched'").fetchone():
        # Written by an older version.
        return [], []
    rows = connection.execute("SELECT token, judge, key, request, round, time FROM batched").fetchall()
    return rows, connection.execute("SELECT token, CASE WHEN ended THEN NULL ELSE name END FROM batches").fetchall()


def _host() -> str:
    """A name that no other machine has at the same time, even where host names repeat: locks hold within one kernel."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = f"{uuid.getnode():x}"
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in platform.node()).lstrip(".")
    return f"{name}-{hashlib.sha256(kernel.encode()).hexdigest()[:8]}"
