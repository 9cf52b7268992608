"""Several servers on one event loop, which begin and end together."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import socket
from types import FrameType
from typing import NamedTuple

from enclave.serving.attested_tls import loop_factory
from enclave.serving.stopping import StoppableServer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Part(NamedTuple):
    """One server and what it listens on."""

    server: StoppableServer
    sockets: Sequence[socket]


def run_together(parts: Sequence[Part], beside: Callable[[], Awaitable[None]]) -> bool:
    """Run servers until one of them ends, or a signal comes, and end all of them.

    `beside` runs on the same event loop until they have ended, and is cancelled then; what it raises ends
    them, and is raised here. Returns whether it was SIGTERM or SIGINT, after every request that was being
    answered is, or the time of one is over.
    """
    sockets = [one for part in parts for one in part.sockets]
    with asyncio.Runner(loop_factory=loop_factory(sockets)) as runner:
        runner.run(serve_together(parts, beside))
    return any(part.server.was_signalled for part in parts)


async def serve_together(parts: Sequence[Part], beside: Callable[[], Awaitable[None]]) -> None:
    """Do so on the running event loop."""
    servers = [part.server for part in parts]
    for server in servers:
        server.takes_signals = False

    def stop(number: int, frame: FrameType | None) -> None:
        for server in servers:
            server.handle_exit(number, frame)

    def end() -> None:
        for server in servers:
            server.should_exit = True

    async def serve(part: Part) -> None:
        try:
            await part.server.serve(sockets=list(part.sockets))
        finally:
            end()

    async def accompany() -> None:
        try:
            await beside()
        except Exception:
            end()
            raise

    with _taking_signals(stop):
        companion = asyncio.ensure_future(accompany())
        try:
            await asyncio.gather(*map(serve, parts))
        finally:
            companion.cancel()
            with suppress(asyncio.CancelledError):
                await companion


@contextmanager
def _taking_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
