"""The engine's hold on a record: many events in one step go out in as many writes as a store takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from functions.deploy.record import Deployment, Event, Lease
from functions.deploy.store import MAX_EVENTS
from functions.deploy.work import LeasedWork, LeaseLostError
from functions.stores.sqlite import FileBlobs, SqliteStore
from tests.functions.deploy.memory_cloud import NOW, all_events, some_deployment
from tests.shared.refusal import refuses


class Counted(SqliteStore):
    """Remembers how many events came with each write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes: list[int] = []

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        super().replace(deployment, expected, events)
        self.writes.append(len(events))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counted]:
    made = Counted(tmp_path / "deployments.sqlite")
    made.create(some_deployment(lease=Lease("one", "token", NOW + 60)))
    yield made
    made.close()


def work_on(store: Counted, tmp_path: Path) -> LeasedWork:
    return LeasedWork(store, FileBlobs(tmp_path / "blobs"), store.get("web"), lambda: NOW)


def test_no_write_has_more_events_than_a_store_takes(store: Counted, tmp_path: Path) -> None:
    work = work_on(store, tmp_path)
    for number in range(2 * MAX_EVENTS + 3):
        work.say(f"event {number}")
    work.save()
    assert store.writes == [MAX_EVENTS, MAX_EVENTS, 3]
    assert [one.message for one in all_events(store)] == [
        f"event {number}" for number in range(2 * MAX_EVENTS + 3)
    ]
    assert store.get("web") == work.deployment


def test_a_record_does_not_grow_with_each_redeploy(store: Counted, tmp_path: Path) -> None:
    work = work_on(store, tmp_path)
    for number in range(20):
        for place in ("here", "there"):
            image = work.present(work.intend("image", f"image-{number}", place))
            work.intend("disk", f"disk-{number}", place)
            work.gone(image)
    found = store.get("web").resources
    assert [(one.name, one.place) for one in found if one.kind == "image"] == [
        ("image-19", "here"),
        ("image-19", "there"),  # every place that was ever used is still known
    ]
    assert len([one for one in found if one.kind == "disk" and one.state == "intended"]) == 40


def test_events_that_overflow_notice_a_lost_lease(store: Counted, tmp_path: Path) -> None:
    work = work_on(store, tmp_path)
    found = store.get("web")
    taken = msgspec.structs.replace(found, version=2, lease=Lease("other", "other", NOW + 60))
    store.replace(taken, 1)
    with refuses("deploy.lease", LeaseLostError):
        for number in range(MAX_EVENTS):
            work.say(f"event {number}")
    assert store.get("web") == taken
