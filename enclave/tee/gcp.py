"""A TDX guest of Google Cloud: TDX and vTPM for evidence, and a network of its own."""

import hashlib
import os
from collections.abc import Callable
from socket import create_server, socket
from typing import Literal, Self

from enclave.devices.clock import SystemClock
from enclave.devices.gcp_ak import ECC_AK, RSA_AK, GcpVtpm
from enclave.devices.gcp_attestor import GcpTdxAttestor
from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import Pcr14, Rtmr3, RuntimeEventLog
from enclave.devices.tdx import LinuxTdx, TdxDevice
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import DevTpm, read_boot_log
from enclave.devices.tpm_nv import NvStorage
from enclave.devices.tpm_seal import TpmSealer
from enclave.tee.boot_events import SYSTEM_READY, provider_events, record
from enclave.vsock.transport import AfVsock
from shared.attestation.event_log import system_events
from shared.attestation.trust import TrustAnchors
from shared.boot_info import GCP_TDX
from shared.compose.app_compose import compose_hash, parse_app_compose
from shared.errors import ConfigError, UnavailableError
from shared.net.dialer import DirectDialer

RANDOM_LENGTH = 32


class HostSetClock(SystemClock):
    """The system's clock where nobody said that it is set from authenticated time: the host's word."""

    source = "system (set by the host)"


class GcpTee:
    """One guest, by its devices and the log of its boot.

    `vm_config` gives the host's text about this guest, `app_compose` the app-compose.json that it says was
    measured, `boot_log` the TPM's boot log.
    """

    needs_collateral = True
    variant = GCP_TDX

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
        self._tpm = tpm
        self._app_compose = app_compose
        self._log = log
        self._attestor = GcpTdxAttestor(tdx, GcpVtpm(tpm), log, vm_config=vm_config, boot_log=boot_log)

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

    def attestor(self, app_id: bytes | None) -> GcpTdxAttestor:
        """See `Tee.attestor`: this guest has recorded whose it is, in RTMR3 and PCR14."""
        recorded = system_events(self._log.read()).app_id
        if app_id is not None and app_id != recorded:
            raise ConfigError(
                "image.app_id",
                f"the measured image is of app {app_id.hex()}, the guest has recorded "
                f"{recorded.hex() or 'none'}",
            )
        return self._attestor

    def clock(self, anchors: TrustAnchors) -> SystemClock:
        """Return the system's clock, which tells whether the measured app-compose wants `secure_time`.

        With it, which is the default, the guest sets its clock from authenticated time before it starts
        anything. Raises `ProtocolError("compose.*")` for an app-compose that was measured and is none.
        """
        del anchors
        raw = self._app_compose()
        is_measured = compose_hash(raw) == system_events(self._log.read()).compose_hash
        if is_measured and parse_app_compose(raw).get("secure_time", True) is True:
            return SystemClock()
        return HostSetClock()

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

    def event_log(self) -> RuntimeEventLog:
        """Return the log of this boot."""
        return self._log

    def instance_binding(self) -> bytes:
        """Return 32 bytes that no copy of this machine's disks has: SHA-256 of its vTPM's key."""
        return hashlib.sha256(GcpVtpm(self._tpm).ak_public()).digest()

    def record_keys(self, *, os_image_hash: bytes, kms_root: bytes) -> None:
        """Record the keys' origin once; a workload that starts again finds its boot over."""
        if any(event.event == SYSTEM_READY for event in self._log.read()):
            return
        record(self._log, provider_events("kms", provider_id=kms_root, os_image_hash=os_image_hash))

    def listen(self, address: str, port: int) -> socket:
        """Listen on TCP. Raises `UnavailableError("tee.listen")`."""
        try:
            return create_server((address, port))
        except OSError as error:
            raise UnavailableError(
                "tee.listen", f"cannot listen on {address}:{port}: {error.strerror}"
            ) from error

    def listen_to_host(self, port: int) -> None:
        """Return None: nobody asks a guest from below."""
        del port

    def dialer(self) -> DirectDialer:
        """Return plain TCP: names are the host's word, and everything above it is authenticated."""
        return DirectDialer()


def gcp_registers(tdx: TdxDevice, tpm: Tpm) -> tuple[Rtmr3, Pcr14]:
    """Return what a runtime event extends on Google Cloud."""
    return Rtmr3(tdx), Pcr14(tpm, "sha256")
