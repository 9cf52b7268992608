"""A chain that mines on each transaction, and a loopback server that answers raw bytes."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cli.devchain.launcher import Chain, start_chain
from tests.conftest import CHAIN_ENGINE
from tests.shared.chain.world import World


@pytest.fixture(scope="session")
def mining_chain() -> Iterator[Chain]:
    with start_chain(CHAIN_ENGINE, block_time=0) as chain:
        yield chain


@pytest.fixture
def own_world(mining_chain: Chain) -> World:
    return World(mining_chain)


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Start a loopback server that hands each connection to a function; returns its port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(serve: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        serve(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(timeout=10)
