"""Cloud Storage keeps blobs as the contract has it."""

from collections.abc import Iterator

import pytest

from functions.deploy.cloud import DeniedError
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.rest import GoogleSession
from functions.google_api.storage import Bucket
from functions.stores.gcs import GcsBlobs
from tests.fakes.google_rest import GoogleRest
from tests.fakes.storage import INSERT, Storage
from tests.functions.stores.contract import RemoteBlobContract, RemoteBlobHarness
from tests.shared.refusal import refuses


@pytest.fixture
def rest() -> Iterator[GoogleRest]:
    with GoogleRest(["storage.v1"]) as served:
        yield served
    assert not served.violations


class TestGcsBlobs(RemoteBlobContract):
    @pytest.fixture
    def harness(self, rest: GoogleRest) -> RemoteBlobHarness:
        storage = Storage(rest)
        bucket = Bucket(GoogleSession(anonymous_credentials()), "bucket", rest.url, pause=lambda _: None)

        def spoil(digest: str, data: bytes) -> None:
            storage.objects["bucket", f"blobs/{digest}"].data = data

        return RemoteBlobHarness(
            GcsBlobs(bucket),
            spoil,
            lose_answer=lambda: rest.fail(INSERT, 0, after=True),
            throttle=lambda: rest.fail("*", 429),
        )


def test_says_which_bucket_is_missing(rest: GoogleRest) -> None:
    Storage(rest)
    blobs = GcsBlobs(Bucket(GoogleSession(anonymous_credentials()), "other", rest.url))

    for ask in (lambda: blobs.put(b"x"), lambda: blobs.get("00" * 32, 1)):
        with refuses("gcp.storage.bucket", DeniedError) as caught:
            ask()
        assert caught.value.hint == "gcloud storage buckets create gs://other"
