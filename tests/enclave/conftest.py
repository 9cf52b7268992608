"""Enclaves in this process: simulated NSMs, a KMS whose policy tests write, and servers in threads."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import socket

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.kms.authorization import ChainInfo, Decision
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.vsock.transport import UnixStandIn
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.boot_info import BootInfo
from shared.ratls.certificates import client_certificate, spki_der
from tests.enclave.gcp import Machines, machines
from tests.enclave.tdx import TdxMachine, tdx_machine

NOW = 1_900_000_000
APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")


def registers(seed: int) -> dict[int, bytes]:
    """Return PCR0 to PCR2 of a made-up image."""
    return {index: bytes([seed, index]) * 24 for index in range(3)}


@pytest.fixture(scope="session")
def authority() -> SimulatedAuthority:
    return SimulatedAuthority.create()


@pytest.fixture(scope="session")
def anchors(authority: SimulatedAuthority) -> TrustAnchors:
    return TrustAnchors.production().with_extra(authority.root_pem)


class Enclave:
    """One simulated enclave at a fixed time."""

    def __init__(self, authority: SimulatedAuthority, seed: int, app_id: bytes | None) -> None:
        self.nsm = Nsm(SimulatedNsm(registers(seed), authority, clock=lambda: NOW))
        self.attestor = NitroAttestor(self.nsm, app_id)

    def evidence(self, anchors: TrustAnchors) -> VerifiedAttestation:
        """Return verified evidence over zero report data."""
        envelope = self.attestor.attest(bytes(64))
        return verify_attestation(envelope, now=NOW, anchors=anchors, report_data=bytes(64))

    def certificate(
        self, keys: KeyMaterial | None, *, over: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """Return a client certificate (DER) with evidence, and its key; `over` is attested in its place."""
        key = ec.generate_private_key(ec.SECP256R1())
        envelope = self.attestor.attest(report_data(RATLS_CERT, spki_der((over or key).public_key())))
        issuer = None if keys is None else (keys.temp_ca_cert, keys.temp_ca_key)
        certificate = client_certificate(key, attestation=envelope, issuer=issuer, now=NOW)
        return certificate.public_bytes(Encoding.DER), key


@pytest.fixture(scope="session")
def kms_enclave(authority: SimulatedAuthority) -> Enclave:
    return Enclave(authority, seed=1, app_id=None)


@pytest.fixture(scope="session")
def app_enclave(authority: SimulatedAuthority) -> Enclave:
    return Enclave(authority, seed=2, app_id=APP_ID)


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[Machines]:
    """Simulated Google Cloud machines, and the service of their vendors."""
    with machines(tmp_path) as running:
        yield running


@pytest.fixture
def tdx(gcp: Machines, tmp_path: Path) -> Iterator[TdxMachine]:
    """A machine of one's own with the same Intel."""
    with tdx_machine(gcp.vendors, tmp_path) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "certs")


@pytest.fixture
def bootstrap(store: KeyStore, kms_enclave: Enclave) -> Callable[[], KeyMaterial]:
    """Return a function that bootstraps the store and loads the keys."""

    def run() -> KeyMaterial:
        maker = Bootstrapper(
            store=store, random=kms_enclave.nsm.get_random, attestor=kms_enclave.attestor, now=lambda: NOW
        )
        maker.bootstrap("kms.test", check_self=lambda: None, attest=True)
        keys = store.load()
        assert keys is not None
        return keys

    return run


class Policy:
    """An authorizer whose answers a test sets, and which remembers what it was asked."""

    mode = "proof"
    remembers = False

    def __init__(self) -> None:
        self.app = Decision(is_allowed=True, reason="", gateway_app_id="gateway", finalized_block=7)
        self.kms = Decision(is_allowed=True, reason="", gateway_app_id="gateway", finalized_block=7)
        self.asked: list[tuple[str, BootInfo]] = []

    def authorize(self, kind: str, boot_info: BootInfo) -> Decision:
        self.asked.append((kind, boot_info))
        return self.app if kind == "app" else self.kms

    def for_one_request(self, following: object = None) -> Callable[[str, BootInfo], Decision]:
        del following
        return self.authorize

    def recall(self, kind: str, boot_info: BootInfo) -> None:
        del kind, boot_info

    def info(self) -> ChainInfo:
        return ChainInfo(
            gateway_app_id="gateway",
            kms_contract_address="0x" + "11" * 20,
            chain_id=31337,
            app_implementation="0x" + "22" * 20,
            finalized_block=7,
        )


@pytest.fixture
def policy() -> Policy:
    return Policy()


class StandInDialer:
    """Dials one vsock address whatever name is asked for."""

    def __init__(self, vsock: UnixStandIn, cid: int, port: int) -> None:
        self._vsock, self._cid, self._port = vsock, cid, port

    def dial(self, host: str, port: int, timeout: float) -> socket:
        del host, port
        return self._vsock.connect(self._cid, self._port, timeout)


@pytest.fixture
def vsock(tmp_path: Path) -> UnixStandIn:
    directory = tmp_path / "v"
    directory.mkdir()
    return UnixStandIn(directory, 16)


@pytest.fixture
def serve(vsock: UnixStandIn) -> Iterator[Callable[[uvicorn.Server], StandInDialer]]:
    """Return a function that runs a server in a thread and returns how to dial it."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(server: uvicorn.Server) -> StandInDialer:
        port = 8000 + len(running)
        thread = threading.Thread(target=server.run, args=([vsock.listen(port)],), daemon=True)
        thread.start()
        running.append((server, thread))
        return StandInDialer(vsock, 16, port)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
