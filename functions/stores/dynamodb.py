"""Deployments in one DynamoDB table.

The table has the keys `pk` and `sk`, both strings, and no index:

| pk | sk | holds |
|---|---|---|
| `name#<name>` | `record` | the newest record as JSON; `uid`, `version` and `step` for conditions |
| `name#<name>` | `event#<uid>#<id>` | one event |
| `names` | `name#<name>` | nothing: names in order, for `list` |

The `names` items stand where a global secondary index might. An index lags behind, and whoever lists would
miss what was just created; these are written in the transaction that creates the record, read consistently,
and never written again. One partition holds them, which takes a thousand creations a second.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.record import Deployment, Event, Step, decode_record, encode_record
from functions.deploy.store import MAX_EVENTS, ConflictError, NotFoundError
from shared.errors import CloudError, StorageError

MAX_RECORD: Final = 380 * 1024
"""Bytes of a record or an event. DynamoDB takes 400 KiB in an item, names and all attributes included."""

_BATCH: Final = 100
"""Of keys in one BatchGetItem, DynamoDB's limit."""

_MAX_UNSURE: Final = 256
"""Of writes whose outcome is not known. Whoever made one repeats it soon, or never."""

_NAMES: Final = "names"
_RECORD: Final = "record"

Item = dict[str, dict[str, Any]]


