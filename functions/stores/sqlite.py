"""Deployments and blobs on this machine: one SQLite file, and blobs as files beside it."""

import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import BinaryIO, Final

import msgspec

from functions.deploy.record import Deployment, Event, Step, decode_record, encode_record
from functions.deploy.store import ConflictError, NotFoundError
from functions.stores.digests import check_digest, read_checked
from shared.errors import StorageError

BUSY_SECONDS: Final = 30
"""How long a write waits for other processes' writes, each of which takes about a millisecond."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS deployment (
  name TEXT PRIMARY KEY, uid TEXT NOT NULL, version INTEGER NOT NULL, step TEXT NOT NULL, record BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS event (
  name TEXT NOT NULL, uid TEXT NOT NULL, id TEXT NOT NULL, event BLOB NOT NULL, PRIMARY KEY (name, uid, id)
) STRICT, WITHOUT ROWID;
"""
_CHUNK: Final = 1 << 20
_PAUSE: Final = 0.01
_SYNCHRONOUS: Final = "FULL"  # a resource is recorded before it is made, whatever the machine does then


class SqliteStore:
    """See `functions.deploy.store.DeploymentStore`. Threads and processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError("deploy.store", f"cannot make {path.parent}: {error}") from error
        with self._transaction(write=True) as connection:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)

    def create(self, deployment: Deployment, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`."""
        with self._transaction(write=True) as connection:
            row = connection.execute(
                "SELECT step FROM deployment WHERE name = ?", (deployment.name,)
            ).fetchone()
            if row is not None and row[0] != Step.REMOVED.value:
                raise ConflictError("deploy.name_taken", f"there is a deployment {deployment.name} already")
            connection.execute("INSERT OR REPLACE INTO deployment VALUES (?, ?, ?, ?, ?)", _row(deployment))
            _add_events(connection, deployment, events)

    def get(self, name: str) -> Deployment:
        """See `DeploymentStore`."""
        with self._transaction() as connection:
            row = connection.execute("SELECT record FROM deployment WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFoundError("deploy.unknown", f"there is no deployment {name[:80]!a}")
        return decode_record(row[0])

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`."""
        name, uid, version, step, record = _row(deployment)
        with self._transaction(write=True) as connection:
            changed = connection.execute(
                "UPDATE deployment SET version = ?, step = ?, record = ? "
                "WHERE name = ? AND uid = ? AND version = ?",
                (version, step, record, name, uid, expected),
            ).rowcount
            if changed != 1:
                raise ConflictError(
                    "deploy.conflict", f"deployment {deployment.name} is not at version {expected} any more"
                )
            _add_events(connection, deployment, events)

    def list(self, after: str = "", limit: int = 100) -> Sequence[Deployment]:
        """See `DeploymentStore`."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT record FROM deployment WHERE name > ? ORDER BY name LIMIT ?", (after, limit)
            ).fetchall()
        return [decode_record(row[0]) for row in rows]

    def events(self, name: str, after: str = "", limit: int = 200) -> Sequence[Event]:
        """See `DeploymentStore`."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT event.event FROM event JOIN deployment USING (name, uid) "
                "WHERE name = ? AND id > ? ORDER BY id LIMIT ?",
                (name, after, limit),
            ).fetchall()
        return [msgspec.json.decode(row[0], type=Event) for row in rows]

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        try:
            # a deferred transaction that turns into a write can fail with others waiting: ask for it first
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StorageError("deploy.store", f"the store at {self._path} failed: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
                connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS}")
                _log_ahead(connection)
            except sqlite3.Error as error:
                raise StorageError("deploy.store", f"cannot open {self._path}: {error}") from error
            self._local.connection = connection
        return connection


class FileBlobs:
    """See `functions.deploy.store.BlobStore`: one file per blob, named by its digest, written whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError("deploy.blob.store", f"cannot make {directory}: {error}") from error

    def put(self, data: bytes) -> str:
        """See `BlobStore`."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._place(digest).exists():
            self._write(digest, lambda file: file.write(data))
        return digest

    def put_file(self, path: Path) -> str:
        """See `BlobStore`."""
        with _storage(path), path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            if not self._place(digest).exists():
                source.seek(0)
                self._write(digest, lambda file: _copy(source, file))
        return digest

    def get(self, digest: str, limit: int) -> bytes:
        """See `BlobStore`."""
        with self.open(digest) as file, _storage(self._place(digest)):
            return read_checked(file, digest, limit)

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore`."""
        try:
            return self._place(digest).open("rb")
        except OSError as error:
            raise NotFoundError("deploy.blob", f"there is no blob {digest[:64]!a}") from error

    def _place(self, digest: str) -> Path:
        check_digest(digest)
        return self._directory / digest

    def _write(self, digest: str, write: Callable[[BinaryIO], object]) -> None:
        with _storage(self._directory):
            descriptor, temporary = tempfile.mkstemp(dir=self._directory, prefix=".new-")
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                    write(file)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(temporary, self._place(digest))  # noqa: PTH105 - a temporary name from mkstemp
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Have the file written ahead; of several that make a new one SQLite lets all but one fail at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _row(deployment: Deployment) -> tuple[str, str, int, str, bytes]:
    return (
        deployment.name,
        deployment.uid,
        deployment.version,
        deployment.step.value,
        encode_record(deployment),
    )


def _add_events(connection: sqlite3.Connection, deployment: Deployment, events: Sequence[Event]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?)",
        [(deployment.name, deployment.uid, event.id, msgspec.json.encode(event)) for event in events],
    )


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError("deploy.blob.store", f"cannot read or write {path}: {error}") from error
