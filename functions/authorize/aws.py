"""AWS Lambda entry of the authorize function, behind API Gateway: HTTP API (payload 2.0) or REST (1.0)."""

import base64
from functools import cache
from typing import Any
from urllib.parse import urlencode

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.authorize.service import CONTENT_TYPE, AuthorizeService, service_from
from functions.authorize.settings import settings_from_env

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
    method, path, query = _target(event)
    body = (event.get("body") or "").encode()
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body)
    answer = service().handle(method, path, query, event.get("headers") or {}, body)
    logger.info("answered", extra={"method": method, "path": path, "status": answer.status})
    return {
        "statusCode": answer.status,
        "headers": {"content-type": CONTENT_TYPE},
        "body": answer.encode().decode(),
        "isBase64Encoded": False,
    }


def _target(event: dict[str, Any]) -> tuple[str, str, str]:
    """Return method, path below the stage, and query of either payload version."""
    context = event.get("requestContext") or {}
    if "http" not in context:
        query = urlencode(event.get("queryStringParameters") or {})
        return event.get("httpMethod", ""), event.get("path", ""), query
    path = event.get("rawPath", "")
    if context.get("stage", "$default") != "$default":
        path = path.removeprefix(f"/{context['stage']}") or "/"
    return context["http"].get("method", ""), path, event.get("rawQueryString", "")
