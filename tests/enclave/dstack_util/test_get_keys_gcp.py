"""get-keys in a Google Cloud guest, from a KMS in another one."""

import threading
from collections.abc import Iterator
from pathlib import Path
from socket import create_server

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.clock import SystemClock
from enclave.dstack_util.get_keys import KeyBundle, get_keys
from enclave.kms.authorization import Decision
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyStore
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import DEFAULT_LIMITS, build_server
from enclave.serving.http_protocol import Limits
from enclave.simulator.intel_documents import level, platform_tcb
from shared.attestation.event_log import system_events
from shared.errors import DstackError, UnavailableError
from shared.keys.app_keys import derive_app_keys
from shared.rpc import kms_pb2 as pb
from tests.enclave.gcp import GUEST_APP_ID, NOW, ROOT_PATHS, Guest, Machines
from tests.shared.refusal import refuses

# What an impatient KMS gives a handshake.
HANDSHAKE_SECONDS = 2.0


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


class World:
    """A KMS guest that serves, and what an app guest's measured file says of it."""

    def __init__(self, gcp: Machines, policy, directory: Path, limits: Limits) -> None:
        self._gcp = gcp
        kms = gcp.start(key_provider="tpm", no_instance_id=True, app_id=bytes([9]) * 20)
        verifier = gcp.verifier(kms)
        store = KeyStore(directory / "certs")
        maker = Bootstrapper(
            store=store, random=kms.platform.tee.random, attestor=kms.attestor, now=lambda: NOW
        )
        maker.bootstrap("localhost", check_self=lambda: None, attest=True)
        keys = store.load()
        assert keys is not None
        self.keys = keys
        own = verifier.verify(kms.attestor.attest(bytes(64)), bytes(64))
        service = KmsService(
            core=Core(), keys=keys, authorizer=policy, own=own, policy=pb.KmsPolicy(), now=lambda: NOW
        )
        callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
        identity = RpcIdentity(keys, kms.attestor, lambda: NOW)
        app = main_app(service, callers, version="1", metrics=False)
        self.cut = threading.Event()
        self.server = build_server(app, context_factory=identity.context, limits=limits, log=self._note)
        self.listener = kms.platform.tee.listen("0.0.0.0", 8000)
        self.app_id = GUEST_APP_ID

    def _note(self, _event: str, *, code: str, **_fields: str) -> None:
        if code == "tls.handshake.timeout":
            self.cut.set()

    def app(self, *before: str) -> Guest:
        """Start the app's guest. It asks the KMSes of the URLs `before` this one."""
        roots = "".join(f'{signer}_roots = ["{path}"]\n' for signer, path in ROOT_PATHS.items())
        urls = [*before, f"https://localhost:{self.listener.getsockname()[1]}"]
        text = (
            f'app_id = "0x{self.app_id.hex()}"\n'
            f'[kms]\nurl = "{urls[0]}"\nmore_urls = {urls[1:]}\nroot_ca = "/kms.pem"\n'
            f'[trust]\n{roots}pccs = ["{self._gcp.vendors.server.url}"]\n'
        )
        root = self.keys.root_ca_cert.public_bytes(Encoding.PEM)
        return self._gcp.start({"/etc/dstack/enclave.toml": text.encode(), "/kms.pem": root})

    def refusal(self) -> str:
        """Return why a new guest gets no keys."""
        with pytest.raises(DstackError) as refusal:
            get_keys(self.app().platform)
        return refusal.value.code


@pytest.fixture
def limits() -> Limits:
    return DEFAULT_LIMITS


@pytest.fixture
def world(gcp: Machines, policy, tmp_path: Path, limits: Limits) -> Iterator[World]:
    world = World(gcp, policy, tmp_path, limits)
    thread = threading.Thread(target=world.server.run, args=([world.listener],), daemon=True)
    thread.start()
    yield world
    world.server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def test_gets_the_keys_of_its_instance(world: World) -> None:
    guest = world.app()
    bundle = get_keys(guest.platform)
    events = {event.event: event.payload for event in guest.evidence().runtime_events}
    assert bundle.keys == derive_app_keys(world.keys.root_keys(), GUEST_APP_ID, events["instance-id"])
    assert len(bundle.os_image_hash) == 32


def test_n62_the_next_kms_gives_the_keys_and_nothing_was_recorded_before(world: World) -> None:
    with create_server(("localhost", 0)) as silent:
        port = silent.getsockname()[1]
    guest = world.app(f"https://localhost:{port}")
    before = [event.event for event in guest.evidence().runtime_events]
    bundle = get_keys(guest.platform)
    assert bundle.kms_url == f"https://localhost:{world.listener.getsockname()[1]}/prpc"
    assert [event.event for event in guest.evidence().runtime_events] == before
    for _attempt in range(2):
        guest.platform.tee.record_keys(os_image_hash=bundle.os_image_hash, kms_root=bundle.root_spki())
    after = [event.event for event in guest.evidence().runtime_events]
    assert after == [*before, "os-image-hash", "key-provider", "storage-fs", "system-ready"]


def test_the_first_kms_tells_why_none_gave_keys(world: World, policy) -> None:
    policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    with create_server(("localhost", 0)) as silent:
        port = silent.getsockname()[1]
    guest = world.app(f"https://localhost:{port}")
    with refuses("net.unreachable", UnavailableError):
        get_keys(guest.platform)


def test_what_came_can_be_recorded(world: World) -> None:
    guest = world.app()
    bundle = get_keys(guest.platform)
    guest.platform.tee.record_keys(os_image_hash=bundle.os_image_hash, kms_root=bundle.root_spki())
    recorded = system_events(guest.evidence().runtime_events).key_provider
    assert bundle.root_spki().hex().encode() in recorded


def test_refuses_a_kms_that_is_out_of_date(world: World, gcp: Machines) -> None:
    gcp.vendors.changes = {"tcb_info": {"tcbLevels": [level(platform_tcb(), "OutOfDate")]}}
    assert world.refusal() == "tdx.tcb.status"


def test_refuses_a_kms_without_collateral(world: World, gcp: Machines) -> None:
    gcp.vendors.withheld = True
    assert world.refusal() == "pccs.unavailable"


def test_refuses_a_file_of_another_app(world: World) -> None:
    world.app_id = bytes([8]) * 20
    assert world.refusal() == "image.app_id"


@pytest.mark.parametrize("limits", [Limits(handshake_seconds=HANDSHAKE_SECONDS)])
def test_collateral_may_take_longer_than_a_kms_waits(
    world: World, gcp: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KMS cuts a handshake that does not go on, and ours does not while its evidence is checked."""
    monkeypatch.setattr("enclave.dstack_util.kms_client.PATIENCE", HANDSHAKE_SECONDS / 2)
    gcp.vendors.gate.clear()
    got: list[KeyBundle] = []
    waiting = threading.Thread(target=lambda: got.append(get_keys(world.app().platform)))
    waiting.start()
    try:
        assert world.cut.wait(30)
    finally:
        gcp.vendors.gate.set()
        waiting.join(30)
    assert got[0].kms_url
