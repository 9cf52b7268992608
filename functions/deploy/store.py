"""What the engine needs of a place to keep deployments. Every change is a compare-and-swap."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from functions.deploy.record import Deployment, Event
from shared.errors import DstackError, ExitCode

MAX_BLOB: Final = 8 << 30
"""No image is larger; blobs are streamed, never held."""

MAX_EVENTS: Final = 64
"""With one write; DynamoDB takes 100 items in a transaction."""


class ConflictError(DstackError):
    """Somebody else changed the record first: read it again and decide again."""


class NotFoundError(DstackError):
    """There is no deployment, or blob, of this name: `deploy.unknown`, `deploy.blob`."""

    exit_code = ExitCode.USAGE


class DeploymentStore(Protocol):
    """Records by name, with their events. Each method is atomic."""

    def create(self, deployment: Deployment, events: Sequence[Event] = ()) -> None:
        """Store a record of version 1 under a name that is free: no record, or one that is `removed`.

        Raises `ConflictError("deploy.name_taken")`.
        """
        ...

    def get(self, name: str) -> Deployment:
        """Return the newest version, read consistently. Raises `NotFoundError("deploy.unknown")`."""
        ...

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        """Store a record and its events where the stored version is `expected`.

        Raises `ConflictError("deploy.conflict")` and changes nothing otherwise.
        """
        ...

    def list(self, after: str = "", limit: int = 100) -> Sequence[Deployment]:
        """Return deployments by name, those behind `after`. What is removed is in it too."""
        ...

    def events(self, name: str, after: str = "", limit: int = 200) -> Sequence[Event]:
        """Return the events of the name's newest use, those behind the id `after`, oldest first."""
        ...


class BlobStore(Protocol):
    """Bytes by their SHA-256 (hex). What is stored never changes, so all of it is idempotent."""

    def put(self, data: bytes) -> str:
        """Store bytes, return their SHA-256."""
        ...

    def put_file(self, path: Path) -> str:
        """Store a file's bytes without holding them."""
        ...

    def get(self, digest: str, limit: int) -> bytes:
        """Return bytes, checked against their digest.

        Raises `NotFoundError("deploy.blob")`, `StorageError("deploy.blob.corrupt")`,
        `StorageError("deploy.blob.size")` for more than `limit` bytes.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; the reader checks its digest. Raises `NotFoundError("deploy.blob")`."""
        ...


Schedule = Callable[[str, int], None]
"""Have `advance` called for a name, in so many seconds. Being called too often does no harm."""
