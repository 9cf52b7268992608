"""Google Cloud Functions entry of webhooks, queue and schedule: `functions-framework --target=governance`."""

import os
from functools import cache

import flask
import functions_framework
import msgspec

from functions.deploy.oidc import WorkerGate, worker_gate
from functions.deploy.worker import MAX_MESSAGE
from functions.governance.assembly import QUEUE, now, service_from_env
from functions.governance.look import read_message
from functions.governance.notice import Notice
from functions.governance.notifier import tell_cloud_logging
from functions.governance.providers import MAX_BODY
from functions.governance.service import CONTENT_TYPE, Answer, GovernanceService, refused
from shared.errors import DstackError

LOOK, SWEEP = "/internal/look", "/internal/sweep"


@cache
def service() -> GovernanceService:
    """Return the service of this environment, kept with its connections."""
    return service_from_env(os.environ, tell_cloud_logging)


@cache
def gate() -> WorkerGate:
    """Return what lets queue and scheduler in; without a queue of its nobody is."""
    return worker_gate(os.environ, variable=QUEUE)


@functions_framework.http
def governance(request: flask.Request) -> flask.Response:
    """Answer one HTTP request. One byte beyond the limit shows that a body is too large; no more is read."""
    is_internal = request.method == "POST" and request.path in {LOOK, SWEEP}
    body = request.stream.read((MAX_MESSAGE if is_internal else MAX_BODY) + 1)
    try:
        if is_internal:
            gate().check(dict(request.headers), now())
            answer = _worked(request, body)
        else:
            answer = service().handle(request.method, request.path, dict(request.headers), body)
    except DstackError as error:
        tell_cloud_logging(Notice(code=error.code, message=error.message, severity="warning"))
        answer = refused(error)
    return flask.Response(answer.encode(), answer.status, content_type=CONTENT_TYPE)


def _worked(request: flask.Request, body: bytes) -> Answer:
    if request.path == SWEEP:
        return Answer(200, msgspec.to_builtins(service().reconcile()))
    service().act_or_bury(read_message(body), int(request.headers.get("X-CloudTasks-TaskRetryCount", "0")))
    return Answer(200, {})
