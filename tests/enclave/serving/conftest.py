"""A server in a thread, and certificates."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from enclave.serving.attested_tls import build_plain_server, build_server, loop_factory
from enclave.serving.http_protocol import Limits
from shared.ratls.certificates import TEMP_CA_NAME, client_certificate, rpc_certificate, self_signed_ca
from shared.ratls.tls import server_context
from tests.enclave.event_log import PATIENCE, EventLog

NOW = 1_800_000_000  # contexts leave validity to the callers' clock, so any time does


@dataclass
class Identity:
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]


class Authority:
    """A temp CA, and what it or anybody issues."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self_signed_ca(self.key, TEMP_CA_NAME, 0, NOW, NOW + 86_400)

    def server(self, domain: str = "kms.test") -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = rpc_certificate(
            key, domain=domain, issuer=(self.certificate, self.key), attestation=b"evidence", now=NOW
        )
        return Identity(key, (certificate,))

    def client(self, *, self_issued: bool = False) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = None if self_issued else (self.certificate, self.key)
        return Identity(key, (client_certificate(key, attestation=b"evidence", issuer=issuer, now=NOW),))

    def context(self, identity: Identity) -> SSL.Context:
        return server_context(key=identity.key, chain=identity.chain, client_ca=self.certificate)


@dataclass
class Running:
    host: str
    port: int
    log: EventLog
    server: uvicorn.Server
    thread: threading.Thread
    opened: list[socket.socket] = field(default_factory=list)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self.host, self.port), PATIENCE)
        sock.settimeout(PATIENCE)
        self.opened.append(sock)
        return sock


@dataclass
class Launcher:
    authority: Authority
    running: list[Running] = field(default_factory=list)

    def __call__(
        self,
        app: Callable[..., Any],
        *,
        limits: Limits | None = None,
        context_factory: Callable[[], SSL.Context] | None = None,
        plain: bool = False,
        listener: socket.socket | None = None,
        loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> Running:
        log = EventLog()
        limits = limits or Limits()
        context = self.authority.context(self.authority.server())
        server = (
            build_plain_server(app, limits=limits)
            if plain
            else build_server(
                app, context_factory=context_factory or (lambda: context), limits=limits, log=log
            )
        )
        listener = listener or socket.create_server(("127.0.0.1", 0))
        factory = loop or loop_factory([listener])

        def run() -> None:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run)
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while not server.started and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        address = listener.getsockname()
        host, port = address[:2] if isinstance(address, tuple) else ("", 0)
        running = Running(host, port, log, server, thread)
        self.running.append(running)
        return running


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def launch(authority: Authority) -> Iterator[Launcher]:
    launcher = Launcher(authority)
    yield launcher
    for running in launcher.running:
        for sock in running.opened:
            sock.close()
        running.stop()
