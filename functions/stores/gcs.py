"""Blobs in a Cloud Storage bucket, each an object named by its digest."""

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from functions.deploy.store import NotFoundError
from functions.google_api.errors import GoogleError
from functions.google_api.storage import Bucket
from functions.stores.digests import check_digest, read_checked
from shared.errors import StorageError

PREFIX: Final = "blobs/"


class GcsBlobs:
    """See `functions.deploy.store.BlobStore`. Also raises what `Bucket` raises."""

    def __init__(self, bucket: Bucket, prefix: str = PREFIX) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def put(self, data: bytes) -> str:
        """See `BlobStore`."""
        digest = hashlib.sha256(data).hexdigest()
        self._bucket.upload(self._prefix + digest, data, if_absent=True)
        return digest

    def put_file(self, path: Path) -> str:
        """See `BlobStore`."""
        try:
            with path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
                source.seek(0)
                self._bucket.upload(self._prefix + digest, source, if_absent=True)
        except OSError as error:
            raise StorageError("deploy.blob.store", f"cannot read {path}: {error}") from error
        return digest

    def get(self, digest: str, limit: int) -> bytes:
        """See `BlobStore`."""
        with self.open(digest) as source:
            return read_checked(source, digest, limit)

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore`."""
        check_digest(digest)
        try:
            return self._bucket.open(self._prefix + digest)
        except GoogleError as error:
            if error.status != 404:
                raise
            raise NotFoundError("deploy.blob", f"there is no blob {digest}") from error
