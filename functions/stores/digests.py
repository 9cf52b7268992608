"""What all blob stores ask of a digest, and of the bytes that were found under it."""

import hashlib
from typing import BinaryIO, Final

from functions.deploy.store import NotFoundError
from shared.errors import StorageError

_DIGITS: Final = frozenset("0123456789abcdef")


def check_digest(digest: str) -> None:
    """Refuse what could not name a blob: it becomes part of a path. Raises `NotFoundError("deploy.blob")`."""
    if len(digest) != 64 or not set(digest) <= _DIGITS:
        raise NotFoundError("deploy.blob", f"{digest[:64]!a} names no blob")


def read_checked(file: BinaryIO, digest: str, limit: int) -> bytes:
    """Return all of a blob of at most `limit` bytes.

    Raises `StorageError`: `deploy.blob.size`, or `deploy.blob.corrupt` for bytes of another SHA-256.
    """
    data = file.read(limit + 1)
    if len(data) > limit:
        raise StorageError("deploy.blob.size", f"blob {digest} has more than {limit} bytes")
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError("deploy.blob.corrupt", f"blob {digest} holds other bytes than it did")
    return data
