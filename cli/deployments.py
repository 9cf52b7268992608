"""The deployments that commands work on: here, in this process, or behind a deploy function's HTTP API.

Both answer with the API's own documents, so that a command does not know which one it speaks to.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from functions.deploy import views
from functions.deploy.engine import Engine, Next
from functions.deploy.record import Step
from functions.deploy.request import RuleBody, Upload
from functions.deploy.runner import WaitOver, run_until_settled
from functions.deploy.service import DeploymentService

View = dict[str, Any]
"""A deployment as the API shows it (`functions/deploy/views.py`)."""

Tell = Callable[[View], object]
"""Takes an event as it comes in."""

POLL_SECONDS: Final = 3
"""Between two looks at a deployment that a function carries forward."""


class Deployments(Protocol):
    """What commands ask. Errors are those of `DeploymentService`, or an error with the API's code."""

    def deploy(self, upload: Upload, key: str) -> View:
        """Hand a project in; with `upload.replace` over one that is there."""
        ...

    def get(self, name: str) -> View:
        """Return one deployment."""
        ...

    def list_all(self) -> Iterator[View]:
        """Yield all deployments."""
        ...

    def machine(self, name: str) -> View:
        """Return what the cloud says of the machine now."""
        ...

    def logs(self, name: str, cursor: str) -> tuple[str, str]:
        """Return console text from a cursor on, and the next cursor."""
        ...

    def act(self, name: str, verb: str, key: str) -> View:
        """Ask for `stop`, `start`, `retry` or `remove`."""
        ...

    def firewall(self, name: str) -> list[View]:
        """Return the rules."""
        ...

    def set_firewall(self, name: str, rule: RuleBody) -> View:
        """Make a rule."""
        ...

    def clear_firewall(self, name: str, protocol: str, port: int) -> bool:
        """Remove the rules of a port."""
        ...

    def events(self, name: str, after: str) -> tuple[list[View], str]:
        """Return events behind `after`, and what to hand in next."""
        ...

    def follow(
        self, name: str, tell: Tell, *, timeout: float | None, stop_at: frozenset[Step] = frozenset()
    ) -> View:
        """Return the deployment once there is nothing more to do, or its step is one of `stop_at`.

        Events are told as they come. Raises `WaitOver` when `timeout` seconds are over.
        """
        ...


class HereDeployments:
    """In this process, over its own store: what runs is carried forward while a command follows it."""

    def __init__(
        self, service: DeploymentService, engine: Engine, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._service = service
        self._engine = engine
        self._sleep = sleep

    def deploy(self, upload: Upload, key: str) -> View:
        """See `Deployments`."""
        return views.whole(self._service.create(upload, key=key, caller="cli"))

    def get(self, name: str) -> View:
        """See `Deployments`."""
        return views.whole(self._service.get(name))

    def list_all(self) -> Iterator[View]:
        """See `Deployments`."""
        after = ""
        while True:
            page = self._service.list(after)
            yield from map(views.summary, page.deployments)
            if not (after := page.after):
                return

    def machine(self, name: str) -> View:
        """See `Deployments`."""
        return views.machine(self._service.machine(name))

    def logs(self, name: str, cursor: str) -> tuple[str, str]:
        """See `Deployments`."""
        page = self._service.logs(name, cursor)
        return page.text, page.cursor

    def act(self, name: str, verb: str, key: str) -> View:
        """See `Deployments`."""
        asked = {
            "stop": self._service.stop,
            "start": self._service.start,
            "retry": self._service.retry,
            "remove": self._service.remove,
        }[verb]
        return views.whole(asked(name, key=key, caller="cli"))

    def firewall(self, name: str) -> list[View]:
        """See `Deployments`."""
        return [views.rule(rule) for rule in self._service.firewall(name)]

    def set_firewall(self, name: str, rule: RuleBody) -> View:
        """See `Deployments`."""
        return views.rule(self._service.set_firewall(name, rule, caller="cli"))

    def clear_firewall(self, name: str, protocol: str, port: int) -> bool:
        """See `Deployments`."""
        return self._service.clear_firewall(name, protocol, port, caller="cli")

    def events(self, name: str, after: str) -> tuple[list[View], str]:
        """See `Deployments`."""
        page = self._service.events(name, after)
        return [views.event(event) for event in page.events], page.after

    def follow(
        self, name: str, tell: Tell, *, timeout: float | None, stop_at: frozenset[Step] = frozenset()
    ) -> View:
        """See `Deployments`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        seen = _last_event(self, name)

        def report(_: Next) -> None:
            nonlocal seen
            new, seen = self.events(name, seen)
            for event in new:
                tell(event)

        run_until_settled(
            self._engine,
            name,
            deadline=deadline,
            stop_at=stop_at,
            report=report,
            sleep=self._sleep,
        )
        return self.get(name)


def wait_for(
    deployments: Deployments,
    name: str,
    tell: Tell,
    *,
    timeout: float | None,
    stop_at: frozenset[Step] = frozenset(),
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> View:
    """Look at a deployment that somebody else carries forward, until it is settled.

    Raises `WaitOver` when `timeout` seconds are over.
    """
    deadline = None if timeout is None else clock() + timeout
    seen = _last_event(deployments, name)
    while True:
        found = deployments.get(name)
        new, seen = deployments.events(name, seen)
        for event in new:
            tell(event)
        if (found["settled"] or found["step"] in stop_at) and not new:
            return found
        if deadline is not None and clock() + POLL_SECONDS > deadline:
            raise WaitOver(Next(POLL_SECONDS, Step(found["step"])))
        if not new:
            sleep(POLL_SECONDS)


def _last_event(deployments: Deployments, name: str) -> str:
    """Return where the events of the newest request start: what was told before is not told again."""
    seen, start = "", ""
    while True:
        new, after = deployments.events(name, seen)
        if not new:
            return start
        for event in new:
            if event["message"].endswith("was asked for"):
                start = seen
            seen = event["id"]
        seen = after
