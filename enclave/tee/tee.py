"""The kinds of guest behind one interface: evidence, time, randomness, and the way in and out."""

from socket import socket
from typing import Protocol

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


class Tee(Protocol):
    """One guest. Devices raise `UnavailableError` and `ProtocolError` with codes of their own."""

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

    def record_keys(self, *, os_image_hash: bytes, kms_root: bytes) -> None:
        """Record that keys came, for which image, from the KMS of this root (SPKI DER): the boot is over."""
        ...

    def listen(self, address: str, port: int) -> socket:
        """Return a listening socket. Where ports are the hypervisor's, `address` has no meaning."""
        ...

    def dialer(self) -> Dialer:
        """Return the way out."""
        ...
