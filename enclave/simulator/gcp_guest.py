"""A Google Cloud guest without the cloud: its hardware, its boot, and a stand-in for its network."""

import errno
import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from enclave.devices.gcp_ak import GcpVtpm
from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tdx import TdxDevice
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.log import log_event
from enclave.platform import Platform
from enclave.simulator.compose import GuestCompose, materialise, read_compose
from enclave.simulator.config_disk import GuestConfig
from enclave.simulator.console import Console, silent
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_vtpm import provision_ak
from enclave.simulator.sealing_tpm import SealingTpm
from enclave.simulator.swtpm import Swtpm, swtpm_installed
from enclave.simulator.tdx import SimulatedTdx
from enclave.tee.boot_events import STORAGE_FS, identity_events, make_instance_id, provider_events, record
from enclave.tee.gcp import GcpTee, gcp_registers
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.tpm_quote import BANK_NAME
from shared.compose.app_compose import compose_hash
from shared.compose.shared_files import (
    APP_COMPOSE,
    ENCRYPTED_ENV,
    INSTANCE_INFO,
    SYS_CONFIG,
    InstanceInfo,
    encode_instance_info,
)
from shared.errors import UnavailableError
from shared.measurement.config_disk import LABEL

TpmKind = Literal["auto", "swtpm", "software"]

LOOPBACK = "127.0.0.1"

_HOST_SHARED = "dstack/.host-shared"
CONFIG_DISK = "config-disk"
"""Below the guest's own disk: what a guest that boots by itself finds on the config disk."""
_EVENTS = "run/log/dstack"
_MEASURED = ".measured"
_VTPM = ".vtpm"
_SEED_LENGTH = 20
_TEXTS = frozenset({"key-provider", "storage-fs"})


class SimulatedGcpTee(GcpTee):
    """A guest whose ports are mapped to free ones of the loopback interface.

    A port keeps its mapping for the life of the guest, and each is told by an event `guest.listening`. A
    guest with an `address` of its own, one of 127.0.0.0/8, has its ports there under their own numbers.
    """

    def __init__(
        self,
        tdx: TdxDevice,
        tpm: Tpm,
        log: RuntimeEventLog,
        *,
        shared: HostShared,
        boot_log: Callable[[], bytes],
        app_id: bytes,
        address: str = "",
    ) -> None:
        super().__init__(
            tdx,
            tpm,
            log,
            vm_config=shared.vm_config,
            app_compose=shared.app_compose,
            boot_log=boot_log,
        )
        self.app_id = app_id
        self._address = address
        self._ports: dict[int, socket.socket] = {}

    def close(self) -> None:
        """Give the ports back."""
        for kept in self._ports.values():
            kept.close()

    def listen(self, address: str, port: int) -> socket.socket:
        """Listen on the loopback port that stands for the guest's `port`.

        Raises `UnavailableError("tee.listen")` for a port of the guest's own address that is taken.
        """
        del address
        if self._address:
            return self._listen_at_own(port)
        if port not in self._ports:
            # never listens: it keeps the number while the guest closes its listener and opens another
            self._ports[port] = _bound(0)
        return _listening(_bound(self._ports[port].getsockname()[1]), port)

    def _listen_at_own(self, port: int) -> socket.socket:
        try:
            return _listening(_bound(port, self._address), port)
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise UnavailableError("tee.listen", f"port {port} of {self._address} {reason}") from error


class GuestFiles(msgspec.Struct, frozen=True):
    """What a guest is started from: the OS image's directory, app-compose.json, and its own writable disk."""

    image: Path
    app_compose: Path
    writable: Path


@contextmanager
def running_guest(
    files: GuestFiles,
    authority: GcpAuthority,
    app_id: bytes,
    *,
    tpm: TpmKind = "auto",
    sys_config: Mapping[str, object] | None = None,
    boots_itself: bool = False,
) -> Iterator[Platform]:
    """Boot a guest from its files as `boot_guest` does; `sys_config` are further fields of that file."""
    boot = GcpBoot.of(files.image)
    encoded = msgspec.json.encode({"vm_config": boot.vm_config, **(sys_config or {})})
    instance_info = encode_instance_info(InstanceInfo(b"", app_id))
    app_compose = files.app_compose.read_bytes()
    config = GuestConfig({APP_COMPOSE: app_compose, SYS_CONFIG: encoded, INSTANCE_INFO: instance_info})
    with boot_guest(boot, config, authority, files.writable, tpm=tpm, boots_itself=boots_itself) as platform:
        yield platform


