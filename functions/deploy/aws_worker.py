"""AWS Lambda entries of the worker: `handler` for the queue's messages, `sweep_handler` for the schedule.

The event source needs `ReportBatchItemFailures`, and a batch size of 1: a step may take minutes, and Lambda
hands out no message again before the function's time is over.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.deploy.assembly import Runtime, runtime_from_env
from functions.deploy.reconcile import sweep
from functions.deploy.worker import handle_message
from shared.errors import DstackError

logger = Logger(service="deploy-worker")


@cache
def runtime() -> Runtime:
    """Return the runtime of this environment, made at the first message and kept with its connections."""
    return runtime_from_env()


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Advance the deployment of each message of a batch; SQS delivers those again that are returned."""
    failed = [record["messageId"] for record in event["Records"] if not _advanced(record)]
    return {"batchItemFailures": [{"itemIdentifier": one} for one in failed]}


@logger.inject_lambda_context(clear_state=True)
def sweep_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - as above
    """Schedule deployments whose message was lost."""
    found = sweep(runtime().store, runtime().schedule, runtime().clock())
    if found:
        logger.warning("overdue", extra={"deployments": found})
    return {"overdue": len(found)}


def _sent_at(attributes: Mapping[str, str]) -> int | None:
    """Return when a message was sent; None for one that is delivered again.

    The runner of an earlier delivery may have died before it saw to the next message.
    """
    if attributes["ApproximateReceiveCount"] != "1":
        return None
    return int(attributes["SentTimestamp"]) // 1000


def _advanced(record: Mapping[str, Any]) -> bool:
    try:
        after = handle_message(
            runtime().engine,
            runtime().schedule,
            record["body"].encode(),
            lambda code, message: logger.error(message, extra={"code": code}),
            _sent_at(record["attributes"]),
        )
    except DstackError as error:
        logger.warning(error.message, extra={"code": error.code, "message_id": record["messageId"]})
        return False
    except Exception:  # the other messages of the batch are not to be done twice for this one
        logger.exception("failed", extra={"message_id": record["messageId"]})
        return False
    if after is not None:
        logger.info("advanced", extra={"step": after.step, "seconds": after.seconds, "why": after.why})
    return True
