"""What is remembered, in SQLite, in DynamoDB by Powertools, and in Firestore, keeps to one contract."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from functions.google_api.credentials import anonymous_credentials
from functions.google_api.rest import GoogleSession
from functions.governance.dynamodb_state import DynamoDbMemory
from functions.governance.firestore_state import CLAIM_SECONDS, FirestoreMemory
from functions.governance.sqlite_state import SqliteMemory
from functions.governance.state import Cursor, Memory
from shared.errors import StorageError, UnavailableError
from tests.fakes.aws import AwsServer
from tests.fakes.firestore import Firestore
from tests.fakes.google_rest import GoogleRest
from tests.functions.deploy.memory_cloud import Clock
from tests.functions.governance.site import make_table
from tests.shared.refusal import refuses


@pytest.fixture
def rest() -> Iterator[GoogleRest]:
    with GoogleRest(["firestore.v1"]) as served:
        Firestore(served)
        yield served
    assert not served.violations


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "dynamodb", "firestore"])
def memory(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Memory:
    if request.param == "sqlite":
        return SqliteMemory(tmp_path / "state.sqlite", clock)
    if request.param == "dynamodb":
        client = request.getfixturevalue("aws").client("dynamodb")
        return DynamoDbMemory(make_table(client), client)
    rest = request.getfixturevalue("rest")
    session = GoogleSession(anonymous_credentials())
    return FirestoreMemory(session, "p1", "(default)", clock, rest.url)


def fail() -> None:
    raise UnavailableError("aws.unavailable", "the queue is down")


def test_a_thing_is_done_once(memory: Memory) -> None:
    done: list[int] = []
    assert memory.do("a", lambda: done.append(1))
    assert not memory.do("a", lambda: done.append(2))
    assert memory.do("b", lambda: done.append(3))
    assert done == [1, 3]


def test_what_failed_is_done_again(memory: Memory) -> None:
    with refuses("aws.unavailable", UnavailableError):
        memory.do("a", fail)
    done: list[int] = []
    assert memory.do("a", lambda: done.append(1))
    assert done == [1]


def test_two_at_once_are_told_apart(memory: Memory) -> None:
    def again() -> None:
        memory.do("a", lambda: None)

    with refuses("governance.busy", UnavailableError):
        memory.do("a", again)


def test_what_was_forgotten_is_done_again(memory: Memory) -> None:
    done: list[int] = []
    memory.do("a", lambda: done.append(1))
    memory.forget("a")
    memory.forget("never done")
    assert memory.do("a", lambda: done.append(2))
    assert not memory.do("a", lambda: done.append(3))
    assert done == [1, 2]


def test_what_is_under_way_is_not_forgotten(memory: Memory) -> None:
    with refuses("governance.busy", UnavailableError):
        memory.do("a", lambda: memory.forget("a"))
    assert memory.do("a", lambda: None)


def test_one_thing_within_another_is_remembered_too(memory: Memory) -> None:
    def inner() -> None:
        assert memory.do("inner", lambda: None)

    assert memory.do("outer", inner)
    assert not memory.do("inner", fail)


def test_a_cursor_moves(memory: Memory) -> None:
    assert memory.cursor() is None
    memory.move(Cursor(7, "aa" * 32))
    memory.move(Cursor(9, ""))
    assert memory.cursor() == Cursor(9, "")


def test_a_message_is_buried_once(memory: Memory) -> None:
    memory.bury("look:all:0", "quorum.too_few", 1)
    memory.bury("look:all:0", "quorum.too_few", 2)


class _KilledError(BaseException):
    pass


def _lost(*_: object) -> NoReturn:
    raise _KilledError


@pytest.mark.parametrize("kind", ["sqlite", "firestore"])
def test_a_claim_of_one_that_died_ends(
    kind: str, tmp_path: Path, clock: Clock, rest: GoogleRest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Powertools has this by its own in-progress expiry, on its own clock."""
    made: SqliteMemory | FirestoreMemory = SqliteMemory(tmp_path / "state.sqlite", clock)
    if kind == "firestore":
        made = FirestoreMemory(GoogleSession(anonymous_credentials()), "p1", "(default)", clock, rest.url)

    def die() -> None:
        # nothing of this process runs any more: no claim is given back
        monkeypatch.setattr(made, "_commit" if kind == "firestore" else "_transaction", _lost)
        raise _KilledError

    with pytest.raises(_KilledError):
        made.do("a", die)
    monkeypatch.undo()
    with refuses("governance.busy", UnavailableError):
        made.do("a", lambda: None)
    clock.now += CLAIM_SECONDS + 1
    made.forget("a")
    assert made.do("a", lambda: None)


def test_of_two_that_take_over_a_dead_claim_one_wins(
    clock: Clock, rest: GoogleRest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite and Powertools read and write in one step; Firestore's two are tied by the document's time."""
    first, second = (
        FirestoreMemory(GoogleSession(anonymous_credentials()), "p1", "(default)", clock, rest.url)
        for _ in range(2)
    )

    def die() -> None:
        clock.now += CLAIM_SECONDS + 1
        monkeypatch.setattr(first, "_commit", _lost)
        raise _KilledError

    with pytest.raises(_KilledError):
        first.do("a", die)
    monkeypatch.undo()
    done: list[str] = []
    read = second._get

    def read_and_be_overtaken(name: str) -> dict[str, Any] | None:
        found = read(name)
        assert first.do("a", lambda: done.append("first"))
        return found

    monkeypatch.setattr(second, "_get", read_and_be_overtaken)
    with refuses("governance.busy", UnavailableError):
        second.do("a", lambda: done.append("second"))
    monkeypatch.undo()
    assert not second.do("a", lambda: done.append("second"))
    assert done == ["first"]


def test_a_table_that_fails_is_told(aws: AwsServer) -> None:
    memory = DynamoDbMemory("no-such-table", aws.client("dynamodb"))
    with refuses("governance.state", StorageError):
        memory.do("a", lambda: None)


def test_a_file_that_fails_is_told(tmp_path: Path, clock: Clock) -> None:
    with refuses("governance.state", StorageError):
        SqliteMemory(tmp_path, clock)
