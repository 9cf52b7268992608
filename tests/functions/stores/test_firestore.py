"""Firestore, served by a fake that its discovery document holds, keeps to the contract of stores."""

import itertools
from collections.abc import Iterator

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.record import Step
from functions.deploy.store import ConflictError
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.errors import GoogleError
from functions.google_api.rest import GoogleSession
from functions.stores.firestore import MAX_RECORD, FirestoreStore
from shared.errors import CloudError, StorageError
from tests.fakes.firestore import BATCH_GET, COMMIT, Firestore
from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest
from tests.functions.stores.contract import (
    RemoteStoreContract,
    RemoteStoreHarness,
    StoreHarness,
    deployment,
    events_of,
    following,
    run_writers,
)
from tests.shared.refusal import refuses


@pytest.fixture
def rest() -> Iterator[GoogleRest]:
    with GoogleRest(["firestore.v1"]) as served:
        yield served
    assert not served.violations


@pytest.fixture
def firestore(rest: GoogleRest) -> Firestore:
    return Firestore(rest)


@pytest.fixture
def store(rest: GoogleRest, firestore: Firestore) -> FirestoreStore:
    del firestore
    return open_store(rest)


def open_store(rest: GoogleRest) -> FirestoreStore:
    return FirestoreStore(GoogleSession(anonymous_credentials()), "p1", base_url=rest.url)


class TestFirestoreStore(RemoteStoreContract):
    @pytest.fixture
    def harness(self, rest: GoogleRest, store: FirestoreStore) -> RemoteStoreHarness:
        return RemoteStoreHarness(
            store,
            lambda: open_store(rest),
            lambda _: None,
            lose_answer=lambda: rest.fail(COMMIT, 0, after=True),
            throttle=lambda: rest.fail("*", 429),
            max_record=MAX_RECORD,
        )


@pytest.mark.parametrize("status", [0, 500, 503])
def test_reads_back_what_became_of_a_commit(rest: GoogleRest, store: FirestoreStore, status: int) -> None:
    rest.fail(COMMIT, status, after=True)
    store.create(deployment(), events_of(deployment(), 1))

    assert len(rest.called(COMMIT)) == 1
    assert store.get("app") == deployment()


@pytest.mark.parametrize("status", [0, 503])
def test_says_when_a_commit_did_not_happen(rest: GoogleRest, store: FirestoreStore, status: int) -> None:
    store.create(deployment())
    rest.fail(COMMIT, status)

    with refuses("gcp.unavailable", TransientCloudError):
        store.replace(following(deployment()), 1)
    assert store.get("app") == deployment()


def test_a_repeated_write_finds_itself_also_when_nothing_could_be_read_back(
    rest: GoogleRest, store: FirestoreStore
) -> None:
    store.create(deployment())
    second = following(deployment())
    rest.fail(COMMIT, 0, after=True)
    rest.hook = lambda phase, request: (
        rest.fail(BATCH_GET, 503) if phase == "after" and request.method_id == COMMIT else None
    )
    with refuses("gcp.unavailable", TransientCloudError):
        store.replace(second, 1, events_of(second, 1))
    rest.hook = None
    store.replace(second, 1, events_of(second, 1))

    assert len(rest.called(COMMIT)) == 2
    assert list(store.events("app")) == events_of(second, 1)


def test_writers_lose_no_update_while_answers_are_lost(rest: GoogleRest, store: FirestoreStore) -> None:
    lost = itertools.count()

    def lose_every_seventh(phase: str, request: ApiRequest) -> None:
        if phase == "after" and request.method_id == COMMIT and next(lost) % 7 == 3:
            raise ConnectionError

    rest.hook = lose_every_seventh
    run_writers(
        StoreHarness(store, lambda: open_store(rest), lambda _: None), 3, [f"app{n:02d}" for n in range(20)]
    )
    assert next(lost) >= 80


def test_commits_again_after_contention(rest: GoogleRest, store: FirestoreStore) -> None:
    rest.fail(COMMIT, 409, reason="ABORTED", times=2)
    store.create(deployment())

    assert len(rest.called(COMMIT)) == 3
    rest.fail(COMMIT, 409, reason="ABORTED", times=9)
    with refuses("gcp.contention", TransientCloudError):
        store.replace(following(deployment()), 1)


