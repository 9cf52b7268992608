"""Whole KMS processes on simulated machines, and guests beside them, once for all tests that ask for one."""

import hashlib
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cli.demo.processes import Process, ProcessGroup
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_commands import open_publisher
from enclave.simulator.gcp_guest import running_guest
from enclave.vsock.transport import UnixStandIn
from shared.attestation.gcp import IMAGE_PCR
from tests.enclave.gcp import app_compose
from tests.interop.guests import gcp_guest, nitro_guest, tdx_guest
from tests.interop.spec_client.kms import Attest, Kms, expected_app_keys
from tests.interop.spec_client.prpc import Channel
from tests.interop.webhook import Webhook

TOKEN = "an operator's word"
APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
GCP_APP_ID = bytes([7]) * 20
KMS_APP_ID = bytes([9]) * 20

MAIN_PORT, ONBOARD_PORT = 8000, 8100
_CERTIFICATES = "etc/kms/certs"
_POLICY_FILE = "/policy.toml"
_OPERATOR_CID = 77
_TIMEOUT = 30.0

_CONFIG = f"""
[core]
aws_nitro_enclave_key_release = true
[core.onboard]
token_hash = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"
port = {ONBOARD_PORT}
{{pins}}
[core.attestation]
insecure_allow_external_trust_anchors = true
{{attestation}}
[core.attestation.root_ca]
aws_nitro_enclave = "/nitro.pem"
tdx = "/intel.pem"
gcp_tpm = "/google.pem"
[core.attestation.urls]
pccs = "{{pccs}}"
[core.auth_api]
{{policy}}
"""


@dataclass(frozen=True)
class RootKeys:
    """The two secrets of a KMS, 32 bytes each."""

    root_ca: bytes
    k256: bytes


