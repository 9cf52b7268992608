"""Cloud Storage's objects: simple and resumable uploads, media downloads, generations."""

import base64
import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.fakes.google_rest import CHUNK, Answer, ApiRequest, GoogleRest, Refusal

INSERT = "storage.objects.insert"
INSERT_CHUNK = INSERT + CHUNK
GET = "storage.objects.get"
QUANTUM = 256 << 10
NOT_FOUND = "No such object: {}/{}"


class StoredObject(msgspec.Struct):
    data: bytes
    generation: int
    metadata: dict[str, str] = {}


class _Session(msgspec.Struct):
    bucket: str
    key: str
    if_absent: bool
    metadata: dict[str, str]
    data: bytearray
    made: dict[str, Any] | None = None


class Storage:
    """Serves buckets on `rest`; `objects` are by bucket and key.

    `keep` makes the next chunk of an upload store only so many bytes; `cut` makes the next download end after
    so many; `flip` makes the next upload store other bytes than came.
    """

    def __init__(self, rest: GoogleRest, buckets: Sequence[str] = ("bucket",)) -> None:
        self.buckets = set(buckets)
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self.keep: int | None = None
        self.cut: int | None = None
        self.flip = False
        self.largest_request = 0
        self._rest = rest
        self._sessions: dict[str, _Session] = {}
        self._generations = itertools.count(1_767_225_600_000_001)
        rest.handle("storage.buckets.get")(self._get_bucket)
        rest.handle(GET)(self._get)
        rest.handle("storage.objects.delete")(self._delete)
        rest.handle(INSERT)(self._insert)
        rest.handle(INSERT_CHUNK)(self._chunk)

    def forget_sessions(self) -> None:
        """Lose every upload that is under way."""
        self._sessions.clear()

    def _bucket(self, request: ApiRequest) -> str:
        name = request.params["bucket"]
        if name not in self.buckets:
            raise Refusal(404, "The specified bucket does not exist.")
        return name

    def _get_bucket(self, request: ApiRequest) -> Answer:
        return Answer(200, {"kind": "storage#bucket", "name": self._bucket(request)})

    def _find(self, request: ApiRequest) -> tuple[tuple[str, str], StoredObject]:
        place = (self._bucket(request), request.params["object"])
        found = self.objects.get(place)
        wanted = request.query.get("generation")
        if found is None or wanted not in {None, str(found.generation)}:
            raise Refusal(404, NOT_FOUND.format(*place))
        if request.query.get("ifGenerationMatch", str(found.generation)) != str(found.generation):
            raise Refusal(412, "At least one of the pre-conditions you specified did not hold.")
        return place, found

    def _get(self, request: ApiRequest) -> Answer:
        place, found = self._find(request)
        if request.query.get("alt") != "media":
            return Answer(200, _resource(place, found))
        data, status = found.data, 200
        headers = {"x-goog-generation": str(found.generation)}
        if "range" in request.headers:
            wanted = re.fullmatch(r"bytes=(\d+)-", request.headers["range"])
            assert wanted is not None, request.headers["range"]
            start = int(wanted[1])
            if start >= len(data):
                raise Refusal(416, "The requested range cannot be satisfied.", "requestedRangeNotSatisfiable")
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        headers["Content-Length"] = str(len(data))
        if self.cut is not None:
            data, self.cut = data[: self.cut], None
            headers["Connection"] = "close"
        return Answer(status, data, headers)

    def _delete(self, request: ApiRequest) -> Answer:
        place, _ = self._find(request)
        del self.objects[place]
        return Answer(204)

    def _insert(self, request: ApiRequest) -> Answer:
        bucket = self._bucket(request)
        described = request.body if request.upload == "resumable" and request.body else {}
        key = request.query.get("name") or described.get("name")
        if not key:
            raise Refusal(400, "Required", "required")
        condition = request.query.get("ifGenerationMatch")
        assert condition in {None, "0"}, condition
        self._check_absent(condition == "0", bucket, key)
        if request.upload == "media":
            self.largest_request = max(self.largest_request, len(request.body))
            return Answer(200, self._store((bucket, key), request.body, {}))
        upload_id = f"session{next(self._generations)}"
        self._sessions[upload_id] = _Session(
            bucket, key, condition == "0", described.get("metadata", {}), bytearray()
        )
        place = f"{self._rest.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
        return Answer(200, None, {"Location": place})

    def _chunk(self, request: ApiRequest) -> Answer:
        session = self._sessions.get(request.query["upload_id"])
        if session is None:
            raise Refusal(404, "Upload session not found")
        self.largest_request = max(self.largest_request, len(request.body))
        if session.made is not None:
            return Answer(200, session.made)
        wanted = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", ""))
        if wanted is None:
            raise Refusal(400, f"Content-Range is {request.headers.get('content-range')!r}")
        first, last, total = wanted[1], wanted[2], wanted[3]
        if first is not None:
            if int(last) - int(first) + 1 != len(request.body) or int(first) != len(session.data):
                raise Refusal(
                    400, f"a chunk of {len(request.body)} bytes at {first}, {len(session.data)} stored"
                )
            if total == "*" and len(request.body) % QUANTUM:
                raise Refusal(400, f"a chunk that is not the last has {len(request.body)} bytes")
            kept, self.keep = self.keep, None
            session.data += request.body[:kept]
        elif request.body:
            raise Refusal(400, "a status query has no body")
        if total != "*" and len(session.data) == int(total):
            self._check_absent(session.if_absent, session.bucket, session.key)
            session.made = self._store((session.bucket, session.key), bytes(session.data), session.metadata)
            return Answer(200, session.made)
        stored = {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
        return Answer(308, None, stored)

    def _check_absent(self, if_absent: bool, bucket: str, key: str) -> None:  # noqa: FBT001
        if if_absent and (bucket, key) in self.objects:
            raise Refusal(412, "At least one of the pre-conditions you specified did not hold.")

    def _store(self, place: tuple[str, str], data: bytes, metadata: dict[str, str]) -> dict[str, Any]:
        if self.flip:
            data, self.flip = bytes([data[0] ^ 1]) + data[1:], False
        self.objects[place] = StoredObject(data, next(self._generations), metadata)
        return _resource(place, self.objects[place])


def _resource(place: tuple[str, str], found: StoredObject) -> dict[str, Any]:
    md5 = hashlib.md5(found.data, usedforsecurity=False).digest()
    return {
        "kind": "storage#object",
        "bucket": place[0],
        "name": place[1],
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "md5Hash": base64.b64encode(md5).decode(),
        "timeCreated": "2026-01-01T00:00:00.000Z",
    } | ({"metadata": found.metadata} if found.metadata else {})
