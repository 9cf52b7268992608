"""SQLite and files hold to the contract, between threads and between processes."""

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.errors import StorageError
from tests.functions.stores.contract import (
    BlobContract,
    BlobHarness,
    StoreContract,
    StoreHarness,
    check_all_marks,
    deployment,
    write_to_all,
)
from tests.shared.refusal import refuses


@pytest.fixture
def unsynced() -> None:
    """The store as it is deployed: it waits for the disk."""


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[StoreHarness]:
        path = tmp_path / "state" / "deployments.db"
        store = SqliteStore(path)
        yield StoreHarness(store, lambda: SqliteStore(path), SqliteStore.close)
        store.close()


class TestFileBlobs(BlobContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> BlobHarness:
        place = tmp_path / "blobs"
        return BlobHarness(FileBlobs(place), lambda digest, data: _spoil(place / digest, data))


def _spoil(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def _write(path: Path, writer: str, names: list[str], seed: int) -> None:
    store = SqliteStore(path)
    write_to_all(store, writer, names, seed)
    store.close()


def test_processes_lose_no_update_of_a_thousand_deployments(tmp_path: Path) -> None:
    path = tmp_path / "deployments.db"
    names = [f"app{number:04d}" for number in range(1000)]
    store = SqliteStore(path)
    for name in names:
        store.create(deployment(name))
    start = multiprocessing.get_context("spawn")
    writers = ["writer0", "writer1"]
    processes = [
        start.Process(target=_write, args=(path, writer, names, seed)) for seed, writer in enumerate(writers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    check_all_marks(store, writers, names)
    store.close()


def test_a_change_counts_when_the_disk_has_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "d.db")
    with store._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_a_new_file_that_somebody_writes_to_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "d.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE other (one TEXT)")
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        other.execute("COMMIT")

    monkeypatch.setattr(
        "functions.stores.sqlite.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    )
    store = SqliteStore(tmp_path / "d.db")
    assert len(pauses) == 1
    assert list(store.list()) == []
    store.close()
    other.close()


def test_says_when_the_file_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "d.db").write_bytes(b"no database" * 1000)

    with refuses("deploy.store", StorageError):
        SqliteStore(tmp_path / "d.db")


def test_refuses_a_record_of_another_format(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "d.db")
    store.create(deployment(format=2))
    with refuses("deploy.record", StorageError):
        store.get("app")
    connection = sqlite3.connect(tmp_path / "d.db")
    connection.execute("UPDATE deployment SET record = ?", (b"{",))
    connection.commit()
    connection.close()
    with refuses("deploy.record", StorageError):
        store.get("app")
    store.close()
