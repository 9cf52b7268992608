"""What the function remembers, in one SQLite file: for one process on one machine, in development."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from functions.governance.state import REMEMBER_SECONDS, Cursor
from shared.errors import StorageError, UnavailableError

CLAIM_SECONDS: Final = 60
"""After so long whoever was at it has died."""

BUSY_SECONDS: Final = 30
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS once (key TEXT PRIMARY KEY, done INTEGER NOT NULL, until INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS cursor (
  one INTEGER PRIMARY KEY, number INTEGER NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS dead (message TEXT PRIMARY KEY, code TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
"""


class SqliteMemory:
    """See `Memory`. Processes may share the file. Raises `StorageError("governance.state")`."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        with self._transaction() as connection:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)

    def do(self, key: str, action: Callable[[], None]) -> bool:
        """See `Memory`."""
        now = self._clock()
        with self._transaction() as connection:
            connection.execute("DELETE FROM once WHERE until <= ?", (now,))
            row = connection.execute("SELECT done FROM once WHERE key = ?", (key,)).fetchone()
            if row is None:
                connection.execute("INSERT INTO once VALUES (?, 0, ?)", (key, now + CLAIM_SECONDS))
        if row is not None:
            if not row[0]:
                raise _busy()
            return False
        try:
            action()
        except BaseException:
            with self._transaction() as connection:
                connection.execute("DELETE FROM once WHERE key = ?", (key,))
            raise
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO once VALUES (?, 1, ?)", (key, now + REMEMBER_SECONDS))
        return True

    def forget(self, key: str) -> None:
        """See `Memory`."""
        now = self._clock()
        with self._transaction() as connection:
            connection.execute("DELETE FROM once WHERE key = ? AND (done OR until <= ?)", (key, now))
            row = connection.execute("SELECT 1 FROM once WHERE key = ?", (key,)).fetchone()
        if row is not None:
            raise _busy()

    def cursor(self) -> Cursor | None:
        """See `Memory`."""
        with self._transaction() as connection:
            row = connection.execute("SELECT number, hash FROM cursor").fetchone()
        return None if row is None else Cursor(*row)

    def move(self, cursor: Cursor) -> None:
        """See `Memory`."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO cursor VALUES (1, ?, ?)", (cursor.number, cursor.hash))

    def bury(self, message: str, code: str, now: int) -> None:
        """See `Memory`."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO dead VALUES (?, ?, ?)", (message, code, now))

    def buried(self) -> list[str]:
        """Return the messages that were given up."""
        with self._transaction() as connection:
            return [row[0] for row in connection.execute("SELECT message FROM dead ORDER BY message")]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StorageError("governance.state", f"the state at {self._path} failed: {error}") from error


def _busy() -> UnavailableError:
    return UnavailableError("governance.busy", "another process is at the same delivery")
