"""A TDX guest of Google Cloud: TDX and vTPM for evidence, and a network of its own."""

import hashlib
import os
from collections.abc import Callable
from typing import Literal, Self

from enclave.devices.gcp_ak import ECC_AK, RSA_AK, GcpVtpm
from enclave.devices.gcp_attestor import GcpTdxAttestor
from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import Pcr14, Rtmr3, RuntimeEventLog
from enclave.devices.tdx import LinuxTdx, TdxDevice
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import DevTpm, read_boot_log
from enclave.devices.tpm_nv import NvStorage
from enclave.devices.tpm_seal import TpmSealer
from enclave.tee.booted import BootedTee
from enclave.vsock.transport import AfVsock
from shared.boot_info import GCP_TDX

RANDOM_LENGTH = 32


class GcpTee(BootedTee):
    """One guest, by its devices and the log of its boot.

    `vm_config` gives the host's text about this guest, `app_compose` the app-compose.json that it says was
    measured, `boot_log` the TPM's boot log.
    """

    variant = GCP_TDX
    vsock = None

    def __init__(
        self,
        tdx: TdxDevice,
        tpm: Tpm,
        log: RuntimeEventLog,
        *,
        vm_config: Callable[[], str],
        app_compose: Callable[[], bytes],
        boot_log: Callable[[], bytes],
    ) -> None:
        attestor = GcpTdxAttestor(tdx, GcpVtpm(tpm), log, vm_config=vm_config, boot_log=boot_log)
        super().__init__(attestor, log, app_compose=app_compose)
        self._tpm = tpm

    @classmethod
    def production(cls) -> Self:
        """Return the guest that this process runs in. Raises `ConfigError("tdx_device.configfs.path")`."""
        tdx = LinuxTdx.production(os.environ, AfVsock().connect)
        tpm = Tpm(DevTpm())
        log = RuntimeEventLog(gcp_registers(tdx, tpm))
        shared = HostShared.from_environment(os.environ)
        return cls(
            tdx,
            tpm,
            log,
            vm_config=shared.vm_config,
            app_compose=shared.app_compose,
            boot_log=read_boot_log,
        )

    def random(self) -> bytes:
        """Return bytes from the vTPM's source."""
        return self._tpm.get_random(RANDOM_LENGTH)

    def sealer(self) -> TpmSealer:
        """Return what seals to the vTPM's registers."""
        return TpmSealer(self._tpm)

    def nonvolatile(self) -> NvStorage:
        """Return the vTPM's indexes."""
        return NvStorage(self._tpm)

    def vtpm(self, key: Literal["auto", "ecc", "rsa"]) -> GcpVtpm:
        """Return what quotes by Google's key of a kind, `auto` by the one that evidence is made with."""
        return GcpVtpm(self._tpm, {"auto": (ECC_AK, RSA_AK), "ecc": (ECC_AK,), "rsa": (RSA_AK,)}[key])

    def instance_binding(self) -> bytes:
        """Return 32 bytes that no copy of this machine's disks has: SHA-256 of its vTPM's key."""
        return hashlib.sha256(GcpVtpm(self._tpm).ak_public()).digest()

    def listen_to_host(self, port: int) -> None:
        """Return None: nobody asks a guest from below."""
        del port


def gcp_registers(tdx: TdxDevice, tpm: Tpm) -> tuple[Rtmr3, Pcr14]:
    """Return what a runtime event extends on Google Cloud."""
    return Rtmr3(tdx), Pcr14(tpm, "sha256")
