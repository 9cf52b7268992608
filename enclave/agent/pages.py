"""The external port's pages, chosen once by the app's measured compose file (spec guest-agent section 4).

`/` is always there. `/metrics` is with `public_sysinfo`, `/logs/<container>` with `public_logs`; without them
there is no such route. All three are for everybody: reaching the port is the authority.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, NamedTuple, Self

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from enclave.agent.container_listing import ContainerListing
from enclave.agent.dashboard import dashboard_html, security_headers
from enclave.agent.docker_engine import ContainerEngine, DockerEngine
from enclave.agent.guest import Guest
from enclave.agent.log_query import LogRequest, log_failure, log_line, read_log_request
from enclave.agent.methods_v0 import public_app_info
from enclave.agent.network_info import NetworkReader
from enclave.agent.prometheus import CONTENT_TYPE, metrics_text
from enclave.agent.system_info import SystemReader
from shared.errors import DstackError, ProtocolError

IDLE_SECONDS: Final = 600.0
"""A log ends when its container says nothing for so long."""

MAX_LOGS: Final = 64
"""Logs that are read at once. Each holds a connection to the engine, and anybody may open one."""

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


class _Logs:
    def __init__(self, engine: ContainerEngine, idle_seconds: float, now: Callable[[], float]) -> None:
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._now = now
        self._headers = security_headers()
        self._open = 0

    async def show(self, request: Request) -> Response:
        query: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            query.setdefault(name, value)
        try:
            wanted = read_log_request(query, int(self._now()))
        except ProtocolError as error:
            # Upstream answers a bad time with 200, and a bad flag by its web framework.
            return self._failure(error, 422 if error.code == "logs.flag" else 200)
        if self._open >= MAX_LOGS:
            return self._failure(_too_many(), 503)
        self._open += 1
        return _LogResponse(self._lines(request.path_params["container"], wanted), self._headers, self._close)

    async def _lines(self, name: str, wanted: LogRequest) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(self._engine.logs(name, wanted)) as messages:
                while True:
                    async with asyncio.timeout(self._idle_seconds):
                        found = await anext(messages)
                    yield log_line(found, wanted)
        except (StopAsyncIteration, TimeoutError):
            return
        except DstackError as error:
            yield log_failure(error.message)

    def _failure(self, error: DstackError, status: int) -> Response:
        return PlainTextResponse(log_failure(error.message), status, self._headers)

    def _close(self) -> None:
        self._open -= 1


class _LogResponse(StreamingResponse):
    """A log, which lets go of the engine whenever and however its reader leaves."""

    def __init__(
        self, lines: AsyncGenerator[bytes], headers: dict[str, str], closed: Callable[[], None]
    ) -> None:
        super().__init__(lines, headers=headers, media_type="text/plain")
        self._lines = lines
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._lines):
                await super().__call__(scope, receive, send)
        finally:
            self._closed()


def _too_many() -> ProtocolError:
    return ProtocolError("logs.busy", f"{MAX_LOGS} logs are being read already: try again later")
