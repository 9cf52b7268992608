"""The deploy function on Google Cloud: an API and a worker from the staged source, and their queue."""

import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from functions.deploy.internal_api import ADVANCE, SWEEP
from functions.packaging.gcp_services import DEPLOY_WORKER
from tests.end_to_end.gcp_service import SERVE, Service
from tests.end_to_end.gcp_site import BUCKET, PROJECT, GcpSite, verifier_environment
from tests.end_to_end.pipeline import GRANTS, Identities, Pump
from tests.end_to_end.shared_clock import PRELUDE, SharedClock
from tests.fakes.cloud_tasks import CloudTasks, due_at
from tests.fakes.firestore import Firestore
from tests.packaging.conftest import Artefacts

APIS = ("firestore.v1", "cloudtasks.v2")
QUEUE = f"projects/{PROJECT}/locations/europe-west4/queues/dstack"
WORKER_URL = f"https://europe-west4-{PROJECT}.cloudfunctions.net/dstack-deploy-worker{ADVANCE}"
"""The platform's front takes the function's name off the path."""

ACCOUNT = f"dstack-tasks@{PROJECT}.iam.gserviceaccount.com"
BLOBS = f"{PROJECT}-blobs"
BACKOFF, ATTEMPTS = 5, 20
"""Of the queue: seconds before a task is sent again, and how often it is sent."""


class GcpFunctions:
    """`api` and `worker` over the site's fakes. `answers` is what the queue got, in order.

    The queue sends a task up to `attempts` times.
    """

    def __init__(
        self, site: GcpSite, artefacts: Artefacts, place: Path, who: Identities, clock: SharedClock
    ) -> None:
        self._who = who
        self._clock = clock
        self.answers: list[int] = []
        self.attempts = ATTEMPTS
        self.firestore = Firestore(site.rest, PROJECT)
        self.tasks = CloudTasks(site.rest, [QUEUE], now=clock())
        site.storage.buckets.add(BLOBS)
        _, source = artefacts.source("deploy")
        options = ["--target", "deploy", "--source", str(source / "main.py"), "--host", "127.0.0.1"]
        command = [
            *(sys.executable, "-I", "-S", "-c", PRELUDE + SERVE),
            *(str(source), str(artefacts.requirements("deploy")), *options, "--port", "0"),
        ]
        place.mkdir()
        # deploy.sh sets what it was given no value for to nothing
        unset = {one.name: "" for one in DEPLOY_WORKER.settings if not one.default}
        environment = unset | {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "TMPDIR": str(place),
            "GUNICORN_LOG_LEVEL": "info",  # it says on which port it listens
            "SSL_CERT_FILE": str(who.ca_file),
            "DSTACK_GCP_ENDPOINT": site.rest.url,
            "DSTACK_STORE": f"firestore:{PROJECT}/(default)",
            "DSTACK_BLOBS": f"gcs:{BLOBS}",
            "DSTACK_QUEUE": f"tasks:{QUEUE}|{WORKER_URL}|{ACCOUNT}",
            "DSTACK_CLOUDS": "gcp-tdx",
            "DSTACK_CONFIG": f'{{"gcp": {{"project": "{PROJECT}", "bucket": "{BUCKET}"}}}}',
            "DSTACK_GRANTS": GRANTS.decode(),
            "DSTACK_CACHE_DIR": str(place / "cache"),
            **verifier_environment(place, site.guests.roots),
            **clock.environment(who.hosts),
        }
        assert {one.name for one in DEPLOY_WORKER.settings} <= environment.keys()
        self.api = Service("dstack-deploy", command, environment | {"THREADS": "8"}, place)
        # a worker's instance does one thing at a time
        self.worker = Service("dstack-deploy-worker", command, environment | {"THREADS": "1"}, place)

    def close(self) -> None:
        self.api.close()
        self.worker.close()

    def turn(self) -> bool:
        """Send the tasks that are due; where none is, jump to when the next one is."""
        self.tasks.now = self._clock()
        if due := self.tasks.due():
            for task in due:
                self._dispatch(task)
            return True
        waiting = [due_at(task) for task in list(self.tasks.tasks.values())]
        if waiting:
            self._clock.skip(min(waiting) - self.tasks.now)
        return bool(waiting)

    def _dispatch(self, task: dict[str, Any]) -> None:
        target, retries = task["httpRequest"], task["dispatchCount"] - 1
        assert target["url"] == WORKER_URL
        headers = {
            **target["headers"],
            **self._bearer(target["oidcToken"]["audience"], target["oidcToken"]["serviceAccountEmail"]),
            "User-Agent": "Google-Cloud-Tasks",
            "X-CloudTasks-QueueName": QUEUE.rpartition("/")[2],
            "X-CloudTasks-TaskName": task["name"].rpartition("/")[2],
            "X-CloudTasks-TaskRetryCount": str(retries),
            "X-CloudTasks-TaskExecutionCount": str(retries),
            "X-CloudTasks-TaskETA": f"{due_at(task)}.000000",
        }
        status, _, _ = self.worker.request("POST", ADVANCE, headers, base64.b64decode(target["body"]))
        self.answers.append(status)
        if 200 <= status < 300 or task["dispatchCount"] >= self.attempts:
            self.tasks.finish(task["name"])
        else:
            self.tasks.postpone(task["name"], BACKOFF)

    def sweep(self) -> Any:
        """Call the sweep as the scheduler does, and return the answer."""
        status, _, body = self.worker.request("POST", SWEEP, self._bearer(WORKER_URL, ACCOUNT))
        assert status == 200, body
        return json.loads(body)

    def _bearer(self, audience: str, email: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._who.task(audience, email)}"}


@contextlib.contextmanager
def gcp_functions(
    site: GcpSite, artefacts: Artefacts, place: Path, who: Identities, clock: SharedClock
) -> Iterator[GcpFunctions]:
    """Give the functions, with their queue at work."""
    made = GcpFunctions(site, artefacts, place, who, clock)
    try:
        with Pump(made.turn):
            yield made
    finally:
        made.close()
