"""Agents of simulated guests, on real sockets, with an issuer that a test steers."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from enclave.agent.config import AgentConfig
from enclave.agent.guest import GUEST_STYLE, EvidenceStyle, Guest, GuestFiles, Machine
from enclave.agent.host_methods import Shutdown
from enclave.agent.own_identity import read_identity
from enclave.agent.pages import Observed
from enclave.agent.serving import Sockets, agent_parts, serve
from enclave.agent.sockets import listen_unix
from enclave.agent.views import NO_VIEWS, guest_views
from enclave.devices.runtime_events import Rtmr3, RuntimeEventLog
from enclave.devices.tdx_attestor import TdxAttestor
from enclave.dstack_util.host_notice import NoHost
from enclave.serving.together import Part
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from enclave.tee.boot_events import identity_events, provider_events, record
from enclave.tee.evidence import SerialAttestor
from enclave.tee.tee import Attestor
from shared.attestation.envelope import decode_envelope
from shared.compose.app_compose import compose_hash
from shared.errors import DstackError
from shared.keys.app_keys import RootKeys, derive_app_keys
from shared.keys.guest_keys import AppKey
from shared.keys.k256 import public_key
from shared.ratls.csr import CsrConfig
from tests.enclave.event_log import PATIENCE

APP_ID = bytes([7]) * 20
INSTANCE_ID = bytes([8]) * 20
ROOT = RootKeys(ca_scalar=bytes([1]) * 32, k256=bytes([2]) * 32)
ROOT_PUBLIC = public_key(ROOT.k256)
KEYS = derive_app_keys(ROOT, APP_ID)
VM_CONFIG = msgspec.json.encode({"os_image_hash": "ab" * 32}).decode()
INTEL = SimulatedIntel.create()
MACHINE = Machine("Acme", "Box 1")


def app_compose(**changes: Any) -> bytes:
    """Return an app-compose.json that a serialiser of ours would write otherwise."""
    document = {
        "manifest_version": 2,
        "name": "wörld",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}",
        **changes,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=3)


class StubIssuer:
    """Remembers what was asked for; waits for `gate`, then fails with `error` or returns its chain."""

    chain = ("-----BEGIN CERTIFICATE-----\nleaf\n", "-----BEGIN CERTIFICATE-----\nca\n")

    def __init__(self) -> None:
        self.asked: list[tuple[EllipticCurvePrivateKey, CsrConfig]] = []
        self.error: DstackError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.answered = threading.Semaphore(0)
        self.first = threading.Event()
        self.gave_up = False

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        if not self.gate.wait(PATIENCE):
            self.gave_up = True
            raise TimeoutError
        self.asked.append((key, config))
        self.first.set()
        self.answered.release()
        if self.error is not None:
            raise self.error
        return self.chain


class CountingAttestor:
    """Counts what another makes."""

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self.count = 0

    def attest(self, report_data: bytes) -> bytes:
        self.count += 1
        return self._attestor.attest(report_data)


def tdx_attestor(directory: Path, compose: bytes, *, version: int = 1) -> TdxAttestor:
    """Boot a TDX guest on a simulated machine."""
    image = directory / "image"
    image.mkdir()
    (image / "kernel").write_bytes(b"kernel")
    boot = GcpBoot.of(image)
    device = SimulatedTdx(INTEL, rtmrs=boot.rtmrs, event_log=boot.ccel())
    log = RuntimeEventLog((Rtmr3(device),), directory / "events")
    log.set_version(2 if version == 2 else 1)
    record(
        log,
        (
            *identity_events(app_id=APP_ID, compose_hash=compose_hash(compose), instance_id=INSTANCE_ID),
            *provider_events("kms", provider_id=b"\x30", os_image_hash=bytes([0xAB]) * 32),
        ),
    )
    return TdxAttestor(device, log, lambda: VM_CONFIG)


@dataclass
class RunningAgent:
    """An agent that answers; `internal`, `tappd` and `guest_api` are paths, `external` is a port."""

    guest: Guest
    attestor: CountingAttestor
    issuer: StubIssuer
    internal: Path
    tappd: Path
    guest_api: Path
    external: int
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, mount: str) -> httpx.Client:
        """Return a client of mount a, b, c or d."""
        path = {"a": self.internal, "b": self.tappd, "d": self.guest_api}.get(mount)
        transport = httpx.HTTPTransport(uds=None if path is None else str(path))
        base = "http://agent.test" if path else f"http://127.0.0.1:{self.external}"
        client = httpx.Client(transport=transport, base_url=base, timeout=PATIENCE)
        self.clients.append(client)
        return client

    def call(self, mount: str, path: str, body: object = None) -> dict[str, Any]:
        """POST JSON as the SDKs do, and return the answer to a call that succeeds."""
        response = self.client(mount).post(path, json={} if body is None else body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def refused(self, mount: str, path: str, body: object = None) -> tuple[int, str, str]:
        """Return status, code and text of a call that is refused."""
        response = self.client(mount).post(path, json={} if body is None else body)
        error = response.json()
        return response.status_code, error["code"], error["error"]

    def connect(self, mount: str = "a") -> socket.socket:
        """Return a connection."""
        if mount == "c":
            return socket.create_connection(("127.0.0.1", self.external), PATIENCE)
        path = {"a": self.internal, "b": self.tappd, "d": self.guest_api}[mount]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        return sock


@contextmanager
def running(
    directory: Path,
    attestor: Attestor,
    compose: bytes,
    *,
    style: EvidenceStyle = GUEST_STYLE,
    vm_config: str = VM_CONFIG,
    issuer: StubIssuer | None = None,
    config: AgentConfig | None = None,
    watchdog: bool = False,
    key: AppKey | None = None,
    environment: Mapping[str, str] | None = None,
    observed: Observed | None = None,
    shutdown: Shutdown | None = None,
) -> Iterator[RunningAgent]:
    """Run an agent in a thread until the block ends."""
    counting = CountingAttestor(attestor)
    serial = SerialAttestor(counting)
    identity = read_identity(decode_envelope(serial.attest(bytes(64))), whole_log=style.whole_log)
    issuer = issuer or StubIssuer()
    guest = Guest(
        key or AppKey(KEYS.k256_key, KEYS.k256_signature),
        identity,
        serial,
        issuer,
        GuestFiles(compose, vm_config),
        machine=MACHINE,
        style=style,
    )
    paths = [directory / name for name in ("dstack.sock", "tappd.sock", "guest.sock")]
    internal, tappd, guest_api = map(listen_unix, paths)
    external = socket.create_server(("127.0.0.1", 0))
    address = external.getsockname()
    agent = RunningAgent(guest, counting, issuer, *paths, address[1])
    sockets = Sockets(internal, tappd, (external,), guest_api)
    views = NO_VIEWS
    if observed is not None:
        views = guest_views(guest, observed, shutdown or Shutdown(NoHost(), lambda: None), {})
    parts = agent_parts(guest, sockets, config or AgentConfig(), views=views)
    with answering(parts, guest, environment or {}, address if watchdog else None):
        yield agent
        for client in agent.clients:
            client.close()


@contextmanager
def answering(
    parts: list[Part], guest: Guest, environment: Mapping[str, str], watched: tuple[str, int] | None = None
) -> Iterator[None]:
    """Serve in a thread, and end by ending the first of the servers."""
    ready = threading.Event()

    def run() -> None:
        serve(parts, guest, environment, watched=watched, ready=ready.set)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield
    finally:
        parts[0].server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
