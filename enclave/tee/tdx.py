"""A TDX guest on a machine of one's own: a host that talks to it over vsock, and no TPM."""

import os
from collections.abc import Callable
from socket import socket
from typing import Self

from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import Rtmr3, RuntimeEventLog
from enclave.devices.tdx import LinuxTdx, TdxDevice
from enclave.devices.tdx_attestor import TdxAttestor
from enclave.tee.booted import BootedTee
from enclave.vsock.transport import AfVsock, VsockTransport
from shared.boot_info import TDX

RANDOM_LENGTH = 32


class TdxTee(BootedTee):
    """One guest, by its device and the log of its boot.

    `vm_config` gives the host's text about this guest, `app_compose` the app-compose.json that it says was
    measured, `vsock` leads to the host.
    """

    variant = TDX

    def __init__(
        self,
        tdx: TdxDevice,
        log: RuntimeEventLog,
        *,
        vm_config: Callable[[], str],
        app_compose: Callable[[], bytes],
        vsock: VsockTransport,
    ) -> None:
        super().__init__(TdxAttestor(tdx, log, vm_config), log, app_compose=app_compose)
        self._vsock = vsock

    @classmethod
    def production(cls) -> Self:
        """Return the guest that this process runs in. Raises `ConfigError("tdx_device.configfs.path")`."""
        vsock = AfVsock()
        tdx = LinuxTdx.production(os.environ, vsock.connect)
        shared = HostShared.from_environment(os.environ)
        return cls(
            tdx,
            RuntimeEventLog((Rtmr3(tdx),)),
            vm_config=shared.vm_config,
            app_compose=shared.app_compose,
            vsock=vsock,
        )

    @property
    def vsock(self) -> VsockTransport:
        """See `Tee.vsock`."""
        return self._vsock

    def random(self) -> bytes:
        """Return bytes of the kernel's own source: a trust domain has no other one that its host cannot see.

        The kernel mixes the processor's RDSEED into it, where the host has no say. A virtio source is the
        host's, and is not asked.
        """
        return os.urandom(RANDOM_LENGTH)

    def sealer(self) -> None:
        """Return None: there is no TPM."""

    def nonvolatile(self) -> None:
        """Return None: there is no TPM."""

    def instance_binding(self) -> bytes:
        """Return nothing: no part of the machine has a name that the host could not give to another."""
        return b""

    def listen_to_host(self, port: int) -> socket:
        """Listen on a vsock port, which nobody but the host reaches. Raises `UnavailableError("vsock.*")`."""
        return self._vsock.listen(port)
