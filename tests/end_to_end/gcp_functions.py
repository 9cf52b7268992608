"""The deploy function on Google Cloud: an API and a worker from the staged source, and their queue."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from functions.deploy.internal_api import ADVANCE, SWEEP
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

START_SECONDS = 60

_SERVE = """
import sys
sys.path[:0] = sys.argv[1:3]
from functions_framework._cli import _cli
_cli(sys.argv[3:])
"""
_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")


class Service:
    """One service: functions-framework over the staged directory and its requirements, and nothing else."""

    def __init__(self, command: list[str], source: Path, environment: dict[str, str], log: Path) -> None:
        self._command = command
        self._source = source
        self._environment = environment
        self._log = log
        self._port = 0
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start a new instance; `url` waits until it serves."""
        self.starts += 1
        self._port = 0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._source,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while not self._port:
            if found := _LISTENING.search(self.log()):
                self._port = int(found[1])
            elif time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the service does not listen:\n{self.log()}")
            else:
                time.sleep(0.02)
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End the instance and all that it is doing, at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def post(self, path: str, headers: Mapping[str, str], body: bytes = b"") -> tuple[int, bytes]:
        """Send a request as the platform's front does: a new instance is started where the last one ended."""
        if self._process.poll() is not None:
            self.start()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 503, b""
        finally:
            connection.close()


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
            *(sys.executable, "-I", "-S", "-c", PRELUDE + _SERVE),
            *(str(source), str(artefacts.requirements("deploy")), *options, "--port", "0"),
        ]
        place.mkdir()
        environment = {
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
        self.api = Service(command, source, environment | {"THREADS": "8"}, place / "api.log")
        # a worker's instance does one thing at a time
        self.worker = Service(command, source, environment | {"THREADS": "1"}, place / "worker.log")

    def close(self) -> None:
        self.api.kill()
        self.worker.kill()

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
        status, _ = self.worker.post(ADVANCE, headers, base64.b64decode(target["body"]))
        self.answers.append(status)
        if 200 <= status < 300 or task["dispatchCount"] >= self.attempts:
            self.tasks.finish(task["name"])
        else:
            self.tasks.postpone(task["name"], BACKOFF)

    def sweep(self) -> Any:
        """Call the sweep as the scheduler does, and return the answer."""
        status, body = self.worker.post(SWEEP, self._bearer(WORKER_URL, ACCOUNT))
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
