"""A Google Cloud guest without the cloud: its hardware, its boot, and a stand-in for its network."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
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
from enclave.simulator.compose import materialise, read_compose
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_vtpm import provision_ak
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.swtpm import Swtpm, swtpm_installed
from enclave.simulator.tdx import SimulatedTdx
from enclave.tee.boot_events import identity_events, make_instance_id, provider_events, record
from enclave.tee.gcp import GcpTee, gcp_registers
from shared.attestation.tpm_quote import BANK_NAME
from shared.compose.app_compose import compose_hash

TpmKind = Literal["auto", "swtpm", "software"]

LOOPBACK = "127.0.0.1"

_HOST_SHARED = "dstack/.host-shared"
_EVENTS = "run/log/dstack"
_MEASURED = ".measured"
_VTPM = ".vtpm"


class SimulatedGcpTee(GcpTee):
    """A guest whose ports are mapped to free ones of the loopback interface.

    A port keeps its mapping for the life of the guest, and each is told by an event `guest.listening`.
    """

    def __init__(
        self,
        tdx: TdxDevice,
        tpm: Tpm,
        log: RuntimeEventLog,
        *,
        shared: HostShared,
        boot_log: Callable[[], bytes],
    ) -> None:
        super().__init__(
            tdx,
            tpm,
            log,
            vm_config=shared.vm_config,
            app_compose=shared.app_compose,
            boot_log=boot_log,
        )
        self._ports: dict[int, socket.socket] = {}

    def close(self) -> None:
        """Give the ports back."""
        for kept in self._ports.values():
            kept.close()

    def listen(self, address: str, port: int) -> socket.socket:
        """Listen on the loopback port that stands for the guest's `port`."""
        del address
        if port not in self._ports:
            # never listens: it keeps the number while the guest closes its listener and opens another
            self._ports[port] = _bound(0)
        listener = _bound(self._ports[port].getsockname()[1])
        listener.listen(socket.SOMAXCONN)
        log_event("guest.listening", port=port, address="{}:{}".format(*listener.getsockname()))
        return listener


class GuestFiles(msgspec.Struct, frozen=True):
    """What a guest is started from: the OS image's directory, app-compose.json, and its own writable disk."""

    image: Path
    app_compose: Path
    writable: Path


@contextmanager
def running_guest(
    files: GuestFiles, authority: GcpAuthority, app_id: bytes, *, tpm: TpmKind = "auto"
) -> Iterator[Platform]:
    """Boot a guest and give its platform; the end of the block is its power switch.

    1. The firmware measures the OS image into the vTPM and the domain's registers.
    2. The guest records who it is: app id, compose hash, instance id (none where app-compose wants none).
    3. app-compose's configs, and nothing else, become the files that its daemon reads as measured.
    4. Where app-compose takes keys from the TPM, as a KMS's does, the boot ends here. Elsewhere the daemon
       ends it when keys have come.

    Raises what reading the files does, and `StorageError`, `UnavailableError` of the devices.
    """
    app_compose = files.app_compose.read_bytes()
    compose = read_compose(app_compose)
    boot = GcpBoot.of(files.image)
    shared = files.writable / _HOST_SHARED
    shared.mkdir(parents=True)
    (shared / ".sys-config.json").write_bytes(msgspec.json.encode({"vm_config": boot.vm_config}))
    (shared / "app-compose.json").write_bytes(app_compose)
    with _vtpm(tpm, files.writable / _VTPM) as (kind, device):
        chip = Tpm(device)
        for event in boot.pcr_events:
            chip.pcr_extend(event.register, {BANK_NAME: event.digest})
        provision_ak(chip, authority.google.issue_ak)
        domain = SimulatedTdx(authority.intel, rtmrs=boot.rtmrs, event_log=boot.ccel())
        log = RuntimeEventLog(gcp_registers(domain, chip), files.writable / _EVENTS)
        log.set_version(1)
        instance_id = b""
        if not compose.no_instance_id:
            binding = hashlib.sha256(GcpVtpm(chip).ak_public()).digest()
            instance_id = make_instance_id(os.urandom(32), app_id, binding)
        digest = compose_hash(app_compose)
        record(log, identity_events(app_id=app_id, compose_hash=digest, instance_id=instance_id))
        if compose.key_provider == "tpm":
            record(log, provider_events("tpm"))
        measured = files.writable / _MEASURED
        materialise(compose.files, measured)
        log_event(
            "guest.booted",
            tpm=kind,
            app_id=app_id.hex(),
            compose_hash=digest.hex(),
            os_image_hash=boot.os_image_hash.hex(),
            instance_id=instance_id.hex(),
        )
        tee = SimulatedGcpTee(domain, chip, log, shared=HostShared(shared), boot_log=boot.tpm_log)
        with closing(tee):
            yield Platform(image=measured, writable=files.writable, tee=tee)


@contextmanager
def _vtpm(kind: TpmKind, state: Path) -> Iterator[tuple[str, TpmDevice]]:
    if kind == "software" or (kind == "auto" and not swtpm_installed()):
        yield "software", SoftwareTpm()
        return
    with Swtpm(state) as device:
        yield "swtpm", device


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, port))
    return bound
