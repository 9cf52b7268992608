"""Google Cloud entry of the verify function, for functions-framework: target `verify`."""

import os
import time
from functools import cache

import functions_framework
from flask import Request, Response

from functions.verify.assembly import service_from
from functions.verify.service import CONTENT_TYPE, MAX_BODY, VerifyService
from functions.verify.settings import parse_settings


@cache
def service() -> VerifyService:
    """Return the service of this environment, made at the first request and kept with its intermediates."""
    return service_from(parse_settings(b"", os.environ))


@functions_framework.http
def verify(request: Request) -> Response:
    """Answer one HTTP request."""
    # One byte beyond the limit shows that the body is too large; no more of it is read.
    body = request.stream.read(MAX_BODY + 1)
    answer = service().handle(request.method, request.path, body, now=int(time.time()))
    return Response(answer.body, answer.status, content_type=CONTENT_TYPE)
