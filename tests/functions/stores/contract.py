"""What every store of deployments and of blobs must do. A test module inherits a class and gives `harness`.

    class TestSqlite(StoreContract):
        @pytest.fixture
        def harness(self, tmp_path): ...

Stores on the other side of a network inherit the `Remote...` classes, whose harness can misbehave too.
"""

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from functions.deploy.cloud import TransientCloudError
from functions.deploy.record import (
    Approved,
    Deployment,
    Event,
    Failure,
    Files,
    Goal,
    Lease,
    Planned,
    Resource,
    Running,
    Step,
    event_id,
)
from functions.deploy.store import BlobStore, ConflictError, DeploymentStore, NotFoundError
from shared.errors import StorageError
from tests.shared.refusal import refuses

NOW = 1_767_225_600


class StoreHarness(msgspec.Struct):
    """`another` opens the same data once more, as another process would; `close` ends it in its thread."""

    store: DeploymentStore
    another: Callable[[], DeploymentStore]
    close: Callable[[Any], None]


class RemoteStoreHarness(StoreHarness, kw_only=True):
    """`lose_answer` makes the next write happen while its answer is lost; `throttle` refuses the next call.

    `max_record` is the number of bytes above which a record is refused before anything is sent.
    """

    lose_answer: Callable[[], None]
    throttle: Callable[[], None]
    max_record: int


class BlobHarness(msgspec.Struct):
    """`spoil` puts other bytes where the blob of a digest is."""

    blobs: BlobStore
    spoil: Callable[[str, bytes], None]


class RemoteBlobHarness(BlobHarness, kw_only=True):
    """See `RemoteStoreHarness`."""

    lose_answer: Callable[[], None]
    throttle: Callable[[], None]


def deployment(name: str = "app", **changes: Any) -> Deployment:
    """Return a new record."""
    base = Deployment(
        name=name,
        uid="0123456789abcdef",
        version=1,
        cloud="local",
        goal=Goal.RUNNING,
        step=Step.PREPARE,
        files=Files(project={"app.json": "00" * 32}),
        created_at=NOW,
        updated_at=NOW,
    )
    return msgspec.structs.replace(base, **changes)


def full_deployment(name: str = "app") -> Deployment:
    """Return a record with something in every field."""
    return deployment(
        name,
        created_by="ci:org/répo",
        settings={"zone": "us-central1-a", "nested": {"list": [1, "two", None, True], "ünï": "☃"}, "e": ""},
        planned=Planned(
            plan_id="ab" * 32,
            app_id="cd" * 20,
            compose_hash="ef" * 32,
            os_image_hash="01" * 32,
            platform="gcp-tdx",
            plan="02" * 32,
            config={"app-compose.json": "03" * 32},
            machine={"type": "c3-standard-4", "vcpus": 4},
        ),
        approved=Approved(calls=0, block_number=1 << 40, block_hash="04" * 32, chain_id=8453, checked_at=NOW),
        running=Running(external_ip="192.0.2.1", verdict={"tcb": "UpToDate"}),
        resources=(
            Resource(kind="image", name="dstack-app", place="global", facts={"id": "1"}),
            Resource(kind="disk", name="dstack-app-data", state="present", keep=True),
        ),
        failure=Failure(code="gcp.quota", message="no", hint="raise it", step=Step.LAUNCH, at=NOW),
        lease=Lease("runner-1", "token", NOW + 180),
        since=NOW,
        attempt=3,
        due=NOW + 5,
        requests={"key": "start"},
    )


def following(record: Deployment, **changes: Any) -> Deployment:
    """Return the next version of a record."""
    return msgspec.structs.replace(record, version=record.version + 1, **changes)


def events_of(record: Deployment, count: int) -> list[Event]:
    """Return events that this version of the record is written with."""
    return [
        Event(
            id=event_id(record.version, number),
            uid=record.uid,
            at=NOW + record.version,
            step=record.step.value,
            message=f"event {number} of version {record.version}",
            data={"n": number, "text": "☃"},
        )
        for number in range(count)
    ]


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


def write_to_all(store: DeploymentStore, writer: str, names: Sequence[str], seed: int) -> None:
    """Leave a mark and an event in every deployment, in an order of our own, whatever others write."""
    order = list(names)
    Random(seed).shuffle(order)  # noqa: S311 - an order
    for name in order:
        # after a lost answer another's write can hide whether ours was done: the mark in the record tells
        while writer not in (found := store.get(name)).requests:
            changed = following(found, requests=found.requests | {writer: str(found.version)})
            with suppress(ConflictError, TransientCloudError):
                store.replace(changed, found.version, events_of(changed, 1))


