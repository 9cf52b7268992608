"""What the function remembers on Google Cloud, in Firestore: documents of the collection `governance`.

A policy on the field `expires` has Firestore delete what is older (docs/governance-function.md).
"""

import datetime as dt
import hashlib
from collections.abc import Callable
from typing import Any, Final

from functions.google_api.errors import GoogleError
from functions.google_api.rest import GoogleSession
from functions.governance.state import REMEMBER_SECONDS, Cursor
from functions.stores.firestore import BASE_URL
from shared.errors import StorageError, UnavailableError

CLAIM_SECONDS: Final = 60
"""After so long whoever was at a delivery has died."""

_TAKEN: Final = frozenset({"ALREADY_EXISTS", "FAILED_PRECONDITION"})
_CURSOR: Final = "cursor"

Fields = dict[str, dict[str, Any]]


class FirestoreMemory:
    """See `Memory`. Raises what `GoogleSession` raises."""

    def __init__(
        self,
        session: GoogleSession,
        project: str,
        database: str,
        clock: Callable[[], int],
        base_url: str = BASE_URL,
    ) -> None:
        self._session = session
        self._root = f"projects/{project}/databases/{database}/documents"
        self._url = f"{base_url}/v1/{self._root}"
        self._clock = clock

    def do(self, key: str, action: Callable[[], None]) -> bool:
        """See `Memory`. A document is claimed, and its claim is confirmed or given back."""
        name = f"once-{hashlib.sha256(key.encode()).hexdigest()}"
        if not self._claim(name):
            return False
        try:
            action()
        except BaseException:
            self._commit({"update": self._document(name, _once(0, is_done=False))})
            raise
        self._commit({"update": self._document(name, _once(self._clock() + REMEMBER_SECONDS, is_done=True))})
        return True

    def forget(self, key: str) -> None:
        """See `Memory`."""
        name = f"once-{hashlib.sha256(key.encode()).hexdigest()}"
        found = self._get(name)
        until, is_done = (0, False) if found is None else _read_once(found)
        if until <= self._clock():
            return
        if not is_done:
            raise _busy()
        self._commit({"update": self._document(name, _once(0, is_done=False))})

    def cursor(self) -> Cursor | None:
        """See `Memory`."""
        found = self._get(_CURSOR)
        if found is None:
            return None
        try:
            fields = found["fields"]
            return Cursor(int(fields["number"]["integerValue"]), fields["hash"]["stringValue"])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError("governance.state", f"the cursor lacks its {error}") from error

    def move(self, cursor: Cursor) -> None:
        """See `Memory`."""
        fields = {"number": {"integerValue": str(cursor.number)}, "hash": {"stringValue": cursor.hash}}
        self._commit({"update": self._document(_CURSOR, fields)})

    def bury(self, message: str, code: str, now: int) -> None:
        """See `Memory`."""
        fields = {
            "message": {"stringValue": message},
            "code": {"stringValue": code},
            "at": {"integerValue": str(now)},
        }
        name = f"dead-{hashlib.sha256(message.encode()).hexdigest()}"
        self._commit({"update": self._document(name, fields)})

    def _claim(self, name: str) -> bool:
        """Claim a key; False where it was done. Raises `UnavailableError("governance.busy")`."""
        now = self._clock()
        found = self._get(name)
        condition: dict[str, Any] = {"exists": False}
        if found is not None:
            until, is_done = _read_once(found)
            if until > now:
                if is_done:
                    return False
                raise _busy()
            condition = {"updateTime": found["updateTime"]}
        claim = {"update": self._document(name, _once(now + CLAIM_SECONDS, is_done=False))}
        try:
            self._commit(claim | {"currentDocument": condition})
        except GoogleError as error:
            if error.reason in _TAKEN:
                raise _busy() from error
            raise
        return True

    def _get(self, name: str) -> dict[str, Any] | None:
        answer = self._session.call_list(
            "POST", f"{self._url}:batchGet", body={"documents": [self._path(name)]}
        )
        return next((part["found"] for part in answer if "found" in part), None)

    def _commit(self, write: dict[str, Any]) -> None:
        self._session.call("POST", f"{self._url}:commit", body={"writes": [write]})

    def _document(self, name: str, fields: Fields) -> dict[str, Any]:
        return {"name": self._path(name), "fields": fields}

    def _path(self, name: str) -> str:
        return f"{self._root}/governance/{name}"


def _once(until: int, *, is_done: bool) -> Fields:
    expires = dt.datetime.fromtimestamp(until, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "until": {"integerValue": str(until)},
        "done": {"booleanValue": is_done},
        "expires": {"timestampValue": expires},
    }


def _read_once(document: dict[str, Any]) -> tuple[int, bool]:
    try:
        fields = document["fields"]
        return int(fields["until"]["integerValue"]), fields["done"]["booleanValue"] is True
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("governance.state", f"a document lacks its {error}") from error


def _busy() -> UnavailableError:
    return UnavailableError("governance.busy", "another call is at the same delivery")
