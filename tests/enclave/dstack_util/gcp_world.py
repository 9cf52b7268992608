"""A whole KMS in one simulated Google Cloud guest, and guests that boot by themselves in others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util.kms_keys import Waiting
from enclave.dstack_util.setup import Places, setup
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyStore
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.simulator.booted_guest import CONFIG_DISK
from shared.ratls.certificates import spki_der
from shared.rpc import kms_pb2 as pb
from tests.enclave.dstack_util.machine import RecordedMachine
from tests.enclave.gcp import GUEST_APP_ID, NOW, ROOT_PATHS, Guest, Machines

DISK_BYTES = 20 << 20


class ServedKms:
    """A KMS that serves at `url`, under the key `root_spki`."""

    def __init__(self, gcp: Machines, policy: Any, directory: Path) -> None:
        guest = gcp.start(key_provider="tpm", no_instance_id=True, app_id=bytes([9]) * 20)
        verifier = gcp.verifier(guest)
        store = KeyStore(directory / "certs")
        maker = Bootstrapper(
            store=store, random=guest.platform.tee.random, attestor=guest.attestor, now=lambda: NOW
        )
        maker.bootstrap("localhost", check_self=lambda: None, attest=True)
        keys = store.load()
        assert keys is not None
        self.keys = keys
        self.policy = policy
        own = verifier.verify(guest.attestor.attest(bytes(64)), bytes(64))
        service = KmsService(
            core=Core(), keys=keys, authorizer=policy, own=own, policy=pb.KmsPolicy(), now=lambda: NOW
        )
        callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
        app = main_app(service, callers, version="1", metrics=False)
        identity = RpcIdentity(keys, guest.attestor, lambda: NOW)
        self.server = build_server(app, context_factory=identity.context)
        self.listener = guest.platform.tee.listen("0.0.0.0", 8000)
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"
        self.root_spki = spki_der(keys.root_ca_key.public_key())
        self.root_pem = keys.root_ca_cert.public_bytes(Encoding.PEM)


@contextmanager
def served_kms(gcp: Machines, policy: Any, directory: Path) -> Iterator[ServedKms]:
    """Serve until the end of the block."""
    kms = ServedKms(gcp, policy, directory)
    thread = threading.Thread(target=kms.server.run, args=([kms.listener],), daemon=True)
    thread.start()
    try:
        yield kms
    finally:
        kms.server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Watcher:
    """A host that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def notify(self, event: str, payload: str) -> None:
        self.told.append((event, payload))


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []
        self.chance = 1.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    def waiting(self, limit: float = 300.0) -> Waiting:
        return Waiting(limit, self.sleep, lambda: self.seconds, lambda: self.chance)


class BootingGuest:
    """A guest before its setup, with a machine and a disk of its own."""

    def __init__(self, guest: Guest, disk: Path) -> None:
        self.platform = guest.platform
        self.guest = guest
        self.share = guest.platform.writable / CONFIG_DISK
        self.work = guest.platform.writable / "dstack"
        self.host = Watcher()
        self.clock = Clock()
        self.machine = RecordedMachine(guest.platform.writable / "root")
        label = self.machine.root / "dev/disk/by-label/DSTACKSHR"
        label.symlink_to(self.share)
        if not disk.exists():
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
        self.places = Places(
            work=self.work,
            device=disk,
            mount_point=self.work / "persistent",
            share=guest.platform.writable / "mnt",
        )

    def setup(self) -> None:
        """Run it once."""
        setup(self.platform, self.machine, self.places, waiting=self.clock.waiting(), host=self.host)

    def events(self) -> list[tuple[str, bytes]]:
        """Return what is recorded."""
        return [(event.event, event.payload) for event in self.platform.tee.event_log().read()]  # type: ignore[attr-defined]

    def file(self, name: str) -> bytes:
        """Return a file of the work directory's share."""
        return (self.work / ".host-shared" / name).read_bytes()


def trust_toml(gcp: Machines) -> bytes:
    """Return a setup.toml that believes in the simulated vendors."""
    roots = "".join(f'{signer}_roots = ["{path}"]\n' for signer, path in ROOT_PATHS.items())
    return f'[trust]\n{roots}pccs = ["{gcp.vendors.server.url}"]\n'.encode()


def start(
    gcp: Machines,
    disk: Path,
    *,
    kms: ServedKms | None = None,
    kms_urls: tuple[str, ...] | None = None,
    sys_config: dict[str, Any] | None = None,
    **compose: Any,
) -> BootingGuest:
    """Start a guest that boots by itself, with keys from `kms` unless `compose` says otherwise."""
    if kms is not None:
        compose = {"key_provider_id": kms.root_spki.hex(), **compose}
    urls = kms_urls if kms_urls is not None else (kms.url,) if kms else ()
    guest = gcp.start(
        {"/etc/dstack/setup.toml": trust_toml(gcp)},
        app_id=GUEST_APP_ID,
        sys_config={"kms_urls": urls, **(sys_config or {})},
        boots_itself=True,
        **{"storage_fs": "ext4", **compose},
    )
    return BootingGuest(guest, disk)
