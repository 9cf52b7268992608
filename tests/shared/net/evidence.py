"""Evidence of simulated GCP and TDX guests, signed but not verified anywhere else in these tests."""

import hashlib

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.envelope import Attestation, GcpTdxQuote, PcrValue, TdxQuote, TpmQuote
from shared.attestation.trust import TrustAnchors

REPORT_DATA = bytes(range(64))
AK = ec.generate_private_key(ec.SECP256R1())
_PCRS = {0: b"\x01" * 32, 2: b"\x02" * 32, 14: bytes(32)}  # of no runtime events


def tdx_evidence(intel: SimulatedIntel) -> Attestation:
    quote = TdxQuote(SimulatedTdx(intel).quote(REPORT_DATA), ())
    return Attestation(quote, (), REPORT_DATA, "{}")


def gcp_evidence(
    intel: SimulatedIntel, ak_certificate: bytes, key: ec.EllipticCurvePrivateKey = AK
) -> Attestation:
    """Return evidence whose halves belong together, its vTPM quote signed by `key`."""
    tdx = TdxQuote(SimulatedTdx(intel).quote(REPORT_DATA), ())
    values = tuple(PcrValue(index, "sha256", value) for index, value in _PCRS.items())
    digest = hashlib.sha256(b"".join(_PCRS.values())).digest()
    message = (
        bytes.fromhex("ff544347 8018")
        + _sized(bytes(34))
        + _sized(hashlib.sha256(tdx.quote).digest())
        + bytes(8 + 4 + 4 + 1 + 8)
        + bytes.fromhex("00000001 000b 03 054000")
        + _sized(digest)
    )
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    signature = bytes.fromhex("0018000b") + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
    tpm = TpmQuote(message, signature, values, ak_certificate, "gcp", ())
    return Attestation(GcpTdxQuote(tdx, tpm), (), REPORT_DATA, "{}")


def anchors_of(intel: SimulatedIntel, authority: SimulatedAkAuthority) -> TrustAnchors:
    anchors = TrustAnchors.production().with_extra(intel.root_pem, signer="tdx")
    return anchors.with_extra(authority.root_pem, signer="gcp_tpm")


def with_tpm(attestation: Attestation, **changes: object) -> Attestation:
    """Return GCP evidence with fields of its vTPM quote replaced."""
    quote = attestation.quote
    assert isinstance(quote, GcpTdxQuote)
    tpm = msgspec.structs.replace(quote.tpm, **changes)
    return msgspec.structs.replace(attestation, quote=GcpTdxQuote(quote.tdx, tpm))


def certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
