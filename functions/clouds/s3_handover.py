"""Files that an instance fetches: put into a bucket below the deployment's uid, streamed, and taken away."""

import hashlib
import io
from typing import BinaryIO, Final

from functions.aws_api import AwsClient, aws_errors, error_code
from shared.errors import StorageError

PART_BYTES: Final = 8 << 20
"""What is held of a file at a time."""


def prefix(uid: str) -> str:
    """Return where all of a deployment's objects are."""
    return f"eif/{uid}/"


def hand_over(s3: AwsClient, bucket: str, key: str, digest: str, source: BinaryIO) -> int:
    """Put the bytes of `source`, whose SHA-256 is `digest` (hex), under a key, and return their number.

    What is there already under the same digest is left. Raises `StorageError("deploy.blob.corrupt")`.
    """
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - loaded by the client already

    if (size := _stored_size(s3, bucket, key, digest)) is not None:
        return size
    reader = _HashingReader(source)
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False)
    with aws_errors("uploading the image"):
        s3.upload_fileobj(reader, bucket, key, ExtraArgs={"Metadata": {"sha256": digest}}, Config=config)
    if reader.hexdigest() != digest:
        take_away(s3, bucket, key)
        raise StorageError("deploy.blob.corrupt", f"blob {digest} holds other bytes than it did")
    return reader.size


def hand_over_bytes(s3: AwsClient, bucket: str, key: str, digest: str, content: bytes) -> int:
    """Put bytes under a key, as `hand_over` does."""
    return hand_over(s3, bucket, key, digest, io.BytesIO(content))


def take_away(s3: AwsClient, bucket: str, key: str) -> None:
    """Delete an object; one that is not there is gone already."""
    with aws_errors("deleting the image"):
        s3.delete_object(Bucket=bucket, Key=key)


def take_all_away(s3: AwsClient, bucket: str, uid: str) -> None:
    """Delete whatever is below the deployment's prefix, uploads that never ended included.

    A bucket that is gone holds nothing.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("clearing the bucket"):
        try:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix(uid)):
                for found in page.get("Contents", []):
                    s3.delete_object(Bucket=bucket, Key=found["Key"])
            for page in s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=prefix(uid)
            ):
                for upload in page.get("Uploads", []):
                    s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except ClientError as error:
            if error_code(error) not in {"NoSuchBucket", "NoSuchUpload"}:
                raise


def bucket_problem(s3: AwsClient, bucket: str) -> str:
    """Say what is wrong with the bucket as far as one can see from outside; empty for nothing."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("looking at the bucket"):
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in {"404", "NoSuchBucket"}:
                return "does not exist"
            if error_code(error) in {"403", "AccessDenied"}:
                return "belongs to somebody else, or may not be read"
            raise
    return ""


def _stored_size(s3: AwsClient, bucket: str, key: str, digest: str) -> int | None:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("looking for the image in the bucket"):
        try:
            found = s3.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error_code(error) in {"404", "NoSuchKey"}:
                return None
            raise
    return int(found["ContentLength"]) if found.get("Metadata", {}).get("sha256") == digest else None


class _HashingReader:
    """Reads once, front to back, and hashes what passes: boto3 then needs no seeking, and holds one part."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
