"""What Google's queue and scheduler call: the worker's two paths, open to their service account alone.

On AWS the same work comes from SQS, in `functions.deploy.aws_worker`.
"""

from collections.abc import Callable, Mapping
from typing import Final

from functions.deploy.api import Answer
from functions.deploy.assembly import Runtime
from functions.deploy.oidc import WorkerGate
from functions.deploy.reconcile import sweep
from functions.deploy.worker import MAX_MESSAGE, handle_message
from shared.errors import DstackError, InvalidEvidence

ADVANCE: Final = "/internal/advance"
SWEEP: Final = "/internal/sweep"
PREFIX: Final = "/internal/"


class InternalApi:
    """Advances deployments for the queue, and sweeps for the scheduler: both show a token for the worker.

    `report(code, message)` is told of what failed. An answer other than 2xx has the queue call again.
    """

    def __init__(self, runtime: Runtime, gate: WorkerGate, report: Callable[[str, str], None]) -> None:
        self._runtime = runtime
        self._gate = gate
        self._report = report

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request."""
        if method != "POST" or path not in {ADVANCE, SWEEP}:
            return Answer(404, {"error": "there is no such path", "code": "deploy.route"})
        try:
            self._gate.check(headers, self._runtime.clock())
            if path == SWEEP:
                found = sweep(self._runtime.store, self._runtime.schedule, self._runtime.clock())
                return Answer(200, {"scheduled": found})
            after = handle_message(
                self._runtime.engine,
                self._runtime.schedule,
                body[: MAX_MESSAGE + 1],
                self._report,
                _sent_at(headers),
            )
        except DstackError as error:
            self._report(error.code, error.message)
            status = 401 if isinstance(error, InvalidEvidence) else 503
            return Answer(status, {"error": error.message, "code": error.code})
        if after is None:
            return Answer(200, {"dropped": True})
        return Answer(200, {"step": after.step.value, "seconds": after.seconds})


def _sent_at(headers: Mapping[str, str]) -> int | None:
    """Return when a task was due, which is not before it was made; None for one that is delivered again.

    The runner of an earlier delivery may have died before it saw to the next message.
    """
    given = {name.lower(): value for name, value in headers.items()}
    due = given.get("x-cloudtasks-tasketa", "").partition(".")[0]
    if given.get("x-cloudtasks-taskretrycount") != "0" or not (due.isascii() and due.isdigit()):
        return None
    return int(due)
