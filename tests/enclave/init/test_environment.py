"""The encrypted environment that the parent offers: hostile input."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave.init.environment import fetch_encrypted_env
from enclave.tee.nitro import PARENT_CID, NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES
from shared.errors import ProtocolError, UnavailableError
from tests.enclave.vsock.conftest import Handler, Server
from tests.shared.refusal import refuses

PORT = 9100


@pytest.fixture
def tee(tmp_path: Path) -> NitroTee:
    return NitroTee(nsm=None, vsock=UnixStandIn(tmp_path, 16))  # type: ignore[arg-type]


@pytest.fixture
def offer(tmp_path: Path) -> Iterator[Callable[[Handler], None]]:
    servers: list[Server] = []

    def start(handler: Handler) -> None:
        servers.append(Server(UnixStandIn(tmp_path, PARENT_CID).listen(PORT), handler))

    yield start
    for server in servers:
        server.close()


def test_takes_all_that_is_sent(tee: NitroTee, offer) -> None:
    sent = bytes(range(256)) * 1024
    assert len(sent) == MAX_CIPHERTEXT_BYTES
    offer(lambda sock: sock.sendall(sent))
    assert fetch_encrypted_env(tee, PORT) == sent


def test_nothing_is_no_environment(tee: NitroTee, offer) -> None:
    offer(lambda _sock: None)
    assert fetch_encrypted_env(tee, PORT) is None


def test_n71_refuses_an_environment_without_an_end(tee: NitroTee, offer) -> None:
    def endless(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(65536))

    offer(endless)
    with refuses("init.env.oversize", ProtocolError):
        fetch_encrypted_env(tee, PORT)


def test_n71_does_not_wait_for_a_parent_that_says_nothing(tee: NitroTee, offer) -> None:
    offer(lambda sock: sock.recv(1))
    with refuses("init.env.timeout", UnavailableError):
        fetch_encrypted_env(tee, PORT, seconds=0)


def test_a_parent_that_offers_nothing_is_not_there(tee: NitroTee) -> None:
    with refuses("vsock.connect.refused", UnavailableError):
        fetch_encrypted_env(tee, PORT)
