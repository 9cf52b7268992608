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

    def follow(self, name: str, tell: Tell, *, timeout: float | None, after: str = "") -> View:
        """Return the deployment once there is nothing more to do, or it waits for governance.

        Events behind `after` are told as they come. Raises `WaitOver` when `timeout` seconds are over.
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

    def follow(self, name: str, tell: Tell, *, timeout: float | None, after: str = "") -> View:
        """See `Deployments`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        seen = [after]

        def report(last: Next) -> None:
            del last
            page = self._service.events(name, seen[0])
            for event in page.events:
                tell(views.event(event))
            seen[0] = page.after

        run_until_settled(
            self._engine,
            name,
            deadline=deadline,
            stop_at=frozenset({Step.AWAIT_APPROVAL}) if timeout == 0 else frozenset(),
            report=report,
            sleep=self._sleep,
        )
        return self.get(name)


def wait_for(
    deployments: Deployments,
    name: str,
    events: Callable[[str, str], tuple[list[View], str]],
    tell: Tell,
    *,
    timeout: float | None,
    after: str = "",
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> View:
    """Look at a deployment that somebody else carries forward, until it is settled.

    Raises `WaitOver` when `timeout` seconds are over.
    """
    deadline = None if timeout is None else clock() + timeout
    while True:
        found = deployments.get(name)
        new, after = events(name, after)
        for event in new:
            tell(event)
        if found["settled"] and not new:
            return found
        if deadline is not None and clock() + POLL_SECONDS > deadline:
            raise WaitOver(Next(POLL_SECONDS, Step(found["step"])))
        if not found["settled"]:
            sleep(POLL_SECONDS)