def check_all_marks(store: DeploymentStore, writers: Sequence[str], names: Sequence[str]) -> None:
    """Check that no writer's mark or event is missing."""
    seen = []
    while page := store.list(seen[-1] if seen else "", 100):
        for found in page:
            seen.append(found.name)
            assert found.version == 1 + len(writers), found.name
            assert sorted(found.requests) == sorted(writers), found.name
    assert seen == sorted(names)
    for name in names[:: max(1, len(names) // 20)]:
        assert ids(store.events(name)) == [event_id(2 + number, 0) for number in range(len(writers))]


def run_writers(harness: StoreHarness, count: int, names: Sequence[str]) -> None:
    """Let threads write to all deployments at once, each with a store of its own; nothing may be lost."""
    for name in names:
        harness.store.create(deployment(name))
    writers = [f"writer{number}" for number in range(count)]
    failed: list[BaseException] = []

    def write(number: int) -> None:
        store = harness.another()
        try:
            write_to_all(store, writers[number], names, number)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)
        finally:
            harness.close(store)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    check_all_marks(harness.store, writers, names)


class StoreContract:
    """`DeploymentStore`. Inherit, and define the fixture `harness`."""

    def test_returns_what_was_created(self, harness: StoreHarness) -> None:
        record = full_deployment()
        harness.store.create(record, events_of(record, 2))

        assert harness.store.get("app") == record
        other = harness.another()
        assert other.get("app") == record
        assert list(other.events("app")) == events_of(record, 2)
        harness.close(other)

    @pytest.mark.parametrize("name", ["app", "", "a/b", "..", ".", "__x__", "a\0b", "ü", "%2e", "x" * 2000])
    def test_does_not_know_what_nobody_created(self, harness: StoreHarness, name: str) -> None:
        with refuses("deploy.unknown", NotFoundError):
            harness.store.get(name)
        assert list(harness.store.events(name)) == []

    def test_refuses_a_name_that_is_taken(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record, events_of(record, 1))
        other = deployment(uid="fedcba9876543210", created_by="other")

        with refuses("deploy.name_taken", ConflictError):
            harness.store.create(other, events_of(other, 3))
        assert harness.store.get("app") == record
        assert list(harness.store.events("app")) == events_of(record, 1)

    @pytest.mark.parametrize("step", [step for step in Step if step is not Step.REMOVED])
    def test_only_a_removed_deployment_frees_its_name(self, harness: StoreHarness, step: Step) -> None:
        record = deployment()
        harness.store.create(record)
        harness.store.replace(following(record, step=step), 1)

        with refuses("deploy.name_taken", ConflictError):
            harness.store.create(deployment(uid="fedcba9876543210"))

    def test_uses_the_name_of_a_removed_deployment_again(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record, events_of(record, 2))
        removed = following(record, step=Step.REMOVED, goal=Goal.REMOVED)
        harness.store.replace(removed, 1, events_of(removed, 1))
        again = deployment(uid="fedcba9876543210")
        harness.store.create(again, events_of(again, 1))

        assert harness.store.get("app") == again
        # the events are those of the new use, also where both have the same ids
        assert list(harness.store.events("app")) == events_of(again, 1)
        assert [found.uid for found in harness.store.list()] == [again.uid]

    def test_replaces_the_version_that_was_expected(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record, events_of(record, 1))
        second = following(record, step=Step.BUILD)
        harness.store.replace(second, 1, events_of(second, 2))
        third = following(second, step=Step.PROPOSE)
        other = harness.another()
        other.replace(third, 2)
        harness.close(other)

        assert harness.store.get("app") == third
        assert list(harness.store.events("app")) == [*events_of(record, 1), *events_of(second, 2)]

    @pytest.mark.parametrize("expected", [0, 1, 3])
    def test_refuses_another_version_and_changes_nothing(self, harness: StoreHarness, expected: int) -> None:
        record = deployment()
        harness.store.create(record)
        second = following(record, step=Step.BUILD)
        harness.store.replace(second, 1, events_of(second, 1))
        stale = deployment(version=expected + 1, step=Step.FAILED)

        with refuses("deploy.conflict", ConflictError):
            harness.store.replace(stale, expected, events_of(stale, 2))
        assert harness.store.get("app") == second
        assert list(harness.store.events("app")) == events_of(second, 1)

    def test_refuses_another_use_of_the_name(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record)
        stale = following(deployment(uid="fedcba9876543210"))

        with refuses("deploy.conflict", ConflictError):
            harness.store.replace(stale, 1, events_of(stale, 1))
        assert harness.store.get("app") == record
        assert list(harness.store.events("app")) == []

    def test_replaces_nothing_that_does_not_exist(self, harness: StoreHarness) -> None:
        with refuses("deploy.conflict", ConflictError):
            harness.store.replace(following(deployment()), 1)
        with refuses("deploy.unknown", NotFoundError):
            harness.store.get("app")
        assert list(harness.store.list()) == []

    def test_one_of_many_wins_a_version(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record)
        outcomes: list[str] = []
        start = threading.Barrier(4)

        def write(number: int) -> None:
            store = harness.another()
            changed = following(record, created_by=f"writer{number}")
            start.wait(30)
            try:
                store.replace(changed, 1, events_of(changed, 1))
                outcomes.append(f"writer{number}")
            except ConflictError:
                outcomes.append("")
            finally:
                harness.close(store)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        winners = [outcome for outcome in outcomes if outcome]
        assert len(outcomes) == 4
        assert winners == [harness.store.get("app").created_by]
        assert ids(harness.store.events("app")) == [event_id(2, 0)]

    def test_one_of_many_creates_a_name(self, harness: StoreHarness) -> None:
        outcomes: list[str] = []
        start = threading.Barrier(4)

        def write(number: int) -> None:
            store = harness.another()
            start.wait(30)
            try:
                store.create(deployment(uid=f"{number:016x}"))
                outcomes.append(f"{number:016x}")
            except ConflictError:
                outcomes.append("")
            finally:
                harness.close(store)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(outcomes) == 4
        assert [outcome for outcome in outcomes if outcome] == [harness.store.get("app").uid]

    def test_lists_by_name_in_pages(self, harness: StoreHarness) -> None:
        names = ["a", "a-b", "a0", "ab", "b", "b10", "b9", "z"]
        for name in reversed(names):
            harness.store.create(deployment(name))
        removed = following(deployment("b"), step=Step.REMOVED)
        harness.store.replace(removed, 1)

        assert [found.name for found in harness.store.list()] == names
        assert [found.name for found in harness.store.list(limit=3)] == names[:3]
        assert [found.name for found in harness.store.list(names[2], 3)] == names[3:6]
        assert [found.name for found in harness.store.list("a1")] == names[3:]
        assert [found.name for found in harness.store.list("y/é")] == ["z"]
        assert list(harness.store.list("z")) == []
        assert harness.store.list("ab", 1) == [removed]

    def test_pages_through_events_in_order(self, harness: StoreHarness) -> None:
        record = deployment()
        harness.store.create(record, events_of(record, 3))
        written = events_of(record, 3)
        for _ in range(11):
            changed = following(record)
            harness.store.replace(changed, record.version, events_of(changed, 2))
            written += events_of(changed, 2)
            record = changed
        harness.store.create(deployment("other"), events_of(deployment("other"), 1))

        assert list(harness.store.events("app")) == written
        pages: list[Event] = []
        while page := harness.store.events("app", pages[-1].id if pages else "", 4):
            assert len(page) <= 4
            pages += page
        assert pages == written
        assert list(harness.store.events("app", written[-1].id)) == []
        assert ids(harness.store.events("app", event_id(2, 5), 2)) == [event_id(3, 0), event_id(3, 1)]

    def test_threads_lose_no_update(self, harness: StoreHarness) -> None:
        run_writers(harness, 3, [f"app{number}" for number in range(12)])


class RemoteStoreContract(StoreContract):
    """`DeploymentStore` behind a network. The same write, repeated after its answer was lost, succeeds."""

    def test_a_lost_answer_to_a_replacement_is_harmless(self, harness: RemoteStoreHarness) -> None:
        record = deployment()
        harness.store.create(record, events_of(record, 1))
        second = following(record, step=Step.BUILD)
        harness.lose_answer()
        _write_twice(lambda: harness.store.replace(second, 1, events_of(second, 2)))

        assert harness.store.get("app") == second
        assert list(harness.store.events("app")) == [*events_of(record, 1), *events_of(second, 2)]

    def test_a_lost_answer_to_a_creation_is_harmless(self, harness: RemoteStoreHarness) -> None:
        record = deployment()
        harness.lose_answer()
        _write_twice(lambda: harness.store.create(record, events_of(record, 2)))

        assert harness.store.get("app") == record
        assert list(harness.store.events("app")) == events_of(record, 2)

    def test_a_lost_answer_does_not_hide_another_writer(self, harness: RemoteStoreHarness) -> None:
        record = deployment()
        harness.store.create(record)
        theirs = following(record, created_by="them")
        harness.store.replace(theirs, 1)
        ours = following(record, created_by="us")

        with refuses("deploy.conflict", ConflictError):
            harness.store.replace(ours, 1)
        assert harness.store.get("app") == theirs

    @pytest.mark.parametrize("call", ["create", "get", "replace", "list", "events"])
    def test_says_that_throttling_passes(self, harness: RemoteStoreHarness, call: str) -> None:
        record = deployment()
        harness.store.create(record)
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: harness.store.create(deployment("other")),
            "get": lambda: harness.store.get("app"),
            "replace": lambda: harness.store.replace(following(record), 1),
            "list": harness.store.list,
            "events": lambda: harness.store.events("app"),
        }
        harness.throttle()
        with pytest.raises(TransientCloudError):
            calls[call]()
        assert harness.store.get("app") == record
        calls[call]()

    def test_refuses_a_record_that_is_too_large(self, harness: RemoteStoreHarness) -> None:
        record = deployment()
        harness.store.create(record)
        large = "x" * harness.max_record

        with refuses("deploy.record.size", StorageError):
            harness.store.replace(following(record, settings={"large": large}), 1)
        with refuses("deploy.record.size", StorageError):
            harness.store.create(deployment("large", settings={"large": large}))
        (event,) = events_of(following(record), 1)
        with refuses("deploy.events.size", StorageError):
            harness.store.replace(following(record), 1, [msgspec.structs.replace(event, data={"l": large})])
        assert harness.store.get("app") == record
        assert list(harness.store.events("app")) == []
        # and one that just fits is stored
        fits = following(record, settings={"large": large[: -len(msgspec.json.encode(record)) - 64]})
        harness.store.replace(fits, 1)
        assert harness.store.get("app") == fits