@dataclass(frozen=True)
class Site:
    """A KMS process: how a client reaches it, and what its operator has seen and can read of its disk."""

    kms: Kms
    operator: Channel
    store: Path
    process: Process
    bootstrap: dict[str, Any] = field(default_factory=dict)

    def root_keys(self) -> RootKeys:
        """Read the key files."""
        key = load_pem_private_key((self.store / "root-ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        scalar = key.private_numbers().private_value.to_bytes(32, "big")
        return RootKeys(scalar, (self.store / "root-k256.key").read_bytes())

    def wait_until_serving(self) -> None:
        self.process.wait_for("kms.ready", _TIMEOUT)


@dataclass(frozen=True)
class Hardware:
    """The vendors that all machines here believe in, and what they publish."""

    nitro: SimulatedAuthority
    google: GcpAuthority
    pccs: str
    directory: Path

    def roots(self) -> dict[str, bytes]:
        return {
            "/nitro.pem": self.nitro.root_pem,
            "/intel.pem": self.google.intel.root_pem,
            "/google.pem": self.google.google.root_pem,
        }


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short path: sockets lie below it, whose names have 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="dstack-interop-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def hardware(place: Path) -> Iterator[Hardware]:
    nitro = SimulatedAuthority.create()
    nitro.save(place / "nitro")
    google, server = open_publisher(place / "google")
    with server:
        yield Hardware(nitro, google, server.url, place)


@pytest.fixture(scope="session")
def processes(place: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(place / "logs") as group:
        yield group


@pytest.fixture(scope="session")
def webhook() -> Iterator[Webhook]:
    with Webhook().running() as running:
        yield running


class StartNitro(Protocol):
    """Starts an enclave with a KMS and waits until it listens for its operator.

    `policy` is the text of `[core.auth_api]`, `pins` names the root keys that it must be handed.
    """

    def __call__(self, host: str, cid: int, policy: str, pins: str = "") -> Site: ...


@pytest.fixture(scope="session")
def start_nitro(hardware: Hardware, processes: ProcessGroup) -> StartNitro:
    vsock = hardware.directory / "v"
    vsock.mkdir()

    def start(host: str, cid: int, policy: str, pins: str = "") -> Site:
        directory = hardware.directory / host
        config = _CONFIG.format(pccs=hardware.pccs, policy=policy, attestation="", pins=pins)
        _write(directory, {"/etc/kms/kms.toml": config.encode(), **hardware.roots()})
        process = processes.python(
            host,
            "tests.interop.nitro_machine",
            *(str(one) for one in (directory, hardware.directory / "nitro", vsock, cid)),
            f"{FIRST_HOST}={FIRST_CID}",
        )
        process.wait_for("kms.onboarding", _TIMEOUT)
        stand_in = UnixStandIn(vsock, _OPERATOR_CID)
        main, onboard = (partial(stand_in.connect, cid, port, _TIMEOUT) for port in (MAIN_PORT, ONBOARD_PORT))
        return Site(Kms(main, host), _operator(onboard), directory / _CERTIFICATES, process)

    return start


FIRST_HOST, FIRST_CID = "kms.test", 16


@pytest.fixture(scope="session")
def nitro(start_nitro: StartNitro, webhook: Webhook) -> Site:
    """The first KMS, in an enclave; a webhook is its policy."""
    site = start_nitro(FIRST_HOST, FIRST_CID, f'type = "webhook"\nwebhook.url = "{webhook.url}"')
    return bootstrapped(site, FIRST_HOST)


class StartGcp(Protocol):
    """Starts a Google Cloud machine with a KMS; the other words are as `StartNitro`'s.

    Its policy names what firmware measures around the image: a certificate as the specification has it does
    not carry the log that would show it (attestation 1.7).
    """

    def __call__(self, host: str, policy: str, app_id: bytes = KMS_APP_ID) -> Site: ...


@pytest.fixture(scope="session")
def start_gcp(hardware: Hardware, processes: ProcessGroup, gcp_image: Path) -> StartGcp:
    def start(host: str, policy: str, app_id: bytes = KMS_APP_ID) -> Site:
        config = _CONFIG.format(
            pccs=hardware.pccs, policy=policy, attestation=f'policy = "{_POLICY_FILE}"', pins=""
        )
        files = {
            "/etc/kms/kms.toml": config.encode(),
            "/etc/dstack/app-id": app_id.hex().encode(),
            _POLICY_FILE: _boot_policy(gcp_image),
            **hardware.roots(),
        }
        compose = hardware.directory / f"{host}.json"
        compose.write_bytes(app_compose(files, key_provider="tpm", no_instance_id=True))
        options = {
            "--platform": "gcp",
            "--tpm": "software",
            "--writable": hardware.directory / host,
            "--authority": hardware.directory / "google",
            "--image": gcp_image,
            "--app-compose": compose,
            "--app-id": app_id.hex(),
        }
        arguments = [str(one) for option in options.items() for one in option]
        process = processes.python(host, "enclave.simulator", "run", *arguments, "kms")
        main, onboard = (partial(_dial_guest, process, port) for port in (MAIN_PORT, ONBOARD_PORT))
        store = hardware.directory / host / _CERTIFICATES
        return Site(Kms(main, host), _operator(onboard), store, process)

    return start


@pytest.fixture(scope="session")
def gcp(start_gcp: StartGcp) -> Site:
    """A KMS in a Google Cloud machine, in development mode."""
    return bootstrapped(start_gcp("gcp.test", 'type = "dev"'), "gcp.test")


@pytest.fixture(scope="session")
def gcp_image(place: Path) -> Path:
    image = place / "os-image"
    image.mkdir()
    (image / "kernel").write_bytes(b"kernel")
    return image


@pytest.fixture(scope="session")
def enclave(hardware: Hardware) -> Attest:
    """An app's enclave."""
    return nitro_guest(hardware.nitro, APP_ID)


@pytest.fixture(scope="session")
def gcp_app(hardware: Hardware, gcp_image: Path) -> Iterator[Attest]:
    """An app's machine in Google Cloud."""
    compose = hardware.directory / "gcp-app.json"
    compose.write_bytes(app_compose(hardware.roots()))
    files = GuestFiles(gcp_image, compose, hardware.directory / "gcp-app")
    with ExitStack() as stack:
        guest = running_guest(files, hardware.google, GCP_APP_ID, tpm="software")
        yield gcp_guest(stack.enter_context(guest))


class Meeting(NamedTuple):
    """A KMS, and a guest of an app that it knows; `instance_id` is empty in an enclave."""

    site: Site
    attest: Attest
    app_id: bytes
    instance_id: bytes
    vm_config: str

    def guest(self) -> Channel:
        return self.site.kms.as_guest(self.attest)

    def expected_keys(self) -> dict[str, bytes]:
        root = self.site.root_keys()
        return expected_app_keys(root.root_ca, root.k256, self.app_id, self.instance_id)


@pytest.fixture(scope="session", params=["nitro", "gcp"])
def meeting(request: pytest.FixtureRequest) -> Meeting:
    """A guest before the KMS of its own platform."""
    site: Site = request.getfixturevalue(request.param)
    attest: Attest = request.getfixturevalue({"nitro": "enclave", "gcp": "gcp_app"}[request.param])
    shown = attest(bytes(64))
    events = dict(shown.runtime_events)
    vm_config = shown.config if request.param == "gcp" else ""
    return Meeting(site, attest, events["app-id"], events.get("instance-id", b""), vm_config)


@pytest.fixture(scope="session")
def tdx_app(hardware: Hardware) -> Attest:
    """An app's plain TDX guest."""
    image = hardware.directory / "tdx-image"
    image.mkdir()
    (image / "run.sh").write_bytes(b"#!/bin/sh\n")
    return tdx_guest(hardware.google.intel, image, int(time.time()))


def _boot_policy(image: Path) -> bytes:
    pcr2 = [event.digest.hex() for event in GcpBoot.of(image).pcr_events if event.register == IMAGE_PCR]
    _separator, table, _uki, kernel = pcr2
    return f'[gcp]\npartition_tables = ["{table}"]\nkernels = ["{kernel}"]\n'.encode()


def bootstrapped(site: Site, host: str) -> Site:
    """Return the site when its operator has made its keys and it serves."""
    answer = site.operator.call("Bootstrap", {"domain": host})
    assert site.operator.call("Finish") is None
    site.wait_until_serving()
    return replace(site, bootstrap=answer)


def _operator(dial: Callable[[], socket.socket]) -> Channel:
    return Channel(dial, "localhost", tls=False, headers={"Authorization": f"Bearer {TOKEN}"})


def _dial_guest(process: Process, port: int) -> socket.socket:
    event: dict[str, Any] = process.wait_for("guest.listening", _TIMEOUT, port=port)
    host, _, number = str(event["address"]).partition(":")
    return socket.create_connection((host, int(number)), _TIMEOUT)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        file = directory / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.fixture(scope="session")
def vectors(shared_data: Callable[[str], Path]) -> dict[str, Any]:
    """The vectors of spec kms 3.7."""
    found: dict[str, Any] = json.loads(shared_data("kms/vectors.json").read_text())
    return found
