"""S3 as a blob store, over HTTP against moto, with lost connections, foreign bytes and refusals."""

import hashlib
import io
import tracemalloc
from pathlib import Path
from uuid import uuid4

import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.stores import s3
from functions.stores.s3 import S3Blobs
from shared.errors import CloudError, StorageError
from tests.fakes.aws import REGION, AwsServer
from tests.functions.stores.contract import RemoteBlobContract, RemoteBlobHarness, digest_of
from tests.shared.refusal import refuses

DATA = bytes(range(256)) * 20


@pytest.fixture
def bucket(aws: AwsServer) -> str:
    name = f"blobs-{uuid4()}"
    aws.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture
def blobs(aws: AwsServer, bucket: str) -> S3Blobs:
    return S3Blobs(bucket, aws.new_client("s3"))


class TestS3Blobs(RemoteBlobContract):
    @pytest.fixture
    def harness(self, aws: AwsServer, blobs: S3Blobs, bucket: str) -> RemoteBlobHarness:
        return RemoteBlobHarness(
            blobs,
            lambda digest, data: _spoil(aws, bucket, digest, data),
            lose_answer=lambda: aws.fail("PUT /", after=True),
            throttle=lambda: aws.fail(f"/{bucket}/blobs", "SlowDown", status=503),
        )


def _spoil(aws: AwsServer, bucket: str, digest: str, data: bytes) -> None:
    aws.client("s3").put_object(Bucket=bucket, Key=f"blobs/{digest}", Body=data)


def test_storing_again_changes_nothing(aws: AwsServer, blobs: S3Blobs, bucket: str, tmp_path: Path) -> None:
    aws.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    digest = blobs.put(DATA)
    (tmp_path / "file").write_bytes(DATA)
    aws.calls.clear()
    assert blobs.put(DATA) == blobs.put_file(tmp_path / "file") == digest
    assert [call.split()[0] for call in aws.calls] == ["PUT", "HEAD"]
    assert len(aws.client("s3").list_object_versions(Bucket=bucket)["Versions"]) == 1


