"""The guest's containers, for all who ask at the same time, and the verdict on their health."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Final

from enclave.agent.docker_engine import Container, ContainerEngine
from enclave.log import log_event
from shared.errors import DstackError
from shared.rpc import agent_v1_pb2 as pb

Containers = tuple[Container, ...]

_SICK_STATES: Final = ("restarting", "dead")
_SICK_MARKS: Final = (
    "(unhealthy)",
    "(health: starting)",
)  # where the engine's status line has a health check
_COMPOSE: Final = "<compose>"


class ContainerListing:
    """Asks the engine once for all threads that want the list at the same time: anybody may ask for it."""

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._running: Future[Containers] | None = None
        self._logged = ""

    def read(self) -> Containers:
        """Return all containers. Blocks, never call it on an event loop. Raises what the engine raises."""
        with self._lock:
            running = self._running
            if running is None:
                answer = self._running = Future()
        if running is not None:
            return running.result()
        try:
            answer.set_result(asyncio.run(self._engine.containers()))
        except BaseException as error:  # whatever it is, those who wait must not wait for ever
            answer.set_exception(error)
            raise
        finally:
            with self._lock:
                self._running = None
        return answer.result()

    def read_or_none(self) -> Containers | None:
        """Return all containers, None when the engine does not tell.

        The log says why, once for each reason in turn: anybody may ask, and it is not theirs to fill.
        """
        try:
            found = self.read()
        except DstackError as error:
            if error.code != self._logged:
                log_event("agent.containers.failed", code=error.code, message=error.message)
            self._logged = error.code
            return None
        self._logged = ""
        return found


class ContainerHealth:
    """Worker's Health of v1. `runner` is app-compose's word for what runs the app, None without one."""

    def __init__(self, listing: ContainerListing, runner: str | None) -> None:
        self._listing = listing
        self._runner = runner

    def __call__(self) -> pb.HealthResponse:
        """Return the verdict; an engine that does not tell is no healthy one. Blocks."""
        if self._runner == "bash":
            return pb.HealthResponse(healthy=True)  # a script, which nobody said how to test
        if self._runner != "docker-compose":
            return pb.HealthResponse(healthy=False, error="no container engine is watched in this guest")
        try:
            containers = self._listing.read()
        except DstackError as error:
            return pb.HealthResponse(healthy=False, error=error.message)
        return judge(containers)


def judge(containers: Containers) -> pb.HealthResponse:
    """Return the verdict on an app's containers: those that compose started.

    One is sick when its health check does not pass (yet), or when it restarts over and over; one without a
    health check is not judged otherwise. No container at all means that compose has not come so far.
    """
    own = [one for one in containers if one.is_of_compose]
    if not own:
        nothing = pb.UnhealthyContainer(name=_COMPOSE, status="no container has been created yet")
        return pb.HealthResponse(healthy=False, unhealthy=[nothing])
    sick = [
        pb.UnhealthyContainer(name=one.name, status=one.status or one.state) for one in own if _is_sick(one)
    ]
    return pb.HealthResponse(healthy=not sick, unhealthy=sick)


def _is_sick(container: Container) -> bool:
    return container.state in _SICK_STATES or container.status.endswith(_SICK_MARKS)