class DynamoDbStore:
    """See `functions.deploy.store.DeploymentStore`. Threads may share it.

    A write carries a token, the transaction's idempotency token, which is kept in the item. When an answer is
    lost, the repetition (boto3's, or the caller's of the same record through the same store) finds its token
    there, and is a success instead of a conflict. The token is random: two writers of equal records must not
    take each other's write for their own.

    Beside the errors of `DeploymentStore`, every method raises those of `aws_error`, and
    `DeniedError("aws.dynamodb.table")` without the table.
    """

    def __init__(self, table: str, client: AwsClient) -> None:
        self._table = table
        self._client = client
        self._unsure: dict[bytes, str] = {}

    def create(self, deployment: Deployment, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`."""
        name_item = {"pk": _text(_NAMES), "sk": _text(_name_key(deployment.name))}
        condition = {
            "ConditionExpression": "attribute_not_exists(pk) OR #step = :removed",
            "ExpressionAttributeNames": {"#step": "step"},
            "ExpressionAttributeValues": {":removed": _text(Step.REMOVED.value)},
        }
        if not self._write(deployment, condition, events, [name_item]):
            raise ConflictError("deploy.name_taken", f"there is a deployment {deployment.name} already")

    def get(self, name: str) -> Deployment:
        """See `DeploymentStore`."""
        item = self._item(name, "#record", {"#record": "record"})
        if item is None:
            raise NotFoundError("deploy.unknown", f"there is no deployment {name[:80]!a}")
        return _decoded(item)

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        """See `DeploymentStore`."""
        condition = {
            "ConditionExpression": "#uid = :uid AND #version = :expected",
            "ExpressionAttributeNames": {"#uid": "uid", "#version": "version"},
            "ExpressionAttributeValues": {":uid": _text(deployment.uid), ":expected": {"N": str(expected)}},
        }
        if not self._write(deployment, condition, events, []):
            raise ConflictError(
                "deploy.conflict", f"deployment {deployment.name} is not at version {expected} any more"
            )

    def list(self, after: str = "", limit: int = 100) -> Sequence[Deployment]:
        """See `DeploymentStore`."""
        keys = self._query("pk = :pk AND sk > :after", _NAMES, {":after": _name_key(after)}, limit)
        names = [key["sk"]["S"] for key in keys]
        records: dict[str, Deployment] = {}
        for start in range(0, len(names), _BATCH):
            for item in self._batch(names[start : start + _BATCH]):
                records[item["pk"]["S"]] = _decoded(item)
        return [records[name] for name in names if name in records]

    def events(self, name: str, after: str = "", limit: int = 200) -> Sequence[Event]:
        """See `DeploymentStore`."""
        current = self._item(name, "#uid", {"#uid": "uid"})
        if current is None:
            return []
        uid = current["uid"]["S"]
        first = f"event#{uid}#{after}"
        # `$` is the character behind `#`: everything with the prefix lies between
        between = {":first": first, ":last": f"event#{uid}$"}
        # the range includes its ends, so `after` itself may come, and is one more than was asked for
        items = self._query("pk = :pk AND sk BETWEEN :first AND :last", _name_key(name), between, limit + 1)
        found = [item["event"]["S"] for item in items if item["sk"]["S"] != first]
        return [msgspec.json.decode(text, type=Event) for text in found[:limit]]

    def _write(
        self,
        deployment: Deployment,
        condition: Mapping[str, Any],
        events: Sequence[Event],
        others: Sequence[Item],
    ) -> bool:
        """Write all or nothing; False where the condition does not hold."""
        record = encode_record(deployment)
        others = [*others, *(_event_item(deployment, event) for event in events)]
        _check_sizes(deployment, record, events)
        digest = hashlib.sha256(msgspec.json.encode((condition, record, others))).digest()
        token = self._unsure.get(digest) or secrets.token_hex(16)
        item = {
            "pk": _text(_name_key(deployment.name)),
            "sk": _text(_RECORD),
            "uid": _text(deployment.uid),
            "version": {"N": str(deployment.version)},
            "step": _text(deployment.step.value),
            "write": _text(token),
            "record": _text(record.decode()),
        }
        puts = [{"TableName": self._table, "Item": item, **condition}]
        puts += [{"TableName": self._table, "Item": other} for other in others]
        try:
            written = self._transact(deployment.name, puts, token)
        except TransientCloudError:
            self._remember(digest, token)
            raise
        self._unsure.pop(digest, None)
        return written

    def _transact(self, name: str, puts: Sequence[dict[str, Any]], token: str) -> bool:
        canceled = self._client.exceptions.TransactionCanceledException
        with self._errors(f"writing deployment {name}"):
            try:
                self._client.transact_write_items(
                    TransactItems=[{"Put": put} for put in puts], ClientRequestToken=token
                )
            except canceled as error:
                reasons = {reason.get("Code", "") for reason in error.response.get("CancellationReasons", [])}
            else:
                return True
        reasons -= {"", "None"}
        if "ConditionalCheckFailed" in reasons:
            stored = self._item(name, "#write", {"#write": "write"})
            return stored is not None and stored.get("write") == _text(token)
        return self._canceled(name, reasons)

    def _canceled(self, name: str, reasons: set[str]) -> bool:
        """Say why a transaction whose conditions hold was not made."""
        if "TransactionConflict" in reasons:
            raise ConflictError("deploy.conflict", f"deployment {name} is being written by somebody else")
        if reasons <= {"ThrottlingError", "ProvisionedThroughputExceeded"} and reasons:
            raise TransientCloudError("aws.throttled", f"writing deployment {name}: the table is too busy")
        raise CloudError(
            "aws.request",
            f"writing deployment {name}: dynamodb canceled it: {', '.join(sorted(reasons)) or 'no reason'}",
        )

    def _item(self, name: str, projection: str, names: Mapping[str, str]) -> Item | None:
        with self._errors(f"reading deployment {name[:80]}"):
            answer = self._client.get_item(
                TableName=self._table,
                Key={"pk": _text(_name_key(name)), "sk": _text(_RECORD)},
                ConsistentRead=True,
                ProjectionExpression=projection,
                ExpressionAttributeNames=names,
            )
        found: Item | None = answer.get("Item")
        return found

    def _query(self, condition: str, partition: str, values: Mapping[str, str], limit: int) -> Sequence[Item]:
        found: list[Item] = []
        start: dict[str, Any] = {}
        while len(found) < limit:
            with self._errors("listing deployments or their events"):
                answer = self._client.query(
                    TableName=self._table,
                    KeyConditionExpression=condition,
                    ExpressionAttributeValues={
                        name: _text(value) for name, value in {":pk": partition, **values}.items()
                    },
                    ConsistentRead=True,
                    Limit=limit - len(found),
                    **start,
                )
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return found

    def _batch(self, name_keys: Sequence[str]) -> Sequence[Item]:
        found: list[Item] = []
        keys = [{"pk": _text(key), "sk": _text(_RECORD)} for key in name_keys]
        while keys:
            with self._errors("listing deployments"):
                answer = self._client.batch_get_item(
                    RequestItems={
                        self._table: {
                            "Keys": keys,
                            "ConsistentRead": True,
                            "ProjectionExpression": "pk, #record",
                            "ExpressionAttributeNames": {"#record": "record"},
                        }
                    }
                )
            items = answer.get("Responses", {}).get(self._table, [])
            found += items
            # an answer holds 16 MB; the rest is asked for again, unless it was throttled altogether
            keys = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            if keys and not items:
                raise TransientCloudError("aws.throttled", "listing deployments: the table is too busy")
        return found

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            with aws_errors(what):
                yield
        except CloudError as error:
            if error_code(error.__cause__) != "ResourceNotFoundException":
                raise
            raise DeniedError(
                "aws.dynamodb.table",
                f"{what}: there is no table {self._table}",
                "deploy the stack that makes the table, or correct its name and region",
            ) from error

    def _remember(self, digest: bytes, token: str) -> None:
        self._unsure[digest] = token
        while len(self._unsure) > _MAX_UNSURE:
            self._unsure.pop(next(iter(self._unsure)), None)


def _check_sizes(deployment: Deployment, record: bytes, events: Sequence[Event]) -> None:
    if len(record) > MAX_RECORD:
        raise StorageError(
            "deploy.record.size",
            f"deployment {deployment.name} has a record of {len(record)} bytes, dynamodb takes {MAX_RECORD}",
        )
    if len(events) > MAX_EVENTS:
        raise StorageError("deploy.events.count", f"{len(events)} events in one write, expected {MAX_EVENTS}")
    if any(len(msgspec.json.encode(event)) > MAX_RECORD for event in events):
        raise StorageError(
            "deploy.events.size", f"an event is larger than the {MAX_RECORD} bytes of a record"
        )


def _event_item(deployment: Deployment, event: Event) -> Item:
    text = msgspec.json.encode(event).decode()
    return {
        "pk": _text(_name_key(deployment.name)),
        "sk": _text(f"event#{deployment.uid}#{event.id}"),
        "event": _text(text),
    }


def _decoded(item: Item) -> Deployment:
    return decode_record(item["record"]["S"].encode())


def _name_key(name: str) -> str:
    return f"name#{name}"


def _text(value: str) -> dict[str, Any]:
    return {"S": value}
