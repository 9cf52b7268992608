"""Google Cloud Functions entry of deployments, API and worker: `functions-framework --target=deploy`."""

import json
import os
import sys
from functools import cache
from typing import Any

import flask
import functions_framework

from functions.deploy.api import CONTENT_TYPE, Answer, DeployApi, unready
from functions.deploy.assembly import Runtime, runtime_from_env
from functions.deploy.grant_source import GrantSource, grants_from
from functions.deploy.internal_api import PREFIX, InternalApi
from functions.deploy.oidc import TokenSource, bearer_token, worker_gate
from functions.deploy.request import MAX_BODY_BYTES
from functions.lambda_event import HttpRequest
from shared.errors import DstackError


@cache
def parts() -> tuple[Runtime, GrantSource, TokenSource]:
    """Return what this environment runs on, kept with its connections and its issuers' keys."""
    return runtime_from_env(), grants_from(os.environ.get("DSTACK_GRANTS", "")), TokenSource()


@cache
def internal() -> InternalApi:
    """Return the worker's side, which Cloud Tasks calls; without a queue of its nobody is let in."""
    gate = worker_gate(os.environ)
    return InternalApi(parts()[0], gate, lambda code, message: _log(code=code, message=message))


@functions_framework.http
def deploy(request: flask.Request) -> flask.Response:
    """Answer one HTTP request. One byte beyond the limit shows that a body is too large; no more is read."""
    try:
        answer = _answer(request, request.stream.read(MAX_BODY_BYTES + 1))
    except DstackError as error:
        _log(code=error.code, message=error.message)
        answer = unready(error)
    return flask.Response(answer.encode(), answer.status, dict(answer.headers), content_type=CONTENT_TYPE)


def _answer(request: flask.Request, body: bytes) -> Answer:
    headers = dict(request.headers)
    if request.path.startswith(PREFIX):
        return internal().handle(request.method, request.path, headers, body)
    runtime, source, tokens = parts()
    grants = source.get(now := runtime.clock())
    verify = tokens.verifier(grants.issuers, grants.audience).verify
    asked = HttpRequest(request.method, request.path, request.query_string.decode("latin-1"), headers, body)
    api = DeployApi(runtime.service, lambda facts: _log(**facts))
    return api.handle(asked, grants, lambda: verify(bearer_token(headers), now))


def _log(**facts: Any) -> None:  # noqa: ANN401 - facts of a request
    sys.stderr.write(json.dumps({"severity": "INFO", **facts}) + "\n")  # a line as Cloud Logging reads it
