"""Sign and Verify of the guest agent (spec guest-agent section 2.4)."""

from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from shared.errors import ProtocolError
from shared.keys.guest_keys import ED25519, unsupported_algorithm
from shared.keys.guest_keys import SECP256K1 as SECP256K1_NAME
from shared.keys.k256 import ORDER, SigningKey

PREHASHED: Final = "secp256k1_prehashed"

SIGNATURE_BYTES: Final = 64

_DIGEST_BYTES: Final = 32
_HALF_DIGEST: Final = _DIGEST_BYTES // 2
_KEY_NAMES: Final = {ED25519: ED25519, "k256": SECP256K1_NAME, SECP256K1_NAME: SECP256K1_NAME}
_ECDSA: Final = ECDSA(Prehashed(SHA256()))
_ED25519_P: Final = 2**255 - 19
_ED25519_D: Final = -121665 * pow(121666, -1, _ED25519_P) % _ED25519_P


def key_algorithm(algorithm: str) -> str:
    """Return the algorithm of the key that signs: a digest is signed by the same key as a message.

    There is no default. Raises `ProtocolError("guest_keys.algorithm")`.
    """
    if algorithm == PREHASHED:
        return SECP256K1_NAME
    if algorithm not in _KEY_NAMES:
        raise unsupported_algorithm()
    return _KEY_NAMES[algorithm]


def sign(key: bytes, algorithm: str, data: bytes) -> bytes:
    """Return the 64-byte signature of `data` by 32 secret bytes.

    secp256k1 signs SHA-256 of `data`, `secp256k1_prehashed` takes `data` as the digest; both give
    r || s with a low s. Raises `ProtocolError`: `guest_keys.algorithm`, `guest_keys.digest`.
    """
    if key_algorithm(algorithm) == ED25519:
        return Ed25519PrivateKey.from_private_bytes(key).sign(data)
    if algorithm != PREHASHED:
        digest = sha256(data).digest()
    elif len(data) == _DIGEST_BYTES:
        digest = data
    else:
        raise ProtocolError(
            "guest_keys.digest",
            f"Pre-hashed signing requires a 32-byte digest, but received {len(data)} bytes",
        )
    return SigningKey(key).sign_digest(digest)[:SIGNATURE_BYTES]


def verify(algorithm: str, data: bytes, signature: bytes, public_key: bytes) -> bool:
    """Tell whether a signature holds. A high s never does: it would be a second spelling of one signature.

    A secp256k1 key is compressed or not. A digest of another length than 32 is padded or cut as the curve's
    standard has it, and below 16 bytes nothing is a signature of it. Raises `ProtocolError`:
    `guest_keys.algorithm`, `guest_keys.public_key`, `guest_keys.signature` for what is malformed.
    """
    if key_algorithm(algorithm) == ED25519:
        return _verify_ed25519(data, signature, public_key)
    try:
        key = EllipticCurvePublicKey.from_encoded_point(SECP256K1(), public_key)
    except ValueError as error:
        raise _invalid_key("a secp256k1 point") from error
    r, s = _scalars(signature)
    digest = _as_digest(data) if algorithm == PREHASHED else sha256(data).digest()
    if digest is None or s > ORDER // 2:
        return False
    try:
        key.verify(encode_dss_signature(r, s), digest, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _verify_ed25519(data: bytes, signature: bytes, public_key: bytes) -> bool:
    if len(public_key) != 32 or not _is_ed25519_point(public_key):
        raise _invalid_key("an ed25519 point of 32 bytes")
    if len(signature) != SIGNATURE_BYTES:
        raise _invalid_signature(signature)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _is_ed25519_point(encoded: bytes) -> bool:
    # RFC 8032 section 5.1.3: x squared is (y*y - 1) / (d*y*y + 1), which half of all y make no square
    y = (int.from_bytes(encoded, "little") & ((1 << 255) - 1)) % _ED25519_P
    square = (y * y - 1) * pow(_ED25519_D * y * y + 1, -1, _ED25519_P) % _ED25519_P
    return pow(square, (_ED25519_P - 1) // 2, _ED25519_P) in (0, 1)


def _scalars(signature: bytes) -> tuple[int, int]:
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    if len(signature) != SIGNATURE_BYTES or not 0 < r < ORDER or not 0 < s < ORDER:
        raise _invalid_signature(signature)
    return r, s


def _as_digest(data: bytes) -> bytes | None:
    if len(data) < _HALF_DIGEST:
        return None
    return data[:_DIGEST_BYTES].rjust(_DIGEST_BYTES, b"\0")


def _invalid_key(expected: str) -> ProtocolError:
    return ProtocolError("guest_keys.public_key", f"invalid public key: expected {expected}")


def _invalid_signature(signature: bytes) -> ProtocolError:
    return ProtocolError(
        "guest_keys.signature",
        f"invalid signature: got {len(signature)} bytes, expected {SIGNATURE_BYTES} with r and s in range",
    )
