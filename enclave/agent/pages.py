"""The external port's pages, chosen once by the app's measured compose file (spec guest-agent section 4).

`/` is always there. `/metrics` is with `public_sysinfo`, `/logs/<container>` with `public_logs`; without them
there is no such route. All three are for everybody: reaching the port is the authority.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext
from typing import Final, NamedTuple, Self

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from enclave.agent.container_listing import ContainerListing
from enclave.agent.dashboard import dashboard_html, security_headers
from enclave.agent.docker_engine import ContainerEngine, DockerEngine
from enclave.agent.docker_logs import LogMessage
from enclave.agent.guest import Guest
from enclave.agent.log_query import LogRequest, log_failure, log_line, read_log_request
from enclave.agent.methods_v0 import public_app_info
from enclave.agent.network_info import NetworkReader
from enclave.agent.prometheus import CONTENT_TYPE, metrics_text
from enclave.agent.system_info import SystemReader
from enclave.serving.ending import ENDING, Ending
from shared.errors import DstackError, ProtocolError

IDLE_SECONDS: Final = 600.0
"""A log ends when its container says nothing for so long."""

MAX_LOGS: Final = 64
"""Logs that are read at once. Each holds a connection to the engine, and anybody may open one.

When one more is asked for, the followed one that has been silent for longest makes room.
"""

PAGE_THREADS: Final = 8
"""What readers of `/` and `/metrics` share, so that they cannot hold up those who ask for evidence."""


class Observed(NamedTuple):
    """Where the agent looks for what it tells of its guest."""

    engine: ContainerEngine
    listing: ContainerListing
    system: SystemReader
    network: NetworkReader

    @classmethod
    def of_this_machine(cls, data_disks: tuple[str, ...]) -> Self:
        """Look at the machine that this process runs on; `data_disks` are mount points."""
        engine = DockerEngine()
        return cls(engine, ContainerListing(engine), SystemReader(data_disks), NetworkReader())


def page_routes(
    guest: Guest,
    observed: Observed,
    *,
    idle_seconds: float = IDLE_SECONDS,
    now: Callable[[], float] = time.time,
    simulated: bool = False,
) -> list[Route]:
    """Return the routes that the app's compose file allows; `now` is in unix seconds.

    The page of a `simulated` guest says so.
    """
    pages = _Pages(guest, observed, simulated=simulated)
    routes = [Route("/", pages.dashboard)]
    if pages.public_sysinfo:
        routes.append(Route("/metrics", pages.metrics))
    if pages.public_logs:
        routes.append(Route("/logs/{container}", _Logs(observed.engine, idle_seconds, now).show))
    return routes


class _Pages:
    def __init__(self, guest: Guest, observed: Observed, *, simulated: bool) -> None:
        self._guest = guest
        self._simulated = simulated
        self._observed = observed
        self._threads = CapacityLimiter(PAGE_THREADS)
        self._headers = security_headers()
        self.public_sysinfo = guest.compose is not None and guest.compose.public_sysinfo
        self.public_logs = guest.compose is not None and guest.compose.public_logs

    async def dashboard(self, _request: Request) -> Response:
        text = await to_thread.run_sync(self._dashboard, limiter=self._threads)
        return HTMLResponse(text, headers=self._headers)

    async def metrics(self, _request: Request) -> Response:
        text = await to_thread.run_sync(self._metrics, limiter=self._threads)
        return Response(text, headers={**self._headers, "content-type": CONTENT_TYPE})

    def _dashboard(self) -> str:
        return dashboard_html(
            public_app_info(self._guest),
            self._observed.listing.read_or_none() or (),
            system=self._observed.system.read() if self.public_sysinfo else None,
            public_logs=self.public_logs,
            public_tcbinfo=self._guest.public_tcbinfo,
            simulated=self._simulated,
        )

    def _metrics(self) -> str:
        return metrics_text(self._observed.system.read(), self._observed.listing.read_or_none())


class _Place:
    """One log that is being read, among `others` in the order of their last lines."""

    def __init__(self, others: "dict[_Place, None]", *, follows: bool) -> None:
        self._others = others
        self._others[self] = None
        self.follows = follows
        self._has_ended = False
        self._waiting: asyncio.Timeout | None = None

    async def next(self, messages: AsyncGenerator[LogMessage], seconds: float) -> LogMessage | None:
        """Return the next message; None when there is none for so many seconds, or this place has ended."""
        if self._has_ended:
            return None
        try:
            async with asyncio.timeout(seconds) as self._waiting:
                found = await anext(messages)
        except (StopAsyncIteration, TimeoutError):
            return None
        finally:
            self._waiting = None
        if self in self._others:
            del self._others[self]
            self._others[self] = None
        return found

    def end(self) -> None:
        """End a log that is followed, for one who waits for more of it than there is."""
        self._has_ended = True
        self.leave()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def leave(self) -> None:
        """Give the place back, unless it was already."""
        self._others.pop(self, None)


class _Logs:
    def __init__(self, engine: ContainerEngine, idle_seconds: float, now: Callable[[], float]) -> None:
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._now = now
        self._headers = security_headers()
        self._open: dict[_Place, None] = {}

    async def show(self, request: Request) -> Response:
        query: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            query.setdefault(name, value)
        try:
            wanted = read_log_request(query, int(self._now()))
        except ProtocolError as error:
            # Upstream answers a bad time with 200, and a bad flag by its web framework.
            return self._failure(error, 422 if error.code == "logs.flag" else 200)
        if len(self._open) >= MAX_LOGS and not self._make_room():
            return self._failure(_too_many(), 503)
        place = _Place(self._open, follows=wanted.follow)
        lines = self._lines(request.path_params["container"], wanted, place)
        return _LogResponse(lines, self._headers, place, request.scope["state"].get(ENDING) or Ending())

    def _make_room(self) -> bool:
        silent = next((place for place in self._open if place.follows), None)
        if silent is not None:
            silent.end()
        return silent is not None

    async def _lines(self, name: str, wanted: LogRequest, place: _Place) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(self._engine.logs(name, wanted)) as messages:
                while (found := await place.next(messages, self._idle_seconds)) is not None:
                    yield log_line(found, wanted)
        except DstackError as error:
            yield log_failure(error.message)

    def _failure(self, error: DstackError, status: int) -> Response:
        return PlainTextResponse(log_failure(error.message), status, self._headers)


class _LogResponse(StreamingResponse):
    """A log, which lets go of the engine whenever and however its reader leaves.

    One that is followed ends where nobody waits for more: its reader has ended its side, or the server stops.
    """

    def __init__(
        self, lines: AsyncGenerator[bytes], headers: dict[str, str], place: _Place, ending: Ending
    ) -> None:
        super().__init__(lines, headers=headers, media_type="text/plain")
        self._lines = lines
        self._place = place
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ends = self._ending.calling(self._place.end) if self._place.follows else nullcontext()
        try:
            with ends:
                async with aclosing(self._lines):
                    await super().__call__(scope, receive, send)
        finally:
            self._place.leave()


def _too_many() -> ProtocolError:
    return ProtocolError("logs.busy", f"{MAX_LOGS} logs are being read already: try again later")
