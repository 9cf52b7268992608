"""COSE_Sign1 with ES384, as the Nitro hypervisor signs (RFC 9052 4.2, spec attestation 4.3)."""

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from shared.attestation.cbor import Value, decode_strict
from shared.errors import InvalidEvidence

# The NSM driver's response buffer: no real document is larger (spec attestation section 4.1).
MAX_COSE = 0x3000
ES384 = -35
P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)

_TAG_SIGN1 = b"\xd2"
_HEADER_ALG = 1
_HEADER_CRIT = 2
_SCALAR_LENGTH = 48
_SIGNATURE_LENGTH = 2 * _SCALAR_LENGTH
_ECDSA_SHA384 = ec.ECDSA(SHA384())


class CoseSign1(msgspec.Struct, frozen=True):
    """The signed parts of a COSE_Sign1; `signature` is r || s, 96 bytes."""

    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def signed_text(self) -> bytes:
        """The Sig_structure that the signature covers: ["Signature1", protected, h'', payload]."""
        return b"\x84\x6aSignature1" + _byte_string(self.protected) + b"\x40" + _byte_string(self.payload)


def parse_sign1(data: bytes) -> CoseSign1:
    """Parse a COSE_Sign1, untagged or under tag 18, whose only algorithm is ES384.

    Raises `InvalidEvidence`: `cose.size`, `cose.shape`, `cose.unprotected` (it is not signed, so it must be
    empty), `cose.algorithm`, `cose.crit`, `cose.header`, `cose.signature.length` or a `cbor.*` code.
    """
    if len(data) > MAX_COSE:
        raise InvalidEvidence(
            "cose.size", f"cose document has {len(data)} bytes, at most {MAX_COSE} are read"
        )
    fields = decode_strict(data.removeprefix(_TAG_SIGN1))
    if not isinstance(fields, list) or len(fields) != 4:
        raise InvalidEvidence("cose.shape", "cose document is not an array of four items")
    protected, unprotected, payload, signature = fields
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise InvalidEvidence(
            "cose.shape", "protected header, payload and signature are not all byte strings"
        )
    if unprotected != {} or not isinstance(unprotected, dict):
        raise InvalidEvidence("cose.unprotected", "unprotected header is not an empty map")
    _check_protected(protected)
    if len(signature) != _SIGNATURE_LENGTH:
        raise InvalidEvidence(
            "cose.signature.length",
            f"signature has {len(signature)} bytes, expected {_SIGNATURE_LENGTH} (r || s)",
        )
    return CoseSign1(protected, payload, signature)


def verify_es384(message: CoseSign1, key: ec.EllipticCurvePublicKey) -> None:
    """Verify the signature under a P-384 key.

    Raises `InvalidEvidence`: `cose.signature.range` when r or s is outside 1..n-1, `cose.signature.invalid`.
    """
    r = int.from_bytes(message.signature[:_SCALAR_LENGTH], "big")
    s = int.from_bytes(message.signature[_SCALAR_LENGTH:], "big")
    if not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        raise InvalidEvidence("cose.signature.range", "signature has an r or s outside 1..n-1")
    try:
        key.verify(encode_dss_signature(r, s), message.signed_text, _ECDSA_SHA384)
    except InvalidSignature as error:
        raise InvalidEvidence(
            "cose.signature.invalid", "signature does not verify under the leaf key"
        ) from error


def _check_protected(protected: bytes) -> None:
    header = decode_strict(protected)
    if not isinstance(header, dict):
        raise InvalidEvidence("cose.header", "protected header is not a map")
    if header.get(_HEADER_ALG) != ES384:
        raise InvalidEvidence(
            "cose.algorithm", f"algorithm is {header.get(_HEADER_ALG)!r}, expected {ES384} (es384)"
        )
    if unknown := header.keys() - {_HEADER_ALG, _HEADER_CRIT}:
        raise InvalidEvidence(
            "cose.header", f"protected header has unknown labels {sorted(map(str, unknown))}"
        )
    if _HEADER_CRIT in header:
        critical = header[_HEADER_CRIT]
        if not isinstance(critical, list) or not critical or any(not _is_alg_label(c) for c in critical):
            raise InvalidEvidence("cose.crit", f"crit is {critical!r}, it may list only 1 or 'alg'")


def _is_alg_label(label: Value) -> bool:
    return label == "alg" or (label == _HEADER_ALG and not isinstance(label, bool))


def _byte_string(value: bytes) -> bytes:
    size = len(value)
    if size < 24:
        return bytes([0x40 | size]) + value
    if size < 1 << 8:
        return bytes([0x58, size]) + value
    return b"\x59" + size.to_bytes(2, "big") + value
