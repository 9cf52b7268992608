"""Firestore's documents: reads, conditional commits, and the queries that need no index of their own."""

import base64
import itertools
import re
from typing import Any

from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest, Refusal

DOCUMENTS = "firestore.projects.databases.documents."
BATCH_GET = DOCUMENTS + "batchGet"
COMMIT = DOCUMENTS + "commit"
RUN_QUERY = DOCUMENTS + "runQuery"
MAX_DOCUMENT = 1 << 20
MAX_REQUEST = 10 << 20
MAX_INDEXED = 1500

_ID = re.compile(r"(?!\.\.?$)(?!__.*__$)[^/]{1,1500}")


class Firestore:
    """Serves the databases `projects/PROJECT/databases/(default)` on `rest`; `documents` are by full name."""

    def __init__(self, rest: GoogleRest, project: str = "p1") -> None:
        self.database = f"projects/{project}/databases/(default)"
        self.documents: dict[str, dict[str, Any]] = {}
        self._ticks = itertools.count(1)
        rest.handle(BATCH_GET)(self._batch_get)
        rest.handle(COMMIT)(self._commit)
        rest.handle(RUN_QUERY)(self._run_query)

    def _check_database(self, name: str) -> None:
        if name != self.database and not name.startswith(f"{self.database}/"):
            raise Refusal(
                404, f"The database {name.split('/')[3]} does not exist for project {name.split('/')[1]}."
            )

    def _check_name(self, name: str) -> None:
        self._check_database(name)
        ids = name.removeprefix(f"{self.database}/documents/").split("/")
        if len(ids) % 2 or not all(map(_ID.fullmatch, ids)):
            raise Refusal(400, f'Document name "{name}" is not one')

    def _batch_get(self, request: ApiRequest) -> Answer:
        self._check_database(request.params["database"])
        answers = []
        for name in request.body["documents"]:
            self._check_name(name)
            found = self.documents.get(name)
            if found is None:
                answers.append({"missing": name, "readTime": self._now()})
            else:
                answers.append({"found": _masked(found, request.body.get("mask")), "readTime": self._now()})
        return Answer(200, answers)

    def _commit(self, request: ApiRequest) -> Answer:
        self._check_database(request.params["database"])
        if int(request.headers["content-length"]) > MAX_REQUEST:
            raise Refusal(400, "Request payload size exceeds the limit: 11534336 bytes.")
        names = [write["update"]["name"] for write in request.body["writes"]]
        if len(set(names)) != len(names):
            raise Refusal(400, "cannot write a document twice in one commit of a fake")
        for write in request.body["writes"]:
            if set(write) - {"update", "currentDocument"}:
                raise Refusal(501, f"the fake knows no write with {sorted(write)}")
            self._check_name(write["update"]["name"])
            self._check_condition(write["update"]["name"], write.get("currentDocument", {}))
            self._check_size(write["update"])
        # all conditions hold: from here on nothing fails
        now = self._now()
        for write in request.body["writes"]:
            name = write["update"]["name"]
            created = self.documents.get(name, {"createTime": now})["createTime"]
            fields = write["update"].get("fields", {})
            self.documents[name] = {"name": name, "fields": fields, "createTime": created, "updateTime": now}
        return Answer(200, {"writeResults": [{"updateTime": now} for _ in names], "commitTime": now})

    def _check_condition(self, name: str, condition: dict[str, Any]) -> None:
        found = self.documents.get(name)
        if condition.get("exists") is False and found is not None:
            raise Refusal(409, f"Document already exists: {name}", "ALREADY_EXISTS")
        if condition.get("exists") is True and found is None:
            raise Refusal(404, f"No document to update: {name}", "NOT_FOUND")
        if "updateTime" in condition:
            if found is None:
                raise Refusal(404, f"No document to update: {name}", "NOT_FOUND")
            if found["updateTime"] != condition["updateTime"]:
                raise Refusal(
                    400,
                    "the stored version (2) does not match the required base version (1)",
                    "FAILED_PRECONDITION",
                )

    def _check_size(self, document: dict[str, Any]) -> None:
        size = 16 + sum(len(part) + 1 for part in document["name"].split("/")[5:]) + 32
        for name, value in document.get("fields", {}).items():
            size += len(name) + 1 + _size_of(value)
        if size > MAX_DOCUMENT:
            message = (
                f"Document '{document['name']}' cannot be written because its size ({size:,} bytes) exceeds"
            )
            raise Refusal(400, f"{message} the maximum allowed size of {MAX_DOCUMENT:,} bytes.")

    def _run_query(self, request: ApiRequest) -> Answer:
        parent = request.params["parent"]
        self._check_database(parent)
        query = request.body["structuredQuery"]
        if set(query) - {"from", "orderBy", "startAt", "limit"}:
            raise Refusal(501, f"the fake knows no query with {sorted(query)}")
        (source,), (order,) = query["from"], query["orderBy"]
        if set(source) != {"collectionId"} or order["direction"] != "ASCENDING":
            raise Refusal(501, "the fake knows no such query")
        field = order["field"]["fieldPath"]
        (value,) = query["startAt"]["values"]
        if query["startAt"].get("before") or set(value) != {"stringValue"}:
            raise Refusal(501, "the fake starts behind a string alone")
        prefix = f"{parent}/{source['collectionId']}/"
        rows = [
            (_indexed(document["fields"][field]["stringValue"]), name)
            for name, document in self.documents.items()
            # documents without the field are not in its index
            if name.startswith(prefix)
            and "/" not in name.removeprefix(prefix)
            and field in document["fields"]
        ]
        behind = _indexed(value["stringValue"])
        chosen = [name for key, name in sorted(rows) if key > behind][: query["limit"]]
        answers = [{"document": self.documents[name], "readTime": self._now()} for name in chosen]
        return Answer(200, answers or [{"readTime": self._now()}])

    def _now(self) -> str:
        return f"2026-01-01T00:00:00.{next(self._ticks):09d}Z"


def _masked(document: dict[str, Any], mask: dict[str, Any] | None) -> dict[str, Any]:
    if mask is None:
        return document
    fields = {name: value for name, value in document["fields"].items() if name in mask["fieldPaths"]}
    return document | {"fields": fields}


def _indexed(text: str) -> bytes:
    return text.encode()[:MAX_INDEXED]


def _size_of(value: dict[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind == "bytesValue":
        return len(base64.b64decode(held, validate=True))
    if kind == "stringValue":
        return len(held.encode()) + 1
    if kind in {"integerValue", "timestampValue"}:
        return 8
    if kind == "booleanValue":
        return 1
    raise Refusal(501, f"the fake stores no {kind}")
