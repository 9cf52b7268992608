"""Cloud Tasks: queues that hold tasks until a test lets time pass, and keep the names of those that ran."""

import base64
import datetime as dt
import itertools
import re
from collections.abc import Sequence
from typing import Any

from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest, Refusal

TASKS = "cloudtasks.projects.locations.queues.tasks."
CREATE = TASKS + "create"
GET = TASKS + "get"
QUEUE = "projects/p1/locations/us-central1/queues/advance"


class CloudTasks:
    """Serves `queues` on `rest`; `tasks` are those that wait, by full name."""

    def __init__(self, rest: GoogleRest, queues: Sequence[str] = (QUEUE,), now: int = 1_767_225_600) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.now = now
        self._queues = set(queues)
        self._used: set[str] = set()
        self._numbers = itertools.count(1)
        rest.handle(CREATE)(self._create)
        rest.handle(GET)(self._get)

    def due(self) -> list[dict[str, Any]]:
        """Return the tasks that are due, in order, and count them as sent."""
        found = sorted(
            (task for task in list(self.tasks.values()) if due_at(task) <= self.now),
            key=lambda task: task["scheduleTime"],
        )
        for task in found:
            task["dispatchCount"] = task.get("dispatchCount", 0) + 1
        return found

    def finish(self, name: str) -> None:
        """Let a task have been answered with 2xx: it is gone, its name stays taken."""
        del self.tasks[name]

    def postpone(self, name: str, seconds: int) -> None:
        """Let a task have been answered with something else: it is sent again in so many seconds."""
        self.tasks[name]["scheduleTime"] = _text(self.now + seconds)

    def bodies(self) -> list[bytes]:
        """Return the bodies of all tasks that wait, in order of when they are due."""
        waiting = sorted(self.tasks.values(), key=lambda task: task["scheduleTime"])
        return [base64.b64decode(task["httpRequest"]["body"]) for task in waiting]

    def _create(self, request: ApiRequest) -> Answer:
        queue = request.params["parent"]
        if queue not in self._queues:
            raise Refusal(404, "Queue does not exist. If you just created the queue, wait at least a minute.")
        task = dict(request.body["task"])
        name = task.setdefault("name", f"{queue}/tasks/{next(self._numbers)}")
        if not re.fullmatch(re.escape(queue) + r"/tasks/[A-Za-z0-9_-]{1,500}", name):
            raise Refusal(400, f'Invalid task name "{name}"')
        if name in self._used:
            raise Refusal(409, "Requested entity already exists", "ALREADY_EXISTS")
        target = task["httpRequest"]
        if (
            not target["url"].startswith(("https://", "http://"))
            or "@" not in target["oidcToken"]["serviceAccountEmail"]
        ):
            raise Refusal(400, "HttpRequest.url and its token's account must be valid")
        if not 15 <= int(task.get("dispatchDeadline", "600s")[:-1]) <= 1800:
            raise Refusal(400, "Task.dispatchDeadline must be between [15s, 30m]")
        task.setdefault("scheduleTime", _text(self.now))
        if due_at(task) > self.now + 30 * 86_400:
            raise Refusal(400, "The maximum schedule time is 30 days from now")
        if due_at(task) < self.now:
            task["scheduleTime"] = _text(self.now)
        self._used.add(name)
        self.tasks[name] = task
        return Answer(200, task)

    def _get(self, request: ApiRequest) -> Answer:
        if request.params["name"] not in self.tasks:
            raise Refusal(404, "The task no longer exists, though a task with this name existed recently.")
        return Answer(200, self.tasks[request.params["name"]])


def due_at(task: dict[str, Any]) -> int:
    """Return when a task is to be sent, in unix seconds."""
    return int(dt.datetime.fromisoformat(task["scheduleTime"]).timestamp())


def _text(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
