"""Objects of a Cloud Storage bucket, streamed both ways: a lost connection costs a chunk, not the upload."""

import base64
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast
from urllib.parse import quote, urlsplit

import msgspec

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api.errors import GoogleError
from functions.google_api.rest import GoogleSession, Reply
from shared.errors import CloudError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from urllib3 import BaseHTTPResponse

BASE_URL: Final = "https://storage.googleapis.com"
CHUNK: Final = 8 << 20
"""Bytes of an upload held at once; the service takes multiples of 256 KiB."""

MAX_RESUMES: Final = 5
"""How often in a row a transfer is taken up again without a byte of progress: half a minute in all."""

_BINARY: Final = "application/octet-stream"

Pause = Callable[[float], object]


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An object as the bucket has it. `md5` and `crc32c` are base64, empty where the service has none."""

    key: str
    size: int
    generation: int
    md5: str = ""
    crc32c: str = ""
    metadata: dict[str, str] = {}


class Bucket:
    """One bucket. Methods raise what `GoogleSession` does, `DeniedError("gcp.storage.bucket")` without it.

    `pause` waits between attempts at one transfer.
    """

    def __init__(
        self,
        session: GoogleSession,
        name: str,
        base_url: str = BASE_URL,
        *,
        pause: Pause = time.sleep,
        chunk: int = CHUNK,
    ) -> None:
        self.name = name
        self._session = session
        self._base = base_url
        self._bucket_url = f"{base_url}/storage/v1/b/{quote(name, safe='')}"
        self._upload_url = f"{base_url}/upload/storage/v1/b/{quote(name, safe='')}/o"
        self._pause = pause
        self._chunk = chunk

    def exists(self) -> bool:
        """Whether there is such a bucket that the caller may look at."""
        try:
            self._session.call("GET", self._bucket_url, query={"fields": "name"})
        except GoogleError as error:
            if error.status == 404:
                return False
            raise
        return True

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what the bucket says of an object, None without one."""
        try:
            return _info(self._session.call("GET", self._object_url(key)))
        except GoogleError as error:
            self._check_bucket(error)
            if error.status == 404:
                return None
            raise

    def delete(self, key: str, *, generation: int | None = None) -> bool:
        """Delete an object, or only this generation of it; say whether there was one."""
        query = {} if generation is None else {"ifGenerationMatch": str(generation)}
        try:
            self._session.send("DELETE", self._object_url(key), query=query)
        except GoogleError as error:
            self._check_bucket(error)
            if error.status in {404, 412}:
                return False
            raise
        return True

    def upload(
        self,
        key: str,
        reader: BinaryIO | bytes,
        *,
        if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store an object from where `reader` stands, holding one chunk at a time.

        With `if_absent`, an object that is there already stays, and what the bucket says of it is returned.
        Raises `CloudError("gcp.storage.corrupt")` if other bytes arrived; they do not stay.
        """
        query = {"name": key} | ({"ifGenerationMatch": "0"} if if_absent else {})
        digest = hashlib.md5(usedforsecurity=False)
        try:
            if isinstance(reader, bytes) and len(reader) <= self._chunk and not metadata:
                digest.update(reader)
                made = self._simple(reader, query)
            else:
                source = io.BytesIO(reader) if isinstance(reader, bytes) else reader
                made = self._resumable(source, query, metadata or {}, digest.update)
        except GoogleError as error:
            self._check_bucket(error)
            found = self.stat(key) if if_absent and error.status == 412 else None
            if found is None:
                raise
            return found
        wanted = base64.b64encode(digest.digest()).decode()
        if made.md5 not in {"", wanted}:
            self.delete(key, generation=made.generation)
            raise CloudError(
                "gcp.storage.corrupt", f"{self.name}/{key} arrived with other bytes than were sent"
            )
        return made

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading, one generation of it however long that takes.

        Raises `GoogleError` 404 without the object; reading raises `TransientCloudError` when the service
        stays away.
        """
        try:
            reader = _Reader(self._session, self._object_url(key), self._pause)
        except GoogleError as error:
            self._check_bucket(error)
            raise
        return cast("BinaryIO", io.BufferedReader(reader))

    def download(self, key: str, limit: int) -> bytes:
        """Return an object's bytes. Raises `CloudError("gcp.storage.size")` for more than `limit`."""
        with self.open(key) as source:
            data = source.read(limit + 1)
        if len(data) > limit:
            raise CloudError("gcp.storage.size", f"{self.name}/{key} has more than {limit} bytes")
        return data

    def _check_bucket(self, error: GoogleError) -> None:
        # a missing bucket and a missing object differ by google's sentence alone
        if error.status == 404 and "bucket does not exist" in error.message:
            raise DeniedError(
                "gcp.storage.bucket",
                f"there is no bucket {self.name}",
                f"gcloud storage buckets create gs://{self.name}",
            ) from error

    def _object_url(self, key: str) -> str:
        return f"{self._bucket_url}/o/{quote(key, safe='')}"

    def _simple(self, data: bytes, query: Mapping[str, str]) -> ObjectInfo:
        reply = self._session.send(
            "POST",
            self._upload_url,
            body=data,
            headers={"Content-Type": _BINARY},
            query={"uploadType": "media", **query},
        )
        return _info(_json(reply))

    def _resumable(
        self,
        source: BinaryIO,
        query: Mapping[str, str],
        metadata: Mapping[str, str],
        update: Callable[[bytes], object],
    ) -> ObjectInfo:
        begun = self._session.send(
            "POST",
            self._upload_url,
            body=msgspec.json.encode({"metadata": metadata} if metadata else {}),
            headers={"Content-Type": "application/json", "X-Upload-Content-Type": _BINARY},
            query={"uploadType": "resumable", **query},
        )
        upload = _Upload(self._session, self._session_url(begun), self._pause)
        start = 0
        held = b""
        while True:
            # one byte more than is sent tells whether these are the last
            held += _exactly(source, self._chunk + 1 - len(held))
            data, held = held[: self._chunk], held[self._chunk :]
            update(data)
            made = upload.put(data, start, None if held else start + len(data))
            start += len(data)
            if made is not None:
                return made

    def _session_url(self, reply: Reply) -> str:
        url = reply.headers.get("location", "")
        # the token goes with every chunk
        if urlsplit(url)[:2] != urlsplit(self._base)[:2]:
            raise CloudError("gcp.answer", f"an upload is to go on at {url[:80]!a}, not at {self._base}")
        return url


class _Upload:
    """A session of a resumable upload, which may be asked what it has."""

    def __init__(self, session: GoogleSession, url: str, pause: Pause) -> None:
        self._session = session
        self._url = url
        self._pause = pause

    def put(self, data: bytes, start: int, total: int | None) -> ObjectInfo | None:
        """Send one chunk until it is stored whole; with the last, return the object."""
        end = start + len(data)
        sent = start
        idle = 0
        is_known = True
        while True:
            reply = self._attempt(data[sent - start :], sent, total) if is_known else self._ask(total)
            # a chunk whose answer was lost may be stored, in part or whole: the session knows
            is_known = reply is not None
            if reply is not None and reply.status != 308:
                if total is None:
                    raise CloudError("gcp.answer", "an upload was called complete before its last chunk")
                return _info(_json(reply))
            stored = sent if reply is None else _stored(reply)
            if not sent <= stored <= end:
                raise CloudError(
                    "gcp.answer", f"an upload has {stored} bytes, after {sent} were stored and {end} sent"
                )
            if is_known and stored == end and total is None:
                return None
            idle = 0 if stored > sent else idle + 1
            if idle > MAX_RESUMES:
                raise TransientCloudError("gcp.unavailable", f"an upload stays at {sent} bytes")
            if idle:
                self._pause(float(1 << (idle - 1)))
            sent = stored

    def _attempt(self, data: bytes, sent: int, total: int | None) -> Reply | None:
        here = f"{sent}-{sent + len(data) - 1}" if data else "*"
        return self._put(data, f"bytes {here}/{'*' if total is None else total}")

    def _ask(self, total: int | None) -> Reply | None:
        return self._attempt(b"", 0, total)

    def _put(self, data: bytes, content_range: str) -> Reply | None:
        try:
            return self._session.send(
                "PUT",
                self._url,
                body=data,
                headers={"Content-Range": content_range, "Content-Type": _BINARY},
                expect=(200, 201, 308),
            )
        except TransientCloudError:
            return None
        except GoogleError as error:
            if error.status in {404, 410}:
                # sessions end after a week, or when the service loses them: only a new upload helps
                raise TransientCloudError(
                    "gcp.unavailable", f"an upload's session is gone: {error.message}"[:400]
                ) from error
            raise


class _Reader(io.RawIOBase):
    """One generation of an object, read on at the same byte after a connection was lost."""

    def __init__(self, session: GoogleSession, url: str, pause: Pause) -> None:
        super().__init__()
        self._session = session
        self._url = url
        self._pause = pause
        self._at = 0
        self._generation = ""
        self._size = -1
        self._answer: BaseHTTPResponse | None = None
        self._answer = self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        idle = 0
        while True:
            piece = self._piece(len(view))
            if piece is not None:
                view[: len(piece)] = piece
                self._at += len(piece)
                return len(piece)
            idle += 1
            if idle > MAX_RESUMES:
                raise TransientCloudError(
                    "gcp.unavailable", f"a download stays at {self._at} of {self._size} bytes"
                )
            self._pause(float(1 << (idle - 1)))
            try:
                self._answer = self._ask()
            except TransientCloudError:
                continue

    def close(self) -> None:
        if not self.closed and self._answer is not None:
            self._answer.close()
        super().close()

    def _piece(self, size: int) -> bytes | None:
        import urllib3  # noqa: PLC0415 - heavy

        if self._answer is None:
            return None
        try:
            piece = self._answer.read(size)
        except (urllib3.exceptions.HTTPError, OSError):
            piece = b""
        if piece or self._at == self._size or size == 0:
            return piece
        self._answer.close()
        self._answer = None
        return None

    def _ask(self) -> "BaseHTTPResponse | None":
        query = {"alt": "media"} | ({"generation": self._generation} if self._generation else {})
        # without an encoding of our own choice the service may unpack what was stored packed
        headers = {"Accept-Encoding": "gzip"} | ({"Range": f"bytes={self._at}-"} if self._at else {})
        expect = (206,) if self._at else (200,)
        answer = self._session.stream("GET", self._url, query=query, headers=headers, expect=expect)
        if self._size < 0:
            length = answer.headers.get("content-length", "")
            if not length.isdigit():
                answer.close()
                raise CloudError("gcp.answer", "an object came without its length")
            self._size = int(length)
            self._generation = answer.headers.get("x-goog-generation", "")
        return answer


def _exactly(source: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end."""
    pieces = []
    while size > 0 and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _stored(reply: Reply) -> int:
    text = reply.headers.get("range", "")
    if not text:
        return 0
    start, _, last = text.removeprefix("bytes=").partition("-")
    if start != "0" or not last.isdigit():
        raise CloudError("gcp.answer", f"an upload has stored {text[:40]!a}, expected bytes=0-N")
    return int(last) + 1


def _json(reply: Reply) -> Any:  # noqa: ANN401 - JSON
    try:
        return msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, ValueError) as error:
        raise CloudError("gcp.answer", "an upload was answered with no JSON") from error


def _info(found: Any) -> ObjectInfo:  # noqa: ANN401 - JSON
    try:
        return ObjectInfo(
            key=found["name"],
            size=int(found["size"]),
            generation=int(found["generation"]),
            md5=found.get("md5Hash", ""),
            crc32c=found.get("crc32c", ""),
            metadata=found.get("metadata", {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CloudError("gcp.answer", f"an object was described without its {error}"[:200]) from error
