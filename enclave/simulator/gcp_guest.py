"""A Google Cloud guest without the cloud: its hardware, its boot, and a stand-in for its network."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Literal

from enclave.devices.gcp_ak import GcpVtpm
from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tdx import TdxDevice
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.log import log_event
from enclave.platform import Platform
from enclave.simulator.booted_guest import EVENTS, MEASURED, GuestFiles, host_config, lay_config, record_boot
from enclave.simulator.compose import materialise, read_compose
from enclave.simulator.config_disk import GuestConfig
from enclave.simulator.console import Console, silent
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_vtpm import provision_ak
from enclave.simulator.loopback import LoopbackPorts
from enclave.simulator.sealing_tpm import SealingTpm
from enclave.simulator.swtpm import Swtpm, swtpm_installed
from enclave.simulator.tdx import SimulatedTdx
from enclave.tee.gcp import GcpTee, gcp_registers
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.tpm_quote import BANK_NAME
from shared.compose.app_compose import compose_hash
from shared.compose.shared_files import ENCRYPTED_ENV
from shared.measurement.config_disk import LABEL

TpmKind = Literal["auto", "swtpm", "software"]

_VTPM = ".vtpm"
_TEXTS = frozenset({"key-provider", "storage-fs"})


class SimulatedGcpTee(GcpTee):
    """A guest whose TCP ports are those of `LoopbackPorts`."""

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
        self._ports = LoopbackPorts(address)

    def close(self) -> None:
        """Give the ports back."""
        self._ports.close()

    def listen(self, address: str, port: int) -> socket:
        """See `LoopbackPorts.listen`."""
        del address
        return self._ports.listen(port)


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
    config = host_config(files.app_compose.read_bytes(), app_id, boot.vm_config, sys_config)
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
    shared = lay_config(config, writable, boots_itself=boots_itself)
    console(f"config disk {LABEL}: {', '.join(sorted(config.files))}")
    if ENCRYPTED_ENV in config.files:
        console(f"{ENCRYPTED_ENV} is there and stays encrypted: a simulated guest starts no container")
    with _vtpm(tpm, writable / _VTPM) as (kind, device):
        chip = Tpm(device)
        for event in boot.pcr_events:
            chip.pcr_extend(event.register, {BANK_NAME: event.digest})
        provision_ak(chip, authority.google.issue_ak)
        domain = SimulatedTdx(authority.intel, rtmrs=boot.rtmrs, event_log=boot.ccel())
        log = RuntimeEventLog(gcp_registers(domain, chip), writable / EVENTS)
        instance_id = b""
        if not boots_itself:
            binding = hashlib.sha256(GcpVtpm(chip).ak_public()).digest()
            instance_id = record_boot(log, config, compose, binding)
        measured = writable / MEASURED
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
            shared=shared,
            boot_log=boot.tpm_log,
            app_id=app_id,
            address=address,
        )
        with closing(tee):
            yield Platform(image=measured, writable=writable, tee=tee)


def _shown(event: RuntimeEvent) -> str:
    return event.payload.decode() if event.event in _TEXTS else event.payload.hex()


@contextmanager
def _vtpm(kind: TpmKind, state: Path) -> Iterator[tuple[str, TpmDevice]]:
    if kind == "software" or (kind == "auto" and not swtpm_installed()):
        yield "software", SealingTpm()
        return
    with Swtpm(state) as device:
        yield "swtpm", device
