"""A Nitro Enclave: the NSM for evidence, time and randomness; vsock and the parent's forwarder as network."""

from functools import partial
from socket import socket
from typing import Self

from enclave.devices.attestor import NitroAttestor
from enclave.devices.clock import TrustedClock
from enclave.devices.nsm import DevNsm, Nsm, NsmDevice
from enclave.vsock.transport import AfVsock, VsockTransport
from shared.attestation.app_id_register import APP_ID_PCR, app_id_message, app_id_register
from shared.attestation.trust import TrustAnchors
from shared.boot_info import NITRO_ENCLAVE
from shared.errors import InvalidEvidence
from shared.net.dialer import ConnectDialer

PARENT_CID = 3
"""The parent instance as an enclave sees it (spec deploy section 5B.5)."""

PROXY_PORT = 3128
"""Where the parent's forwarder accepts CONNECT."""


class ModuleClock(TrustedClock):
    """The security module's time, which needs no floor."""

    def raise_floor(self, timestamp: int) -> None:
        """Change nothing."""


class NitroTee:
    """One enclave, by its security module and its vsock."""

    needs_collateral = False
    variant = NITRO_ENCLAVE

    def __init__(self, nsm: NsmDevice, vsock: VsockTransport) -> None:
        self._nsm = Nsm(nsm)
        self._vsock = vsock

    @classmethod
    def production(cls) -> Self:
        """Return the enclave that this process runs in: /dev/nsm and AF_VSOCK."""
        return cls(DevNsm(), AfVsock())

    def attestor(self, app_id: bytes | None) -> NitroAttestor:
        """See `Tee.attestor`."""
        return NitroAttestor(self._nsm, app_id)

    def bind_app_id(self, app_id: bytes) -> None:
        """Fix the app id (20 bytes) in PCR16 until the enclave ends; binding it again changes nothing.

        Raises `InvalidEvidence("nsm.app_id_register")` where the register holds anything else.
        """
        expected = app_id_register(app_id)
        found = self._nsm.describe_pcr(APP_ID_PCR)
        if not any(found) and not self._nsm.pcr_locked(APP_ID_PCR):
            found = self._nsm.extend_pcr(APP_ID_PCR, app_id_message(app_id))
        if found != expected:
            raise InvalidEvidence(
                "nsm.app_id_register", f"PCR{APP_ID_PCR} holds {found.hex()}, expected {expected.hex()}"
            )
        self._nsm.lock_pcr(APP_ID_PCR)
        if not self._nsm.pcr_locked(APP_ID_PCR):
            raise InvalidEvidence("nsm.app_id_register", f"PCR{APP_ID_PCR} is not locked after it was locked")

    def clock(self, anchors: TrustAnchors) -> ModuleClock:
        """Return the module's clock: the parent sets the system's."""
        return ModuleClock(self._nsm, anchors)

    def random(self) -> bytes:
        """Return bytes from the module's source."""
        return self._nsm.get_random()

    def sealer(self) -> None:
        """Return None: an enclave has no TPM."""

    def record_keys(self, *, os_image_hash: bytes, kms_root: bytes) -> None:
        """Record nothing: an enclave's registers are locked at its start."""
        del os_image_hash, kms_root

    def listen(self, address: str, port: int) -> socket:
        """Listen on a vsock port."""
        del address
        return self._vsock.listen(port)

    def listen_to_host(self, port: int) -> socket:
        """Listen on a vsock port: the parent reaches every port of an enclave."""
        return self._vsock.listen(port)

    @property
    def vsock(self) -> VsockTransport:
        """The way between enclave and parent."""
        return self._vsock

    def connect_parent(self, port: int, timeout: float) -> socket:
        """Return a connection to a vsock port of the parent. Raises `UnavailableError("vsock.connect.*")`."""
        return self._vsock.connect(PARENT_CID, port, timeout)

    def dialer(self) -> ConnectDialer:
        """Return CONNECT through the parent's forwarder, which sees host and port only."""
        return ConnectDialer(partial(self._vsock.connect, PARENT_CID, PROXY_PORT))
