"""A forwarder in a thread over the unix stand-in, echo peers."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave.vsock.config import parse_config
from enclave.vsock.forwarder import Forwarder
from enclave.vsock.transport import UnixStandIn
from tests.enclave.event_log import PATIENCE, EventLog

PARENT, ENCLAVE = 3, 16

Handler = Callable[[socket.socket], None]


class Server:
    """Serves each accepted connection in a thread of its own."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self.listener = listener
        self._handler = handler
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # the other side was cut
            self._handler(sock)


class Running:
    """One forwarder."""

    def __init__(self, directory: Path, rules: str, cid: int = PARENT) -> None:
        text = f'transport = "unix"\ndirectory = "{directory}"\ncid = {cid}\n{rules}'
        self.log = EventLog()
        self._directory = directory
        self._opened: list[socket.socket] = []
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.forwarder = Forwarder(parse_config(text), log=self.log)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(PATIENCE)
        if self._failure:
            self._thread.join(PATIENCE)
            raise self._failure

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            await self.forwarder.start()
        except BaseException as error:  # noqa: BLE001 - shown to the test
            self._failure = error
            return
        finally:
            self._started.set()
        await self._stop.wait()
        await self.forwarder.stop()

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        for sock in self._opened:
            sock.close()
        if self._thread.is_alive():
            self.begin_stop()
        self.join()

    def dial(self, rule: str, cid: int = ENCLAVE) -> socket.socket:
        """Connect to a rule's listener, over TCP or as the enclave."""
        host, _, port = self.forwarder.listeners[rule].rpartition(":")
        if host == "vsock":
            sock = UnixStandIn(self._directory, cid).connect(PARENT, int(port), PATIENCE)
        else:
            sock = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
        self._opened.append(sock)
        return sock


Serve = Callable[[socket.socket, Handler], Server]
Forward = Callable[..., Running]


def echo(sock: socket.socket) -> None:
    while chunk := sock.recv(65536):
        sock.sendall(chunk)


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(listener: socket.socket, handler: Handler) -> Server:
        servers.append(Server(listener, handler))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def tcp_echo(serve: Serve) -> Server:
    return serve(socket.create_server(("127.0.0.1", 0)), echo)


@pytest.fixture
def forward(tmp_path: Path, serve: object) -> Iterator[Forward]:  # noqa: ARG001
    # `serve` first: its servers end when the forwarder has ended their connections.
    made: list[Running] = []

    def start(rules: str, cid: int = PARENT) -> Running:
        made.append(Running(tmp_path, rules, cid))
        return made[-1]

    yield start
    for running in reversed(made):
        running.close()
