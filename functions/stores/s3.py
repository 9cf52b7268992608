"""Blobs in an S3 bucket, under `blobs/<sha256>`."""

import base64
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.store import MAX_BLOB, NotFoundError
from functions.stores.digests import check_digest, read_checked
from shared.errors import CloudError, StorageError

PREFIX: Final = "blobs/"
PART_BYTES: Final = 16 << 20
"""Of a part of an upload: 512 parts for the largest blob, S3 takes 10,000; a part is in memory at a time."""

RESUMES: Final = 5
"""How often reading goes on after a lost connection that brought nothing."""

_BUFFER: Final = 1 << 20


class S3Blobs:
    """See `functions.deploy.store.BlobStore`. Threads may share it.

    Objects are encrypted with S3's own key, or with `kms_key`. Beside the errors of `BlobStore`, every method
    raises those of `aws_error`, and `DeniedError("aws.s3.bucket")` without the bucket.
    """

    def __init__(self, bucket: str, client: AwsClient, *, kms_key: str = "") -> None:
        self._bucket = bucket
        self._client = client
        self._encryption = {"ServerSideEncryption": "AES256"}
        if kms_key:
            self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key}

    def put(self, data: bytes) -> str:
        """See `BlobStore`. S3 checks the digest of what arrived."""
        checksum = hashlib.sha256(data)
        digest = checksum.hexdigest()
        try:
            with self._errors(f"storing blob {digest}"):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=PREFIX + digest,
                    Body=data,
                    ChecksumSHA256=base64.b64encode(checksum.digest()).decode(),
                    IfNoneMatch="*",
                    **self._encryption,
                )
        except CloudError as error:
            if error_code(error.__cause__) != "PreconditionFailed":
                raise
        return digest

    def put_file(self, path: Path) -> str:
        """See `BlobStore`. Raises `StorageError("deploy.blob.changed")` for a file that changes meanwhile."""
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - loaded by the client already

        with _readable(path), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            if size > MAX_BLOB:
                raise StorageError("deploy.blob.size", f"{path.name} has {size} bytes, expected {MAX_BLOB}")
            if self._has(digest):
                return digest
            file.seek(0)
            if size <= PART_BYTES:
                return self._put_unchanged(file.read(), digest)
            with self._errors(f"storing blob {digest}"):
                self._client.upload_fileobj(
                    _Checked(file, digest),
                    self._bucket,
                    PREFIX + digest,
                    ExtraArgs={**self._encryption, "ChecksumAlgorithm": "SHA256"},
                    Config=TransferConfig(
                        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
                    ),
                )
        return digest

    def get(self, digest: str, limit: int) -> bytes:
        """See `BlobStore`."""
        with self.open(digest) as file:
            return read_checked(file, digest, limit)

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore`. The file can be sought, and goes on reading after a lost connection."""
        check_digest(digest)
        return io.BufferedReader(_Object(self, digest), _BUFFER)

    def _put_unchanged(self, data: bytes, digest: str) -> str:
        if hashlib.sha256(data).hexdigest() != digest:
            raise _changed()
        return self.put(data)

    def _has(self, digest: str) -> bool:
        try:
            with self._errors(f"looking for blob {digest}"):
                self._client.head_object(Bucket=self._bucket, Key=PREFIX + digest)
        except CloudError as error:
            # a HEAD has no body: of a missing bucket it says no more, which the upload then does
            if error_code(error.__cause__) not in {"404", "NotFound", "NoSuchKey"}:
                raise
            return False
        return True

    def fetch(self, digest: str, start: int, etag: str) -> dict[str, Any]:
        """Return S3's answer to a GET from a byte on; with `etag`, only of the object that has it.

        Raises `NotFoundError("deploy.blob")`.
        """
        options = {"IfMatch": etag} if etag else {}
        if start:
            options["Range"] = f"bytes={start}-"
        try:
            with self._errors(f"reading blob {digest}"):
                found: dict[str, Any] = self._client.get_object(
                    Bucket=self._bucket, Key=PREFIX + digest, **options
                )
        except CloudError as error:
            if error_code(error.__cause__) == "NoSuchKey":
                raise NotFoundError("deploy.blob", f"there is no blob {digest}") from error
            if error_code(error.__cause__) == "PreconditionFailed":
                raise StorageError("deploy.blob.corrupt", f"blob {digest} was changed") from error
            raise
        return found

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            with aws_errors(what):
                yield
        except DeniedError as error:
            if error.code != "aws.denied":
                raise
            hint = f"{error.hint}; without s3:ListBucket, s3 denies what is only missing"
            raise DeniedError(error.code, error.message, hint) from error.__cause__
        except CloudError as error:
            if error_code(error.__cause__) != "NoSuchBucket":
                raise
            raise DeniedError(
                "aws.s3.bucket",
                f"{what}: there is no bucket {self._bucket}",
                "deploy the stack that makes the bucket, or correct its name and region",
            ) from error


class _Object(io.RawIOBase):
    """An object's bytes, fetched as they are read."""

    def __init__(self, blobs: S3Blobs, digest: str) -> None:
        super().__init__()
        self._blobs = blobs
        self._digest = digest
        self._at = 0
        answer = blobs.fetch(digest, 0, "")
        self._size = int(answer["ContentLength"])
        self._etag = str(answer["ETag"])
        self._body: Any = answer["Body"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"position {position} is before the start")
        if position != self._at:
            self._drop()
            self._at = position
        return position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer has no type in Python 3.11
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _read(self, wanted: int) -> bytes:
        for left in reversed(range(RESUMES + 1)):
            try:
                with aws_errors(f"reading blob {self._digest}"):
                    if self._body is None:
                        self._body = self._blobs.fetch(self._digest, self._at, self._etag)["Body"]
                    data: bytes = self._body.read(wanted)
            except TransientCloudError:
                self._drop()
                if not left:
                    raise
                continue
            if data:
                return data
            self._drop()
        raise TransientCloudError("aws.unavailable", f"reading blob {self._digest}: s3 ends it too early")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class _Checked:
    """A file to be uploaded, from which nothing is completed that does not have the digest."""

    def __init__(self, file: BinaryIO, digest: str) -> None:
        self._file = file
        self._digest = digest
        self._seen = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._seen.update(data)
        if not data and self._seen.hexdigest() != self._digest:
            raise _changed()
        return data


def _changed() -> StorageError:
    return StorageError("deploy.blob.changed", "a file changed while it was being stored")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError("deploy.blob.store", f"cannot read {path}: {error}") from error
