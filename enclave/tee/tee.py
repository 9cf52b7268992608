"""The kinds of guest behind one interface: evidence, time, randomness, and the way in and out."""

from collections.abc import Sequence
from socket import socket
from typing import Protocol

from enclave.vsock.transport import VsockTransport
from shared.attestation.trust import TrustAnchors
from shared.net.dialer import Dialer


class Attestor(Protocol):
    """Makes evidence about this guest."""

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope over the 64 bytes of `report_data`."""
        ...


class Clock(Protocol):
    """Trusted time."""

    @property
    def source(self) -> str:
        """Where the time comes from, as GetMeta tells it."""
        ...

    def now(self) -> int:
        """Return the time in unix seconds, never less than before."""
        ...

    def raise_floor(self, timestamp: int) -> None:
        """Learn of a time (unix seconds) that is certainly past."""
        ...


class Sealer(Protocol):
    """Keeps small secrets for this machine in its present state, which registers of a bank describe."""

    def seal(self, secret: bytes, bank: str, registers: Sequence[int]) -> bytes:
        """Return a blob from which only this machine gets the secret, while the registers stay as they are.

        Raises `ConfigError("tpm_device.pcr.unused")` for a register that describes nothing.
        """
        ...

    def unseal(self, blob: bytes, bank: str, registers: Sequence[int]) -> bytes:
        """Return the secret of a blob that is sealed to exactly these registers.

        Raises `UnavailableError("tpm_device.sealed")` when the registers hold other values than at sealing,
        `ProtocolError("tpm_device.refused")` for a blob of another machine, and other `ProtocolError`s for
        what is no such blob.
        """
        ...


class Tee(Protocol):
    """One guest. Devices raise `UnavailableError` and `ProtocolError` with codes of their own."""

    @property
    def variant(self) -> str:
        """Upstream's word for the platform."""
        ...

    @property
    def vsock(self) -> VsockTransport | None:
        """The way between the guest and what it runs on; None where there is none."""
        ...

    @property
    def needs_collateral(self) -> bool:
        """Whether evidence of such guests is judged by what their vendors publish meanwhile."""
        ...

    def attestor(self, app_id: bytes | None) -> Attestor:
        """Return what makes evidence for the app that a measured file names, 20 bytes; None names none.

        Where the guest has recorded whose it is, raises `ConfigError("image.app_id")` for another one;
        elsewhere the evidence claims `app_id`.
        """
        ...

    def clock(self, anchors: TrustAnchors) -> Clock:
        """Return the clock; `anchors` are for one that is evidence itself."""
        ...

    def random(self) -> bytes:
        """Return at least 32 bytes from the hardware's own source, to be mixed with the kernel's."""
        ...

    def sealer(self) -> Sealer | None:
        """Return what seals secrets to this guest; None where it has no TPM."""
        ...

    def record_keys(self, *, os_image_hash: bytes, kms_root: bytes) -> None:
        """Record that keys came, for which image, from the KMS of this root (SPKI DER): the boot is over."""
        ...

    def listen(self, address: str, port: int) -> socket:
        """Return a listening socket. Where ports are the hypervisor's, `address` has no meaning."""
        ...

    def listen_to_host(self, port: int) -> socket | None:
        """Return a listening socket that the host alone reaches; None where there is no such way."""
        ...

    def dialer(self) -> Dialer:
        """Return the way out."""
        ...
