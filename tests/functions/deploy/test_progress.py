"""What guests say of their boot is bounded, kept, and decides nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.progress import MAX_EVENT, MAX_KEPT, RATE_SECONDS, ProgressDesk
from functions.deploy.reconcile import is_overdue
from functions.deploy.record import Deployment, Files, Goal, Lease, Step
from functions.deploy.store import ConflictError, NotFoundError
from functions.deploy.work import LeasedWork
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

NOW = 1_900_000_000
TOKEN = "t" * 43
EVENT = {
    "version": 1,
    "boot": "6f2a90d1c4b7e835",
    "sequence": 8,
    "app_id": "75537828f2ce51be7289709686a69cbfdbb714f1",
    "step": "keys",
    "status": "failed",
    "code": "kms.refused",
}


class Desk:
    """A desk over a store with the deployment `web`, and a clock."""

    def __init__(self, place: Path) -> None:
        self.now = NOW
        self.store = SqliteStore(place / "store.sqlite")
        self.blobs = FileBlobs(place / "blobs")
        self.desk = ProgressDesk(self.store, lambda: self.now)
        self.store.create(
            Deployment(
                name="web",
                uid="uid",
                version=1,
                cloud="local",
                goal=Goal.RUNNING,
                step=Step.LAUNCH,
                files=Files(project={}),
                created_at=NOW,
                updated_at=NOW,
                lease=Lease("runner", "lease", NOW + 600),
                progress_token=TOKEN,
            )
        )

    def take(self, token: str = TOKEN, name: str = "web", **fields: Any) -> None:
        self.desk.take(name, token, json.dumps(EVENT | fields).encode())

    def change(self, **fields: Any) -> None:
        found = self.store.get("web")
        self.store.replace(msgspec.structs.replace(found, version=found.version + 1, **fields), found.version)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


def test_an_event_is_kept_with_its_deployment(desk: Desk) -> None:
    desk.take()
    (hint,) = desk.store.get("web").progress
    assert msgspec.to_builtins(hint) == {"at": NOW} | {
        name: EVENT[name] for name in ("boot", "sequence", "step", "status", "code")
    }


def test_an_event_changes_nothing_else_of_the_record(desk: Desk) -> None:
    before = desk.store.get("web")
    desk.now += 10_000
    desk.take()
    after = desk.store.get("web")
    assert msgspec.structs.replace(after, progress=(), version=before.version) == before
    assert is_overdue(after, desk.now)


@pytest.mark.parametrize(
    ("name", "token"), [("web", "u" * 43), ("web", ""), ("web", TOKEN + "é"), ("other", TOKEN), ("..", TOKEN)]
)
def test_who_does_not_know_the_word_is_told_nothing(desk: Desk, name: str, token: str) -> None:
    with refuses("deploy.progress.unknown", NotFoundError) as caught:
        desk.take(token, name)
    assert caught.value.message == "nobody listens here"
    with refuses("deploy.progress.unknown", NotFoundError):
        desk.desk.take(name, token, b"no json, and it is not looked at")
    assert desk.store.get("web").progress == ()


def test_a_deployment_without_a_word_listens_to_nobody(desk: Desk) -> None:
    desk.change(progress_token="")
    for token in ("", TOKEN):
        with refuses("deploy.progress.unknown", NotFoundError):
            desk.take(token)


def test_a_removed_deployment_listens_to_nobody(desk: Desk) -> None:
    desk.change(step=Step.REMOVED)
    with refuses("deploy.progress.unknown", NotFoundError):
        desk.take()


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "text"},
        {"version": 2},
        {"boot": "6F2A90D1C4B7E835"},
        {"boot": "6f2a90d1c4b7e835\n"},
        {"sequence": 0},
        {"sequence": 100_001},
        {"sequence": "1"},
        {"app_id": "x"},
        {"step": "Keys"},
        {"step": "a" * 33},
        {"step": "keys\x1b[0m"},
        {"status": "running"},
        {"code": "a b"},
        {"code": "a" * 81},
        {"code": "a..b"},
    ],
)
def test_what_is_no_event_is_refused(desk: Desk, fields: dict[str, Any]) -> None:
    with refuses("deploy.request.field", ProtocolError):
        desk.take(**fields)
    assert desk.store.get("web").progress == ()


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1", b"null"])
def test_what_has_other_fields_is_refused(desk: Desk, body: bytes) -> None:
    with refuses("deploy.request.field", ProtocolError):
        desk.desk.take("web", TOKEN, body)


def test_what_is_no_json_is_refused(desk: Desk) -> None:
    with refuses("deploy.request.json.syntax", ProtocolError):
        desk.desk.take("web", TOKEN, b"{")
    with refuses("deploy.request.json.duplicate_key", ProtocolError):
        desk.desk.take("web", TOKEN, b'{"version": 1, "version": 1}')


def test_a_large_event_is_refused(desk: Desk) -> None:
    with refuses("deploy.request.size", ProtocolError):
        desk.desk.take("web", TOKEN, b" " * (MAX_EVENT + 1))


def test_a_flood_is_refused_and_the_newest_are_kept(desk: Desk) -> None:
    for number in range(1, MAX_KEPT + 1):
        desk.take(sequence=number)
    with refuses("deploy.progress.rate", ConflictError):
        desk.take()
    desk.now += RATE_SECONDS
    desk.take(sequence=99)
    kept = [one.sequence for one in desk.store.get("web").progress]
    assert kept == [*range(2, MAX_KEPT + 1), 99]


def test_an_event_that_runners_keep_overtaking_is_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = desk.store.replace

    def overtaken(deployment: Deployment, expected: int, events: Any = ()) -> None:
        found = desk.store.get("web")
        replace(msgspec.structs.replace(found, version=found.version + 1), found.version)
        replace(deployment, expected, events)

    monkeypatch.setattr(desk.store, "replace", overtaken)
    with refuses("deploy.progress.rate", ConflictError):
        desk.take()


def test_a_runner_keeps_what_came_in_while_it_was_at_work(desk: Desk) -> None:
    work = LeasedWork(desk.store, desk.blobs, desk.store.get("web"), lambda: NOW)
    desk.take()
    work.save(attempt=1)
    found = desk.store.get("web")
    assert (found.attempt, len(found.progress)) == (1, 1)


def test_a_word_is_drawn_once_and_only_where_somebody_listens(desk: Desk) -> None:
    desk.change(progress_token="")
    deaf = LeasedWork(desk.store, desk.blobs, desk.store.get("web"), lambda: NOW)
    deaf.make_progress_token()
    assert (deaf.progress_url, desk.store.get("web").progress_token) == ("", "")
    work = LeasedWork(desk.store, desk.blobs, desk.store.get("web"), lambda: NOW, listens_at="https://a.test")
    work.make_progress_token()
    drawn = desk.store.get("web").progress_token
    work.make_progress_token()
    assert len(drawn) == 43
    assert work.progress_url == f"https://a.test/v1/deployments/web/progress/{drawn}"
    desk.take(drawn)
