"""AWS Lambda entry of the authorize function, behind API Gateway."""

from functools import cache
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.authorize.service import CONTENT_TYPE, AuthorizeService, service_from
from functions.authorize.settings import settings_from_env
from functions.lambda_event import http_answer, read_event

logger = Logger(service="authorize")


@cache
def service() -> AuthorizeService:
    """Return the service of this environment, made at the first request and kept with its connections."""
    return service_from(
        settings_from_env(), lambda code, message: logger.warning(message, extra={"code": code})
    )


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Answer one API Gateway event."""
    request = read_event(event)
    answer = service().handle(request.method, request.path, request.query, request.headers, request.body)
    logger.info("answered", extra={"method": request.method, "path": request.path, "status": answer.status})
    return http_answer(answer.status, CONTENT_TYPE, answer.encode())
