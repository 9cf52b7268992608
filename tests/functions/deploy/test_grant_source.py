"""Grants come from the environment or from an object that can change; else nothing is granted."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from functions.deploy.grant_source import GrantSource, grants_from
from functions.google_api.errors import GoogleError
from shared.errors import CloudError, ConfigError
from tests.fakes.aws import REGION, AwsServer
from tests.fakes.google_rest import GoogleRest
from tests.fakes.storage import Storage, StoredObject
from tests.functions.deploy.uploads import NOW, github_grant, grants_file
from tests.shared.refusal import refuses


def test_grants_are_read_again_after_a_minute() -> None:
    files = [grants_file(github_grant()), grants_file()]
    source = GrantSource(lambda: files[0])
    assert source.get(NOW).grants
    del files[0]
    assert source.get(NOW + 59).grants
    assert source.get(NOW + 60).grants == ()


def test_grants_that_cannot_be_read_any_more_grant_nothing() -> None:
    answers: list[Any] = [grants_file(github_grant()), CloudError("aws.request", "there is no such object")]

    def read() -> bytes:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, bytes)
        return found

    source = GrantSource(read)
    source.get(NOW)
    with refuses("aws.request", CloudError):
        source.get(NOW + 60)


@pytest.mark.parametrize(
    "place", ["", "s3:", "s3:bucket", "s3:/key", "gcs:bucket/", "https://example.com", "[]"]
)
def test_refuses_places_where_no_grants_are(place: str) -> None:
    with refuses("deploy.grants.place", ConfigError):
        grants_from(place)


def test_the_environment_may_hold_them() -> None:
    assert len(grants_from(grants_file(github_grant()).decode()).get(NOW).grants) == 1


# ---- S3 ----


@pytest.fixture
def bucket(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a bucket that clients find as a function's would: by the environment."""
    for name, value in (
        ("AWS_ENDPOINT_URL", aws.url),
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(name, value)
    name = f"grants-{uuid4()}"
    aws.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


def test_an_object_of_s3_may_hold_them(aws: AwsServer, bucket: str) -> None:
    source = grants_from(f"s3:{bucket}/policy/grants.json")
    aws.client("s3").put_object(
        Bucket=bucket, Key="policy/grants.json", Body=grants_file(github_grant(), github_grant())
    )
    assert len(source.get(NOW).grants) == 2
    aws.client("s3").put_object(Bucket=bucket, Key="policy/grants.json", Body=grants_file())
    assert source.get(NOW + 60).grants == ()


def test_without_the_object_of_s3_nothing_is_granted(aws: AwsServer, bucket: str) -> None:
    with pytest.raises(CloudError) as refused:
        grants_from(f"s3:{bucket}/grants.json").get(NOW)
    assert refused.value.code.startswith("aws.")
    aws.client("s3").put_object(Bucket=bucket, Key="grants.json", Body=b" " * (256 * 1024 + 1))
    with refuses("deploy.grants.json.size", ConfigError):
        grants_from(f"s3:{bucket}/grants.json").get(NOW)


# ---- Cloud Storage ----


@pytest.fixture
def google() -> Iterator[GoogleRest]:
    with GoogleRest(["storage.v1"]) as served:
        yield served
    assert not served.violations


def test_an_object_of_cloud_storage_may_hold_them(google: GoogleRest) -> None:
    storage = Storage(google)
    source = grants_from("gcs:bucket/grants.json", {"DSTACK_GCP_ENDPOINT": google.url})
    with pytest.raises(GoogleError):
        source.get(NOW)
    storage.objects["bucket", "grants.json"] = StoredObject(grants_file(github_grant()), 1)
    assert len(source.get(NOW).grants) == 1