@pytest.mark.parametrize(
    ("key", "kind"), [("", "AES256"), ("arn:aws:kms:eu-west-1:123456789012:key/abc", "aws:kms")]
)
def test_objects_are_encrypted(
    aws: AwsServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(b"x" * (6 << 20))
    blobs = S3Blobs(bucket, aws.client("s3"), kms_key=key)
    for digest in (blobs.put(DATA), blobs.put_file(tmp_path / "file")):
        head = aws.client("s3").head_object(Bucket=bucket, Key=f"blobs/{digest}")
        assert (head["ServerSideEncryption"], head.get("SSEKMSKeyId", "")) == (kind, key)


def test_a_large_file_goes_in_parts_without_being_held(
    blobs: S3Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    parts: list[int] = []
    blobs._client.meta.events.register(
        "before-parameter-build.s3.UploadPart", lambda params, **_: parts.append(len(params["Body"]))
    )
    # a sparse file, whose digest is that of as many zeros
    size = 3 * (5 << 20) + 17
    with (tmp_path / "image").open("wb") as file:
        file.truncate(size)
    digest = blobs.put_file(tmp_path / "image")
    assert digest == digest_of(bytes(size))
    assert parts == [5 << 20] * 3 + [17]
    with blobs.open(digest) as stored:
        assert hashlib.file_digest(stored, "sha256").hexdigest() == digest


def test_a_failed_upload_leaves_no_parts(
    aws: AwsServer, blobs: S3Blobs, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    (tmp_path / "image").write_bytes(bytes(11 << 20))
    aws.fail("partNumber=2", "InternalError", status=500)
    with refuses("aws.unavailable", TransientCloudError):
        blobs.put_file(tmp_path / "image")
    assert "Uploads" not in aws.client("s3").list_multipart_uploads(Bucket=bucket)
    assert "Contents" not in aws.client("s3").list_objects_v2(Bucket=bucket)
    blobs.put_file(tmp_path / "image")
    assert "Contents" in aws.client("s3").list_objects_v2(Bucket=bucket)


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_a_file_that_changes_while_it_is_stored_is_refused(
    aws: AwsServer, blobs: S3Blobs, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    path = tmp_path / "image"
    path.write_bytes(bytes(size))

    def change(**_: object) -> None:
        with path.open("r+b") as file:
            file.seek(-1, io.SEEK_END)
            file.write(b"x")

    blobs._client.meta.events.register("after-call.s3.HeadObject", change)
    with refuses("deploy.blob.changed", StorageError):
        blobs.put_file(path)
    assert "Contents" not in aws.client("s3").list_objects_v2(Bucket=bucket)
    assert "Uploads" not in aws.client("s3").list_multipart_uploads(Bucket=bucket)


def test_a_file_that_cannot_be_read_or_is_too_large_is_refused(
    blobs: S3Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refuses("deploy.blob.store", StorageError):
        blobs.put_file(tmp_path / "nothing")
    monkeypatch.setattr(s3, "MAX_BLOB", 10)
    (tmp_path / "image").write_bytes(b"x" * 11)
    with refuses("deploy.blob.size", StorageError):
        blobs.put_file(tmp_path / "image")


def test_a_blob_above_the_limit_is_not_held(blobs: S3Blobs) -> None:
    large = blobs.put(bytes(8 << 20))
    tracemalloc.start()
    try:
        with refuses("deploy.blob.size", StorageError):
            blobs.get(large, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # moto holds the object in this process and sends a copy; what is read of it here is one buffer
    assert peak < 20 << 20


def test_reading_goes_on_after_a_lost_connection(
    aws: AwsServer, blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_BUFFER", 1 << 16)
    data = hashlib.sha256(b"seed").digest() * (1 << 16)
    digest = blobs.put(data)
    aws.fail(f"GET /{blobs._bucket}", cut=1 << 20)
    assert blobs.get(digest, len(data)) == data
    gets = [call for call in aws.calls if call.startswith("GET")]
    assert len(gets) == 2


def test_reading_gives_up_where_nothing_comes(aws: AwsServer, blobs: S3Blobs) -> None:
    digest = blobs.put(DATA)
    with blobs.open(digest) as file:
        file.raw._drop()
        aws.fail(f"GET /{blobs._bucket}", times=s3.RESUMES + 1)
        with refuses("aws.unavailable", TransientCloudError):
            file.read()
    assert len([call for call in aws.calls if call.startswith("GET")]) == s3.RESUMES + 2


def test_reading_does_not_go_on_in_another_object(aws: AwsServer, blobs: S3Blobs, bucket: str) -> None:
    digest = blobs.put(DATA)
    with blobs.open(digest) as file:
        aws.client("s3").put_object(Bucket=bucket, Key=f"blobs/{digest}", Body=DATA[::-1])
        file.seek(100)
        with refuses("deploy.blob.corrupt", StorageError):
            file.read()


def test_an_open_blob_is_a_file(blobs: S3Blobs) -> None:
    with blobs.open(blobs.put(DATA)) as file:
        assert file.readable()
        assert file.seekable()
        assert file.read(10) == DATA[:10]
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:]
        assert file.read() == b""
        assert file.seek(300) == file.tell() == 300
        assert file.read(3) == DATA[300:303]
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_bucket_that_is_not_there_is_named_with_what_to_do(aws: AwsServer, tmp_path: Path) -> None:
    blobs = S3Blobs("nowhere", aws.client("s3"))
    (tmp_path / "file").write_bytes(DATA)
    for call in (
        lambda: blobs.put(DATA),
        lambda: blobs.put_file(tmp_path / "file"),
        lambda: blobs.get("00" * 32, 1),
    ):
        with refuses("aws.s3.bucket", DeniedError) as caught:
            call()
        assert isinstance(caught.value, DeniedError)
        assert "nowhere" in caught.value.message
        assert "stack" in caught.value.hint


def test_a_denied_read_says_that_the_blob_may_only_be_missing(aws: AwsServer, blobs: S3Blobs) -> None:
    aws.fail("GET /", "AccessDenied", status=403, message="Access Denied")
    with refuses("aws.denied", DeniedError) as caught:
        blobs.get("00" * 32, 1)
    assert isinstance(caught.value, DeniedError)
    assert "s3:ListBucket" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "code", "status", "expected"),
    [
        ("PUT", "SlowDown", 503, "aws.throttled"),
        ("PUT", "ConditionalRequestConflict", 409, "aws.unavailable"),
        ("HEAD", "InternalError", 500, "aws.unavailable"),
        ("GET", "", 0, "aws.unavailable"),
        ("GET", "BadDigest", 400, "aws.request"),
    ],
)
def test_a_failing_service_is_told_from_a_refusal(
    aws: AwsServer, blobs: S3Blobs, tmp_path: Path, call: str, code: str, status: int, expected: str
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    digest = blobs.put(b"there")
    aws.fail(f"{call} /", code, status=status)
    with refuses(expected, CloudError):
        if call == "PUT":
            blobs.put(DATA)
        elif call == "HEAD":
            blobs.put_file(tmp_path / "file")
        else:
            blobs.get(digest, 10)
