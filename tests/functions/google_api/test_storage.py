"""Uploads and downloads go through a service that loses answers, and end whole or not at all."""

import io
from collections.abc import Callable, Iterator
from random import Random

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.errors import GoogleError
from functions.google_api.rest import GoogleSession
from functions.google_api.storage import MAX_RESUMES, Bucket
from shared.errors import CloudError
from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest
from tests.fakes.storage import GET, INSERT, INSERT_CHUNK, QUANTUM, Storage
from tests.shared.refusal import refuses

DATA = Random(5).randbytes(3 * QUANTUM + 17)  # noqa: S311 - any bytes
PLACE = ("bucket", "a/b c%2F?")
KEY = PLACE[1]


@pytest.fixture
def rest() -> Iterator[GoogleRest]:
    with GoogleRest(["storage.v1"]) as served:
        yield served
    assert not served.violations


@pytest.fixture
def storage(rest: GoogleRest) -> Storage:
    return Storage(rest)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def bucket(rest: GoogleRest, storage: Storage, pauses: list[float]) -> Bucket:
    del storage
    session = GoogleSession(anonymous_credentials())
    return Bucket(session, "bucket", rest.url, pause=pauses.append, chunk=QUANTUM)


@pytest.mark.parametrize("size", [0, 1, QUANTUM - 1, QUANTUM, QUANTUM + 1, 2 * QUANTUM, len(DATA)])
@pytest.mark.parametrize("streamed", [True, False])
def test_stores_and_returns_every_size(
    bucket: Bucket, storage: Storage, size: int, *, streamed: bool
) -> None:
    data = DATA[:size]

    made = bucket.upload(
        KEY, io.BytesIO(data) if streamed else data, metadata={"k": "v"} if streamed else None
    )

    assert storage.objects[PLACE].data == data
    assert (made.key, made.size, made.metadata) == (KEY, size, {"k": "v"} if streamed else {})
    assert bucket.stat(KEY) == made
    assert bucket.download(KEY, size) == data
    assert storage.largest_request <= QUANTUM


def test_knows_what_is_absent(bucket: Bucket, rest: GoogleRest) -> None:
    elsewhere = Bucket(GoogleSession(anonymous_credentials()), "other", rest.url)

    assert bucket.exists()
    assert not elsewhere.exists()
    assert bucket.stat(KEY) is None
    assert not bucket.delete(KEY)
    with refuses("gcp.missing", GoogleError):
        bucket.open(KEY)


def test_tells_a_missing_bucket_from_a_missing_object(storage: Storage, rest: GoogleRest) -> None:
    elsewhere = Bucket(GoogleSession(anonymous_credentials()), "other", rest.url)
    calls: list[Callable[[], object]] = [
        lambda: elsewhere.upload(KEY, b"x"),
        lambda: elsewhere.upload(KEY, io.BytesIO(b"x")),
        lambda: elsewhere.stat(KEY),
        lambda: elsewhere.open(KEY),
        lambda: elsewhere.delete(KEY),
    ]

    for call in calls:
        with refuses("gcp.storage.bucket", DeniedError) as caught:
            call()
        assert caught.value.hint == "gcloud storage buckets create gs://other"
    assert not storage.objects


def test_deletes_the_generation_that_was_meant(bucket: Bucket) -> None:
    first = bucket.upload(KEY, b"1")
    second = bucket.upload(KEY, b"2")

    assert not bucket.delete(KEY, generation=first.generation)
    assert bucket.delete(KEY, generation=second.generation)
    assert bucket.stat(KEY) is None


@pytest.mark.parametrize("data", [b"new", DATA])
def test_leaves_what_is_there_if_told_so(bucket: Bucket, data: bytes) -> None:
    first = bucket.upload(KEY, b"old", metadata={"who": "first"})

    assert bucket.upload(KEY, data, if_absent=True) == first
    assert bucket.upload(KEY, data).size == len(data)


def test_leaves_what_another_upload_finished_meanwhile(bucket: Bucket, rest: GoogleRest) -> None:
    def finish_first(phase: str, request: ApiRequest) -> None:
        if phase == "before" and request.method_id == INSERT_CHUNK and len(rest.called(INSERT_CHUNK)) == 2:
            rest.hook = None
            bucket.upload(KEY, b"other")

    rest.hook = finish_first
    assert bucket.upload(KEY, io.BytesIO(DATA), if_absent=True).size == len(b"other")


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("status", [0, 503])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_goes_on_after_a_lost_answer(
    bucket: Bucket, storage: Storage, rest: GoogleRest, calls: int, status: int, *, after: bool
) -> None:
    def lose(phase: str, request: ApiRequest) -> None:
        if request.method_id == INSERT_CHUNK and phase == "after" and len(rest.called(INSERT_CHUNK)) == calls:
            rest.hook = None
            rest.fail(INSERT_CHUNK, status, after=after)

    if calls == 0:
        rest.fail(INSERT_CHUNK, status, after=after)
    rest.hook = lose
    bucket.upload(KEY, io.BytesIO(DATA))

    assert storage.objects[PLACE].data == DATA
    assert len(rest.called(INSERT)) == 1


def test_asks_again_when_the_question_is_lost_too(bucket: Bucket, storage: Storage, rest: GoogleRest) -> None:
    rest.fail(INSERT_CHUNK, 0, times=3, after=True)
    bucket.upload(KEY, io.BytesIO(DATA))

    assert storage.objects[PLACE].data == DATA


def test_sends_the_rest_of_a_chunk_that_was_stored_in_part(bucket: Bucket, storage: Storage) -> None:
    storage.keep = QUANTUM
    Bucket(bucket._session, "bucket", bucket._base, chunk=2 * QUANTUM).upload(KEY, io.BytesIO(DATA))

    assert storage.objects[PLACE].data == DATA


