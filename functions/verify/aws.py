"""AWS Lambda entry of the verify function: an HTTP API (payload 2.0) in front of `VerifyService`."""

import base64
import os
import time
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.verify.service import HEALTH, HTTP_STATUS, VerifyService, anchors_from
from shared.errors import ProtocolError

logger = Logger(service="dstack-verifier")
app = APIGatewayHttpResolver()
service = VerifyService(anchors_from(os.environ))


@app.get("/health")
def health() -> dict[str, str]:
    """Say that the function is up."""
    return HEALTH


@app.post("/verify")
def verify() -> Response[str]:
    """Verify the evidence in the body."""
    body = (app.current_event.body or "").encode()
    if app.current_event.is_base64_encoded:
        body = base64.b64decode(body)
    answer = service.answer(body, now=int(time.time()))
    return Response(200, content_types.APPLICATION_JSON, answer.decode())


@app.exception_handler(ProtocolError)  # type: ignore[untyped-decorator]  # Powertools leaves it untyped
def refuse(error: ProtocolError) -> Response[dict[str, str]]:
    """Answer a body that is no request."""
    logger.info("request refused", code=error.code)
    body = {"error": error.message, "code": error.code}
    return Response(HTTP_STATUS.get(error.code, 400), content_types.APPLICATION_JSON, body)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Handle one HTTP API event."""
    return app.resolve(event, context)