def _write_twice(write: Callable[[], None]) -> None:
    """Write; a writer that is told of a failure for the moment writes the same once more."""
    try:
        write()
    except TransientCloudError:
        write()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class BlobContract:
    """`BlobStore`. Inherit, and define the fixture `harness`."""

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
    def test_returns_what_was_stored(self, harness: BlobHarness, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(data)

        assert harness.blobs.put(data) == digest_of(data)
        assert harness.blobs.put(data) == digest_of(data)
        assert harness.blobs.put_file(tmp_path / "file") == digest_of(data)
        assert harness.blobs.get(digest_of(data), len(data)) == data

    def test_streams_a_file_in_and_out(self, harness: BlobHarness, tmp_path: Path) -> None:
        data = Random(3).randbytes(3_000_001)  # noqa: S311 - any bytes
        (tmp_path / "file").write_bytes(data)
        digest = harness.blobs.put_file(tmp_path / "file")
        found = io.BytesIO()
        with harness.blobs.open(digest) as source:
            while piece := source.read(100_000):
                found.write(piece)

        assert found.getvalue() == data

    @pytest.mark.parametrize(
        "digest", ["00" * 32, "", "..", "AB" * 32, "0" * 63, "0" * 65, "g" * 64, "a/../" * 8]
    )
    def test_does_not_know_what_nobody_stored(self, harness: BlobHarness, digest: str) -> None:
        with refuses("deploy.blob", NotFoundError):
            harness.blobs.get(digest, 100)
        with refuses("deploy.blob", NotFoundError):
            harness.blobs.open(digest)

    def test_refuses_more_bytes_than_were_asked_for(self, harness: BlobHarness) -> None:
        digest = harness.blobs.put(b"12345")

        with refuses("deploy.blob.size", StorageError):
            harness.blobs.get(digest, 4)
        assert harness.blobs.get(digest, 5) == b"12345"

    @pytest.mark.parametrize("spoiled", [b"12346", b"1234", b"", b"123456"])
    def test_refuses_bytes_that_changed(self, harness: BlobHarness, spoiled: bytes) -> None:
        digest = harness.blobs.put(b"12345")
        harness.spoil(digest, spoiled)

        with refuses("deploy.blob.corrupt", StorageError):
            harness.blobs.get(digest, 100)

    def test_says_when_a_file_cannot_be_read(self, harness: BlobHarness, tmp_path: Path) -> None:
        with refuses("deploy.blob.store", StorageError):
            harness.blobs.put_file(tmp_path / "none")

    def test_takes_the_same_bytes_from_many_at_once(self, harness: BlobHarness) -> None:
        data = b"the same" * 1000
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(harness.blobs.put(data))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == [digest_of(data)] * 4
        assert harness.blobs.get(digest_of(data), len(data)) == data


class RemoteBlobContract(BlobContract):
    """`BlobStore` behind a network."""

    def test_a_lost_answer_is_harmless(self, harness: RemoteBlobHarness) -> None:
        harness.lose_answer()
        _write_twice(lambda: _ignore(harness.blobs.put(b"data")))

        assert harness.blobs.get(digest_of(b"data"), 100) == b"data"

    def test_says_that_throttling_passes(self, harness: RemoteBlobHarness) -> None:
        digest = harness.blobs.put(b"data")
        calls: list[Callable[[], object]] = [
            lambda: harness.blobs.put(b"more"),
            lambda: harness.blobs.get(digest, 100),
            lambda: harness.blobs.open(digest).close(),
        ]
        for call in calls:
            harness.throttle()
            with pytest.raises(TransientCloudError):
                call()
            call()


def _ignore(_: object) -> None:
    pass
