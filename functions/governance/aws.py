"""AWS Lambda entries of webhooks, queue and schedule. SQS counts tries, and has the dead letters."""

import os
from functools import cache
from typing import Any

import msgspec
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.governance.assembly import service_from_env
from functions.governance.look import read_message
from functions.governance.notice import Notice
from functions.governance.service import CONTENT_TYPE, GovernanceService
from functions.lambda_event import http_answer, read_event
from shared.errors import DstackError

logger = Logger(service="governance")
_LEVELS = {"info": logger.info, "warning": logger.warning, "alarm": logger.error}


@cache
def service() -> GovernanceService:
    """Return the service of this environment, kept with its connections."""
    return service_from_env(os.environ, _log)


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Answer one API Gateway event."""
    request = read_event(event)
    answer = service().handle(request.method, request.path, request.headers, request.body)
    return http_answer(answer.status, CONTENT_TYPE, answer.encode())


@logger.inject_lambda_context(clear_state=True)
def work_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - as above
    """Make the looks of a batch; SQS delivers those again that are returned."""
    failed = [{"itemIdentifier": one["messageId"]} for one in event["Records"] if not _looked(one)]
    return {"batchItemFailures": failed}


@logger.inject_lambda_context(clear_state=True)
def sweep_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - as above
    """Replay what was missed, and compare chain and deployments. What fails is the function's error."""
    return dict(msgspec.to_builtins(service().reconcile()))


def _looked(record: dict[str, Any]) -> bool:
    try:
        service().act(read_message(record["body"].encode()))
    except DstackError as error:
        logger.warning(error.message, extra={"code": error.code, "message_id": record["messageId"]})
        return False
    return True


def _log(notice: Notice) -> None:
    _LEVELS[notice.severity](notice.message, extra={"code": notice.code, "facts": notice.facts})
