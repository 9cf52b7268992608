"""What the function remembers on AWS, in a DynamoDB table of key `id` and time to live `expiration`.

Deliveries and logs are Powertools' idempotency records. `cursor` is an item of its own.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from functions.aws_api import AwsClient, aws_errors
from functions.governance.state import REMEMBER_SECONDS, Cursor
from shared.errors import StorageError, UnavailableError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer

CLAIM_SECONDS: Final = 60
"""For so long a delivery is another's, which may have died: longer than any function's time for one."""

_CURSOR: Final = "cursor"
_PREFIX: Final = "governance"


class DynamoDbMemory:
    """See `Memory`. Raises the errors of `aws_errors`."""

    def __init__(self, table: str, client: AwsClient) -> None:
        self._table = table
        self._client = client

    def do(self, key: str, action: Callable[[], None]) -> bool:
        """See `Memory`."""
        from aws_lambda_powertools.utilities.idempotency import (  # noqa: PLC0415 - it loads boto3
            IdempotencyConfig,
            idempotent_function,
        )
        from aws_lambda_powertools.utilities.idempotency.exceptions import (  # noqa: PLC0415 - as above
            IdempotencyAlreadyInProgressError,
            IdempotencyInconsistentStateError,
            IdempotencyPersistenceLayerError,
        )

        config = IdempotencyConfig(expires_after_seconds=REMEMBER_SECONDS, use_local_cache=False)
        # a claim of a function that died ends by this clock
        config.register_lambda_context(_Until(CLAIM_SECONDS))  # type: ignore[arg-type]
        did: list[bool] = []

        @idempotent_function(  # type: ignore[untyped-decorator, unused-ignore]
            data_keyword_argument="key", persistence_store=self._layer(), config=config, key_prefix=_PREFIX
        )
        def run(*, key: str) -> dict[str, Any]:
            del key
            action()
            did.append(True)
            return {"done": True}

        try:
            run(key=key)
        except (IdempotencyAlreadyInProgressError, IdempotencyInconsistentStateError) as error:
            raise _busy() from error
        except IdempotencyPersistenceLayerError as error:
            raise StorageError(
                "governance.state", f"the table {self._table} failed: {error}"[:300]
            ) from error
        return bool(did)

    def forget(self, key: str) -> None:
        """See `Memory`."""
        from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig  # noqa: PLC0415 - as above
        from aws_lambda_powertools.utilities.idempotency.exceptions import (  # noqa: PLC0415 - as above
            IdempotencyItemNotFoundError,
        )

        layer = self._layer()
        layer.configure(IdempotencyConfig(use_local_cache=False), key_prefix=_PREFIX)
        with suppress(IdempotencyItemNotFoundError), aws_errors("forgetting what was done"):
            found = layer.get_record(key)  # type: ignore[arg-type]  # a text, as above
            if found is None:
                return
            if found.status == "INPROGRESS":
                if (found.in_progress_expiry_timestamp or 0) > time.time() * 1000:
                    raise _busy()
                return
            self._client.delete_item(TableName=self._table, Key={"id": {"S": found.idempotency_key}})

    def cursor(self) -> Cursor | None:
        """See `Memory`."""
        with aws_errors("reading the cursor"):
            answer = self._client.get_item(
                TableName=self._table, Key={"id": {"S": _CURSOR}}, ConsistentRead=True
            )
        item = answer.get("Item")
        return None if item is None else Cursor(int(item["number"]["N"]), item["hash"]["S"])

    def move(self, cursor: Cursor) -> None:
        """See `Memory`."""
        with aws_errors("moving the cursor"):
            self._client.put_item(
                TableName=self._table,
                Item={
                    "id": {"S": _CURSOR},
                    "number": {"N": str(cursor.number)},
                    "hash": {"S": cursor.hash},
                },
            )

    def bury(self, message: str, code: str, now: int) -> None:
        """See `Memory`; the queue has dead letters of its own, so this is seldom called."""
        with aws_errors("keeping a dead letter"):
            self._client.put_item(
                TableName=self._table,
                Item={"id": {"S": f"dead#{message}"}, "code": {"S": code}, "at": {"N": str(now)}},
            )

    def _layer(self) -> "DynamoDBPersistenceLayer":
        from aws_lambda_powertools.utilities.idempotency import (  # noqa: PLC0415 - it loads boto3
            DynamoDBPersistenceLayer,
        )

        return DynamoDBPersistenceLayer(table_name=self._table, boto3_client=self._client)


def _busy() -> UnavailableError:
    return UnavailableError("governance.busy", "another call is at the same delivery")


class _Until:
    """What Powertools asks of a Lambda context."""

    def __init__(self, seconds: int) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(int((self._end - time.monotonic()) * 1000), 1)