def test_gives_up_when_the_service_stays_away(bucket: Bucket, rest: GoogleRest, pauses: list[float]) -> None:
    rest.fail(INSERT_CHUNK, 503, times=100)

    with refuses("gcp.unavailable", TransientCloudError):
        bucket.upload(KEY, io.BytesIO(DATA))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert bucket.stat(KEY) is None


def test_a_lost_session_is_worth_another_upload(bucket: Bucket, storage: Storage, rest: GoogleRest) -> None:
    rest.hook = lambda phase, request: (
        storage.forget_sessions() if phase == "after" and request.method_id == INSERT_CHUNK else None
    )

    with refuses("gcp.unavailable", TransientCloudError):
        bucket.upload(KEY, io.BytesIO(DATA))


@pytest.mark.parametrize("data", [b"small", DATA])
def test_does_not_keep_bytes_that_changed_on_the_way(bucket: Bucket, storage: Storage, data: bytes) -> None:
    storage.flip = True

    with refuses("gcp.storage.corrupt", CloudError):
        bucket.upload(KEY, data, if_absent=True)
    assert not storage.objects


def test_refuses_to_send_chunks_elsewhere(bucket: Bucket, rest: GoogleRest) -> None:
    rest.handle(INSERT)(lambda _: Answer(200, None, {"Location": "http://127.0.0.2:1/upload"}))
    with refuses("gcp.answer", CloudError):
        bucket.upload(KEY, io.BytesIO(DATA))


OBJECT = {"name": KEY, "size": "3", "generation": "1"}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, OBJECT),
        Answer(308, None, {"Range": f"bytes=0-{QUANTUM}"}),
        Answer(308, None, {"Range": "bytes=5-9"}),
        Answer(308, None, {"Range": "bytes=0-x"}),
    ],
)
def test_refuses_a_session_that_lies(bucket: Bucket, rest: GoogleRest, answer: Answer) -> None:
    rest.handle(INSERT_CHUNK)(lambda _: answer)

    with refuses("gcp.answer", CloudError):
        bucket.upload(KEY, io.BytesIO(DATA))


@pytest.mark.parametrize("lacking", ["name", "size", "generation"])
def test_refuses_a_description_that_lacks_something(bucket: Bucket, rest: GoogleRest, lacking: str) -> None:
    described = {name: value for name, value in OBJECT.items() if name != lacking}
    rest.handle(GET)(lambda _: Answer(200, described))
    rest.handle(INSERT)(lambda _: Answer(200, b"[" if lacking == "name" else described))

    for ask in (lambda: bucket.stat(KEY), lambda: bucket.upload(KEY, b"x")):
        with refuses("gcp.answer", CloudError):
            ask()


def test_gives_up_on_a_session_that_stores_nothing(
    bucket: Bucket, rest: GoogleRest, pauses: list[float]
) -> None:
    rest.handle(INSERT_CHUNK)(lambda _: Answer(308))

    with refuses("gcp.unavailable", TransientCloudError):
        bucket.upload(KEY, io.BytesIO(DATA))
    assert len(pauses) == MAX_RESUMES


def test_says_what_the_caller_may_not(bucket: Bucket, rest: GoogleRest) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("storage.buckets.get", bucket.exists),
        (GET, lambda: bucket.stat(KEY)),
        ("storage.objects.delete", lambda: bucket.delete(KEY)),
        (INSERT, lambda: bucket.upload(KEY, b"x")),
        (INSERT_CHUNK, lambda: bucket.upload(KEY, io.BytesIO(b"x"))),
    ]
    for method, call in calls:
        rest.fail(
            method, 403, message=f"someone@example.com does not have {method.partition('#')[0]} access to it."
        )
        with refuses("gcp.permission", DeniedError) as caught:
            call()
        assert caught.value.hint.endswith(method.partition("#")[0])


@pytest.mark.parametrize("cut", [0, 1, QUANTUM, len(DATA) - 1])
def test_reads_on_where_a_download_was_cut(
    bucket: Bucket, storage: Storage, rest: GoogleRest, cut: int
) -> None:
    bucket.upload(KEY, io.BytesIO(DATA))
    storage.cut = cut

    assert bucket.download(KEY, len(DATA)) == DATA
    again = rest.called(GET)[-1]
    assert again.headers.get("range") == (f"bytes={cut}-" if cut else None)
    assert again.query["generation"] == str(storage.objects[PLACE].generation)


def test_never_joins_two_generations(bucket: Bucket, storage: Storage) -> None:
    bucket.upload(KEY, io.BytesIO(DATA))
    storage.cut = QUANTUM
    with bucket.open(KEY) as source:
        first = source.read(100)
        bucket.upload(KEY, b"another generation")
        assert first == DATA[:100]
        with refuses("gcp.missing", GoogleError):
            source.read()


def test_gives_a_download_up_when_the_service_stays_away(
    bucket: Bucket, storage: Storage, rest: GoogleRest, pauses: list[float]
) -> None:
    bucket.upload(KEY, io.BytesIO(DATA))
    storage.cut = 5
    with bucket.open(KEY) as source:
        rest.fail(GET, 503, times=100)
        with refuses("gcp.unavailable", TransientCloudError):
            source.read()
    assert len(pauses) == MAX_RESUMES


def test_bounds_a_download(bucket: Bucket) -> None:
    bucket.upload(KEY, b"12345")

    with refuses("gcp.storage.size", CloudError):
        bucket.download(KEY, 4)