def test_reads_pages_of_large_records(store: FirestoreStore) -> None:
    names = [f"app{number:02d}" for number in range(45)]
    for name in names:
        store.create(deployment(name, settings={"large": "x" * 20_000}))

    assert [found.name for found in store.list(limit=42)] == names[:42]
    assert [found.name for found in store.list(limit=100)] == names


def test_reads_many_events(store: FirestoreStore) -> None:
    record = deployment()
    written = events_of(record, 60)
    store.create(record, written)
    for _ in range(7):
        changed = following(record)
        store.replace(changed, record.version, events_of(changed, 60))
        written += events_of(changed, 60)
        record = changed

    assert list(store.events("app", limit=449)) == written[:449]
    assert list(store.events("app", limit=1000)) == written


def test_says_which_database_is_missing(rest: GoogleRest, store: FirestoreStore) -> None:
    elsewhere = FirestoreStore(GoogleSession(anonymous_credentials()), "p1", "other", base_url=rest.url)

    for ask in (lambda: elsewhere.get("app"), elsewhere.list, lambda: elsewhere.create(deployment())):
        with refuses("gcp.firestore.database", DeniedError) as caught:
            ask()
        assert caught.value.hint.startswith("gcloud firestore databases create --database=other --project=p1")
    assert list(store.list()) == []


@pytest.mark.parametrize("field", ["record", "uid", "version", "step"])
def test_refuses_a_document_that_lacks_a_field(
    firestore: Firestore, store: FirestoreStore, field: str
) -> None:
    store.create(deployment())
    (document,) = firestore.documents.values()
    del document["fields"][field]

    with refuses("deploy.record", StorageError):
        store.get("app") if field == "record" else store.replace(following(deployment()), 1)


@pytest.mark.parametrize("value", ["e30=", "AAAA"])
def test_refuses_a_record_that_cannot_be_read(
    firestore: Firestore, store: FirestoreStore, value: str
) -> None:
    store.create(deployment())
    (document,) = firestore.documents.values()
    document["fields"]["record"] = {"bytesValue": value}

    with refuses("deploy.record", StorageError):
        store.get("app")


def test_refuses_an_event_that_cannot_be_read(firestore: Firestore, store: FirestoreStore) -> None:
    store.create(deployment(), events_of(deployment(), 1))
    (event,) = (document for name, document in firestore.documents.items() if "/events/" in name)
    event["fields"]["event"] = {"bytesValue": "e30="}

    with refuses("deploy.record", StorageError):
        store.events("app")


def test_passes_on_why_a_commit_was_refused(rest: GoogleRest, store: FirestoreStore) -> None:
    rest.fail(COMMIT, 400, message="Document cannot be written because its size exceeds the maximum.")
    with refuses("gcp.request", GoogleError):
        store.create(deployment())
    rest.fail(COMMIT, 403, message="Missing or insufficient permissions.")
    with refuses("gcp.permission", DeniedError):
        store.create(deployment())
    rest.fail(BATCH_GET, 400)
    with refuses("gcp.request", GoogleError):
        store.get("app")


def test_refuses_an_answer_without_a_word_on_the_document(rest: GoogleRest, store: FirestoreStore) -> None:
    rest.handle(BATCH_GET)(lambda _: Answer(200, [{"readTime": "2026-01-01T00:00:00Z"}]))

    with refuses("gcp.answer", CloudError):
        store.get("app")


def test_a_removal_that_another_creation_follows_first_is_a_conflict(
    rest: GoogleRest, store: FirestoreStore
) -> None:
    removed = following(deployment(), step=Step.REMOVED)
    store.create(deployment())
    store.replace(removed, 1)
    theirs = deployment(uid="aaaaaaaaaaaaaaaa")

    def create_first(phase: str, request: ApiRequest) -> None:
        if phase == "before" and request.method_id == COMMIT:
            rest.hook = None
            open_store(rest).create(theirs)

    rest.hook = create_first
    with refuses("deploy.name_taken", ConflictError):
        store.create(deployment(uid="bbbbbbbbbbbbbbbb"))
    assert store.get("app") == theirs


def test_refuses_a_name_that_no_document_can_have(store: FirestoreStore) -> None:
    for name in ("a/b", "..", "", "__x__"):
        with refuses("deploy.store", StorageError):
            store.create(deployment(name))
