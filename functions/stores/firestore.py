"""Deployments in Firestore: a document per name, its events below it, both written by one commit.

`deployments/NAME` holds the record as JSON bytes, and what is asked for beside it; events are
`deployments/NAME/uses/UID/events/ID`. Queries need no index but those that Firestore makes by itself; an
exemption for the fields `record` and `event` saves their cost. A document is changed under the update time
it was read with, so a commit that comes too late changes nothing.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.record import Deployment, Event, Step, decode_record, encode_record
from functions.deploy.store import ConflictError, NotFoundError
from functions.google_api.errors import CONTENTION, GoogleError
from functions.google_api.rest import GoogleSession
from shared.errors import CloudError, StorageError

BASE_URL: Final = "https://firestore.googleapis.com"
MAX_DOCUMENT: Final = 1 << 20
"""Firestore's limit for a document, its name and its fields' names included."""

MAX_RECORD: Final = MAX_DOCUMENT - 4096
"""Leaves room for the document's path and the fields beside the record, which take a few hundred bytes."""

_RECORDS_AT_ONCE: Final = 20
"""The largest records fit an answer (`MAX_ANSWER`) so many times, in base64."""

_EVENTS_AT_ONCE: Final = 200
_TRIES: Final = 4
"""How often a commit is tried again when Firestore gave it up for another one."""

