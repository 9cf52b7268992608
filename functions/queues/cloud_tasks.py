"""Calls to `advance` as tasks of a Cloud Tasks queue, which posts them to the worker with an OIDC token."""

import base64
import datetime as dt
import hashlib
import time
from collections.abc import Callable
from typing import Any, Final

from functions.deploy.cloud import DeniedError
from functions.deploy.worker import encode_message
from functions.google_api.errors import GoogleError
from functions.google_api.rest import GoogleSession

BASE_URL: Final = "https://cloudtasks.googleapis.com"
MAX_SECONDS: Final = 29 * 86_400
"""Cloud Tasks holds a task back for 30 days. Of a longer wait `advance` then says how much is left."""

DISPATCH_SECONDS: Final = 1800
"""How long Cloud Tasks waits for the worker, its own limit: when to end a step is the function's to say."""

_TRIES: Final = 4


class CloudTasksSchedule:
    """See `functions.deploy.store.Schedule`. `queue` is `projects/P/locations/L/queues/Q`.

    The worker gets `{"name": ...}` with a token of `service_account` for `audience`, by default its URL.
    One task is made per deployment and due second, however often it is asked for. Raises what
    `GoogleSession` raises, and `DeniedError("gcp.tasks.queue")` without the queue. The caller needs
    cloudtasks.tasks.create and .get, and iam.serviceAccounts.actAs on the account.
    """

    def __init__(
        self,
        session: GoogleSession,
        queue: str,
        worker_url: str,
        service_account: str,
        *,
        audience: str = "",
        clock: Callable[[], float] = time.time,
        base_url: str = BASE_URL,
    ) -> None:
        self._session = session
        self._queue = queue
        self._worker_url = worker_url
        self._token = {"serviceAccountEmail": service_account, "audience": audience or worker_url}
        self._clock = clock
        self._base = f"{base_url}/v2"

    def __call__(self, name: str, seconds: int) -> None:
        """Have `advance` called for a name, in so many seconds or in `MAX_SECONDS`."""
        due = int(self._clock()) + min(max(seconds, 0), MAX_SECONDS)
        for late in range(_TRIES):
            task = f"{self._queue}/tasks/{_task_id(name, due + late)}"
            if self._create(name, due + late, task) or self._is_waiting(task):
                return
        # so many calls in a row are rare, and one too many does no harm
        self._create(name, due, "")

    def _create(self, name: str, due: int, task: str) -> bool:
        """Make a task; False if its name was used before. Without one, Cloud Tasks names it."""
        described = {
            "scheduleTime": dt.datetime.fromtimestamp(due, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "dispatchDeadline": f"{DISPATCH_SECONDS}s",
            "httpRequest": {
                "url": self._worker_url,
                "httpMethod": "POST",
                "headers": {"Content-Type": "application/json"},
                "body": base64.b64encode(encode_message(name)).decode(),
                "oidcToken": self._token,
            },
        } | ({"name": task} if task else {})
        try:
            self._session.call("POST", f"{self._base}/{self._queue}/tasks", body={"task": described})
        except GoogleError as error:
            if error.status == 409 and task:
                return False
            if error.status != 404:
                raise
            raise _no_queue(self._queue) from error
        return True

    def _is_waiting(self, task: str) -> bool:
        """Whether a task is still to be sent. A name stays taken for hours after its task ran.

        A task that was sent already may be the one that is asking for the next.
        """
        try:
            found: dict[str, Any] = self._session.call("GET", f"{self._base}/{task}")
        except GoogleError as error:
            if error.status == 404:
                return False
            raise
        return not found.get("dispatchCount")


def _no_queue(queue: str) -> DeniedError:
    parts = queue.split("/")
    hint = "correct the queue, which is projects/PROJECT/locations/LOCATION/queues/QUEUE"
    if parts[::2] == ["projects", "locations", "queues"]:
        hint = f"gcloud tasks queues create {parts[5]} --location={parts[3]} --project={parts[1]}"
    return DeniedError("gcp.tasks.queue", f"there is no queue {queue[:200]}", hint)


def _task_id(name: str, due: int) -> str:
    # a queue is spread by the beginning of its tasks' names
    return f"{hashlib.sha256(f'{name} {due}'.encode()).hexdigest()[:32]}-{due}"
