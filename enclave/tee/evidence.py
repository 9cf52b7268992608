"""Evidence for a TLS key, in the form that certificates carry (spec attestation sections 1.7, 2.3)."""

import threading
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from enclave.tee.tee import Attestor
from shared.attestation.envelope import decode_envelope, encode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.stripped import strip
from shared.errors import UnavailableError
from shared.ratls.certificates import spki_der

MAX_WAITING: Final = 8
"""A device makes evidence in a few tenths of a second: nobody waits much longer than a few seconds."""


def certificate_evidence(
    attestor: Attestor, key: EllipticCurvePublicKey, *, content_type: str = RATLS_CERT
) -> bytes:
    """Return a stripped envelope that binds this guest to `key`. Raises what the devices raise."""
    envelope = attestor.attest(report_data(content_type, spki_der(key)))
    return encode_envelope(strip(decode_envelope(envelope), keep_boot=True))


class SerialAttestor:
    """Makes evidence for one caller at a time, from any thread: devices serve no two at once anyway."""

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self._lock = threading.Lock()

    def attest(self, report_data: bytes) -> bytes:
        """See `Attestor.attest`."""
        with self._lock:
            return self._attestor.attest(report_data)


class BoundedAttestor:
    """Makes evidence for whoever asks from outside: for one at a time, with few waiting.

    In front of a `SerialAttestor` that the guest's own app uses too, at most one of them is before the app.
    """

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MAX_WAITING)

    def attest(self, report_data: bytes) -> bytes:
        """See `Attestor.attest`. Raises `UnavailableError("attestor.busy")` where too many wait."""
        if not self._places.acquire(blocking=False):
            raise UnavailableError(
                "attestor.busy", f"{MAX_WAITING} requests for evidence wait: ask again later"
            )
        try:
            with self._lock:
                return self._attestor.attest(report_data)
        finally:
            self._places.release()