_LOST_RACE: Final = frozenset({"ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What is a document's id without being escaped, and more than what the service takes for a name."""


class _Stored(msgspec.Struct, frozen=True):
    """What stands beside the record, and when it was written."""

    uid: str
    version: int
    step: str
    update_time: str


class FirestoreStore:
    """See `functions.deploy.store.DeploymentStore`. Also raises what `GoogleSession` raises.

    A write that is repeated because its answer was lost succeeds: the record that it would write is there.
    """

    def __init__(
        self,
        session: GoogleSession,
        project: str,
        database: str = "(default)",
        base_url: str = BASE_URL,
    ) -> None:
        self._session = session
        self._project = project
        self._database = database
        self._root = f"projects/{project}/databases/{database}/documents"
        self._url = f"{base_url}/v1/{self._root}"

    def create(self, deployment: Deployment, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`. Raises `StorageError`: `deploy.record.size`, `deploy.events.size`."""
        if not _NAME.fullmatch(deployment.name):
            raise StorageError("deploy.store", f"{deployment.name[:80]!a} cannot name a document")
        found = self._beside(deployment.name)
        is_done = False
        if found is None:
            is_done = self._commit(deployment, events, {"exists": False})
        elif found.step == Step.REMOVED.value:
            is_done = self._commit(deployment, events, {"updateTime": found.update_time})
        if not is_done and not self._is_stored(deployment):
            raise ConflictError("deploy.name_taken", f"there is a deployment {deployment.name} already")

    def get(self, name: str) -> Deployment:
        """See `DeploymentStore`."""
        found = self._document(name, ["record"])
        if found is None:
            raise NotFoundError("deploy.unknown", f"there is no deployment {name[:80]!a}")
        return decode_record(_bytes(found, "record"))

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`. Raises `StorageError`: `deploy.record.size`, `deploy.events.size`."""
        found = self._beside(deployment.name)
        is_done = False
        if found is not None and (found.uid, found.version) == (deployment.uid, expected):
            is_done = self._commit(deployment, events, {"updateTime": found.update_time})
        if not is_done and not self._is_stored(deployment):
            raise ConflictError(
                "deploy.conflict", f"deployment {deployment.name} is not at version {expected} any more"
            )

    def list(self, after: str = "", limit: int = 100) -> Sequence[Deployment]:
        """See `DeploymentStore`."""
        found: list[Deployment] = []
        while len(found) < limit:
            size = min(_RECORDS_AT_ONCE, limit - len(found))
            page = self._query(self._url, "deployments", "name", found[-1].name if found else after, size)
            found += [decode_record(_bytes(one, "record")) for one in page]
            if len(page) < size:
                break
        return found

    def events(self, name: str, after: str = "", limit: int = 200) -> Sequence[Event]:
        """See `DeploymentStore`."""
        stored = self._beside(name)
        if stored is None:
            return []
        parent = f"{self._url}/deployments/{name}/uses/{stored.uid}"
        found: list[Event] = []
        while len(found) < limit:
            size = min(_EVENTS_AT_ONCE, limit - len(found))
            page = self._query(parent, "events", "id", found[-1].id if found else after, size)
            found += [_event(_bytes(one, "event")) for one in page]
            if len(page) < size:
                break
        return found

    def _beside(self, name: str) -> _Stored | None:
        found = self._document(name, ["uid", "version", "step"])
        if found is None:
            return None
        try:
            fields = found["fields"]
            return _Stored(
                fields["uid"]["stringValue"],
                int(fields["version"]["integerValue"]),
                fields["step"]["stringValue"],
                found["updateTime"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError("deploy.record", f"the document of {name} lacks its {error}") from error

    def _document(self, name: str, fields: Sequence[str]) -> dict[str, Any] | None:
        if not _NAME.fullmatch(name):
            return None
        # of a single get, a missing database looks like a missing document
        asked = {"documents": [f"{self._root}/deployments/{name}"], "mask": {"fieldPaths": fields}}
        answer = self._read(f"{self._url}:batchGet", asked)
        for part in answer:
            if "found" in part:
                found: dict[str, Any] = part["found"]
                return found
            if "missing" in part:
                return None
        raise CloudError("gcp.answer", f"the document of {name} was neither found nor missing")

    def _query(
        self, parent: str, collection: str, field: str, after: str, limit: int
    ) -> Sequence[dict[str, Any]]:
        query = {
            "from": [{"collectionId": collection}],
            "orderBy": [{"field": {"fieldPath": field}, "direction": "ASCENDING"}],
            "startAt": {"values": [{"stringValue": after}], "before": False},
            "limit": limit,
        }
        answer = self._read(f"{parent}:runQuery", {"structuredQuery": query})
        return [part["document"] for part in answer if "document" in part]

    def _read(self, url: str, body: object) -> Sequence[dict[str, Any]]:
        try:
            return self._session.call_list("POST", url, body=body)
        except GoogleError as error:
            if error.status != 404:
                raise
            raise DeniedError(
                "gcp.firestore.database",
                f"there is no firestore database {self._database} in project {self._project}",
                f"gcloud firestore databases create --database={self._database} --project={self._project}"
                " --location=LOCATION",
            ) from error

    def _commit(self, deployment: Deployment, events: Sequence[Event], condition: dict[str, Any]) -> bool:
        """Write all of it, or nothing and return False if the condition does not hold."""
        writes = [
            self._record_write(deployment, condition),
            *(self._event_write(deployment, e) for e in events),
        ]
        return self._settled(
            lambda: self._session.call("POST", f"{self._url}:commit", body={"writes": writes}), deployment
        )

    def _settled(self, commit: Callable[[], object], deployment: Deployment) -> bool:
        for tries in range(1, _TRIES + 1):
            try:
                commit()
            except GoogleError as error:
                if error.reason in _LOST_RACE:
                    return False
                raise
            except TransientCloudError as error:
                # it may have been done all the same
                if self._is_stored(deployment):
                    return True
                if error.code != CONTENTION or tries == _TRIES:
                    raise
            else:
                return True
        return False

    def _is_stored(self, deployment: Deployment) -> bool:
        found = self._document(deployment.name, ["record"])
        return found is not None and _bytes(found, "record") == encode_record(deployment)

    def _record_write(self, deployment: Deployment, condition: dict[str, Any]) -> dict[str, Any]:
        record = _bounded(encode_record(deployment), "deploy.record.size", f"the record of {deployment.name}")
        fields = {
            "name": {"stringValue": deployment.name},
            "uid": {"stringValue": deployment.uid},
            "version": {"integerValue": str(deployment.version)},
            "step": {"stringValue": deployment.step.value},
            "record": {"bytesValue": base64.b64encode(record).decode()},
        }
        return {
            "update": {"name": f"{self._root}/deployments/{deployment.name}", "fields": fields},
            "currentDocument": condition,
        }

    def _event_write(self, deployment: Deployment, event: Event) -> dict[str, Any]:
        place = f"{self._root}/deployments/{deployment.name}/uses/{deployment.uid}/events/{event.id}"
        raw = _bounded(msgspec.json.encode(event), "deploy.events.size", f"event {event.id}")
        fields = {
            "id": {"stringValue": event.id},
            "event": {"bytesValue": base64.b64encode(raw).decode()},
        }
        return {"update": {"name": place, "fields": fields}}


def _bounded(raw: bytes, code: str, what: str) -> bytes:
    if len(raw) > MAX_RECORD:
        raise StorageError(code, f"{what} has {len(raw)} bytes, firestore takes {MAX_RECORD}")
    return raw


def _bytes(document: dict[str, Any], field: str) -> bytes:
    try:
        return base64.b64decode(document["fields"][field]["bytesValue"], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise StorageError("deploy.record", f"a stored document has no {field} that can be read") from error


def _event(raw: bytes) -> Event:
    try:
        return msgspec.json.decode(raw, type=Event)
    except (msgspec.DecodeError, ValueError) as error:
        raise StorageError("deploy.record", f"a stored event cannot be read: {error}") from error
