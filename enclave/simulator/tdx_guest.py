"""A TDX guest on a machine of one's own, without the machine: its domain, its boot, and its host's vsock."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from socket import socket

from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import Rtmr3, RuntimeEventLog
from enclave.devices.tdx import TdxDevice
from enclave.log import log_event
from enclave.platform import Platform
from enclave.simulator.booted_guest import EVENTS, MEASURED, GuestFiles, host_config, lay_config, record_boot
from enclave.simulator.compose import materialise, read_compose
from enclave.simulator.image import serialised
from enclave.simulator.lite_guest import LiteImage
from enclave.simulator.loopback import LoopbackPorts
from enclave.simulator.tdx import SimulatedIntel
from enclave.tee.tdx import TdxTee
from enclave.vsock.transport import VsockTransport
from shared.compose.app_compose import compose_hash
from shared.measurement.mr_config import mr_config_id_v1
from shared.measurement.vm_config import encode_vm_config


class SimulatedTdxTee(TdxTee):
    """A guest whose TCP ports are free ones of the loopback interface."""

    def __init__(
        self, tdx: TdxDevice, log: RuntimeEventLog, *, shared: HostShared, vsock: VsockTransport
    ) -> None:
        super().__init__(tdx, log, vm_config=shared.vm_config, app_compose=shared.app_compose, vsock=vsock)
        self._ports = LoopbackPorts()

    def close(self) -> None:
        """Give the ports back."""
        self._ports.close()

    def listen(self, address: str, port: int) -> socket:
        """Listen on the loopback port that stands for the guest's `port`."""
        del address
        return self._ports.listen(port)


@contextmanager
def running_tdx_guest(
    files: GuestFiles,
    intel: SimulatedIntel,
    app_id: bytes,
    *,
    vsock: VsockTransport,
    sys_config: Mapping[str, object] | None = None,
    boots_itself: bool = False,
) -> Iterator[Platform]:
    """Boot a guest from its files and give its platform; the end of the block is its power switch.

    1. The host binds the compose hash into the domain, and the firmware measures the OS image.
    2. The guest records who it is, and where its keys come from unless that is a KMS.
    3. app-compose's configs, and nothing else, become the files that its daemon reads as measured.

    One that `boots_itself` is given at the end of step 1, its config disk beside it: `dstack-util setup`
    takes the others. Raises what reading the files does, and `StorageError`.
    """
    image = LiteImage.of(b"".join(serialised(files.image)))
    app_compose = files.app_compose.read_bytes()
    compose, digest = read_compose(app_compose), compose_hash(app_compose)
    config = host_config(app_compose, app_id, encode_vm_config(image.config), sys_config)
    shared = lay_config(config, files.writable, boots_itself=boots_itself)
    domain = image.started(intel, mr_config_id_v1(digest))
    log = RuntimeEventLog((Rtmr3(domain),), files.writable / EVENTS)
    instance_id = b"" if boots_itself else record_boot(log, config, compose, b"")
    measured = files.writable / MEASURED
    materialise(compose.files, measured)
    log_event(
        "guest.booted",
        app_id=app_id.hex(),
        compose_hash=digest.hex(),
        os_image_hash=image.config.os_image_hash.hex(),
        instance_id=instance_id.hex(),
    )
    tee = SimulatedTdxTee(domain, log, shared=shared, vsock=vsock)
    with closing(tee):
        yield Platform(image=measured, writable=files.writable, tee=tee)
