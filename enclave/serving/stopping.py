"""How a server stops: it accepts no more, closes idle connections at once, and ends what it is answering."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket
from types import FrameType

import uvicorn

Draining = Callable[[int], None]
"""Is told that the server stops, with the number of connections that are open."""


class StoppableServer(uvicorn.Server):
    """uvicorn's server, which SIGTERM and SIGINT stop without ending the process after it.

    uvicorn raises the signal again, and a supervisor then sees a process that was killed. A daemon that
    stopped as it was told to has not failed: whoever runs this ends with an exit code of its own.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining) -> None:
        super().__init__(config)
        self._draining = draining
        self.was_signalled = False
        self.takes_signals = True
        """False where several servers run on one event loop, and whoever runs them takes the signals."""
        self.answering = asyncio.Event()
        """Is set when the server accepts connections."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second SIGINT does not wait for anybody."""
        del frame
        self.force_exit = self.was_signalled and sig == signal.SIGINT
        self.was_signalled = self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT while the server runs."""
        if not self.takes_signals:
            yield
            return
        with super().capture_signals():
            yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.answering.set()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop, whether or not somebody can be told."""
        try:
            self._draining(len(self.server_state.connections))
        finally:
            await super().shutdown(sockets)
