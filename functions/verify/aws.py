"""AWS Lambda entry of the verify function, behind API Gateway."""

import os
import time
from functools import cache
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.lambda_event import http_answer, read_event
from functions.verify.assembly import service_from
from functions.verify.service import CONTENT_TYPE, VerifyService
from functions.verify.settings import parse_settings

logger = Logger(service="dstack-verifier")


@cache
def service() -> VerifyService:
    """Return the service of this environment, made at the first request and kept with its intermediates."""
    return service_from(parse_settings(b"", os.environ))


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Answer one API Gateway event."""
    request = read_event(event)
    answer = service().handle(request.method, request.path, request.body, now=int(time.time()))
    logger.info("answered", extra={"method": request.method, "path": request.path, "status": answer.status})
    return http_answer(answer.status, CONTENT_TYPE, answer.body)
