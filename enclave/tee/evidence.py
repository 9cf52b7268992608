"""Evidence for a TLS key, in the form that certificates carry (spec attestation sections 1.7, 2.3)."""

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from enclave.tee.tee import Attestor
from shared.attestation.envelope import decode_envelope, encode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.stripped import strip
from shared.ratls.certificates import spki_der


def certificate_evidence(attestor: Attestor, key: EllipticCurvePublicKey) -> bytes:
    """Return a stripped envelope that binds this guest to `key`. Raises what the devices raise."""
    envelope = attestor.attest(report_data(RATLS_CERT, spki_der(key)))
    return encode_envelope(strip(decode_envelope(envelope), keep_boot=True))
