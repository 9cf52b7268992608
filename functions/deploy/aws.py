"""AWS Lambda entry of the deployment API, behind an HTTP API with a JWT authorizer."""

import os
from functools import cache
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.deploy.api import CONTENT_TYPE, DeployApi, unready
from functions.deploy.assembly import Runtime, runtime_from_env
from functions.deploy.grant_source import GrantSource, grants_from
from functions.lambda_event import http_answer, jwt_claims, read_event
from shared.errors import DstackError

logger = Logger(service="deploy")


@cache
def runtime() -> Runtime:
    """Return what this environment runs on, kept with its connections."""
    return runtime_from_env()


@cache
def grants() -> GrantSource:
    """Return where this environment's grants come from."""
    return grants_from(os.environ.get("DSTACK_GRANTS", ""))


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Answer one API Gateway event."""
    try:
        request, valid = read_event(event), grants().get(runtime().clock())
        api = DeployApi(runtime().service, lambda facts: logger.info("answered", extra={"request": facts}))
    except DstackError as error:
        logger.warning(error.message, extra={"code": error.code})
        answer = unready(error)
    else:
        answer = api.handle(request, valid, lambda: jwt_claims(event))
    return http_answer(answer.status, CONTENT_TYPE, answer.encode(), answer.headers)