@contextmanager
def boot_guest(
    boot: GcpBoot,
    config: GuestConfig,
    authority: GcpAuthority,
    writable: Path,
    *,
    tpm: TpmKind = "auto",
    address: str = "",
    console: Console = silent,
    boots_itself: bool = False,
) -> Iterator[Platform]:
    """Boot a guest and give its platform; the end of the block is its power switch.

    1. The firmware measures the OS image into the vTPM and the domain's registers.
    2. The guest records who it is: app id, compose hash, instance id (none where app-compose wants none).
    3. app-compose's configs, and nothing else, become the files that its daemon reads as measured.
    4. Where keys come from the TPM, as a KMS's do, or are drawn afresh (`none`), the boot ends here.
       Elsewhere the daemon ends it when keys have come.

    One that `boots_itself` is given at the end of step 1, its config disk beside it: `dstack-util setup`
    takes the others.

    `writable` is the guest's own disk; what is there of an earlier boot but the vTPM's state must be gone.
    Raises what reading the config does, and `StorageError`, `UnavailableError` of the devices.
    """
    compose = read_compose(config.app_compose)
    app_id = config.app_id()
    digest = compose_hash(config.app_compose)
    console(f"booting os image {boot.os_image_hash.hex()} on a simulated tdx machine")
    shared = writable / _HOST_SHARED
    given = writable / CONFIG_DISK if boots_itself else shared
    given.mkdir(parents=True)
    for name, content in config.files.items():
        (given / name).write_bytes(content)
    console(f"config disk {LABEL}: {', '.join(sorted(config.files))}")
    if ENCRYPTED_ENV in config.files:
        console(f"{ENCRYPTED_ENV} is there and stays encrypted: a simulated guest starts no container")
    with _vtpm(tpm, writable / _VTPM) as (kind, device):
        chip = Tpm(device)
        for event in boot.pcr_events:
            chip.pcr_extend(event.register, {BANK_NAME: event.digest})
        provision_ak(chip, authority.google.issue_ak)
        domain = SimulatedTdx(authority.intel, rtmrs=boot.rtmrs, event_log=boot.ccel())
        log = RuntimeEventLog(gcp_registers(domain, chip), writable / _EVENTS)
        instance_id = b""
        if not boots_itself:
            log.set_version(1)
            if not compose.no_instance_id:
                binding = hashlib.sha256(GcpVtpm(chip).ak_public()).digest()
                instance_id = make_instance_id(_seed(config, compose), app_id, binding)
            record(log, boot_events(compose, app_id=app_id, compose_hash=digest, instance_id=instance_id))
        measured = writable / _MEASURED
        materialise(compose.files, measured)
        log_event(
            "guest.booted",
            tpm=kind,
            app_id=app_id.hex(),
            compose_hash=digest.hex(),
            os_image_hash=boot.os_image_hash.hex(),
            instance_id=instance_id.hex(),
        )
        for recorded in log.read():
            console(f"measured {recorded.event} {_shown(recorded)}".rstrip())
        tee = SimulatedGcpTee(
            domain,
            chip,
            log,
            shared=HostShared(shared),
            boot_log=boot.tpm_log,
            app_id=app_id,
            address=address,
        )
        with closing(tee):
            yield Platform(image=measured, writable=writable, tee=tee)


def boot_events(
    compose: GuestCompose, *, app_id: bytes, compose_hash: bytes, instance_id: bytes
) -> tuple[RuntimeEvent, ...]:
    """Return what a guest records before its daemon runs: the whole boot, unless a KMS has the keys."""
    identity = identity_events(
        app_id=app_id,
        compose_hash=compose_hash,
        instance_id=instance_id,
        init_script_hashes=compose.init_script_hashes,
        gpu_policy_hash=compose.gpu_policy_hash,
    )
    if compose.key_provider == "kms":
        return identity
    return (*identity, *provider_events(compose.key_provider, storage_fs=compose.storage_fs or STORAGE_FS))


def _seed(config: GuestConfig, compose: GuestCompose) -> bytes:
    """Return the host's seed; a guest whose keys last for one boot is another instance at each."""
    seed = b"" if compose.key_provider == "none" else config.instance_id_seed()
    return seed or os.urandom(_SEED_LENGTH)


def _shown(event: RuntimeEvent) -> str:
    return event.payload.decode() if event.event in _TEXTS else event.payload.hex()


@contextmanager
def _vtpm(kind: TpmKind, state: Path) -> Iterator[tuple[str, TpmDevice]]:
    if kind == "software" or (kind == "auto" and not swtpm_installed()):
        yield "software", SealingTpm()
        return
    with Swtpm(state) as device:
        yield "swtpm", device


def _listening(bound: socket.socket, port: int) -> socket.socket:
    bound.listen(socket.SOMAXCONN)
    log_event("guest.listening", port=port, address="{}:{}".format(*bound.getsockname()))
    return bound


def _bound(port: int, address: str = LOOPBACK) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound
