"""Google Cloud Functions entry of the authorize function: `functions-framework --target=authorize`."""

import json
import sys
from functools import cache

import flask
import functions_framework

from functions.authorize.service import CONTENT_TYPE, MAX_BODY_BYTES, AuthorizeService, service_from
from functions.authorize.settings import settings_from_env


@cache
def service() -> AuthorizeService:
    """Return the service of this environment, made at the first request and kept with its connections."""
    return service_from(settings_from_env(), _report)


@functions_framework.http
def authorize(request: flask.Request) -> flask.Response:
    """Answer one HTTP request."""
    query = request.query_string.decode("latin-1")
    # One byte beyond the limit shows that the body is too large; no more of it is read.
    body = request.stream.read(MAX_BODY_BYTES + 1)
    answer = service().handle(request.method, request.path, query, dict(request.headers), body)
    return flask.Response(answer.encode(), status=answer.status, content_type=CONTENT_TYPE)


def _report(code: str, message: str) -> None:
    """Write one structured line, in the form that Cloud Logging reads from standard error."""
    sys.stderr.write(json.dumps({"severity": "WARNING", "code": code, "message": message}) + "\n")
