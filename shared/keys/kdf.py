"""HKDF and the P-256 derivations (spec kms section 3.1).

The derived bytes never change: they are disk keys and root-issued identities of running apps.
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import ConfigError

SALT: Final = b"RATLS"
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PKCS8_BYTES: Final = 138

_P256: Final = SECP256R1()
_DIGEST_BYTES: Final = 32
_MAX_EXPAND: Final = 255 * _DIGEST_BYTES  # RFC 5869 section 2.3


def hkdf_sha256(key: bytes, context: Sequence[bytes], length: int = 32) -> bytes:
    """Return HKDF-SHA256 of `key` with salt `RATLS` and the plain concatenation of `context` as info.

    The items of `context` are not delimited: callers keep them unambiguous by fixed lengths.
    """
    return expand(extract(SALT, key), b"".join(context), length)


def extract(salt: bytes, key: bytes) -> bytes:
    """Return the 32-byte pseudorandom key of RFC 5869 section 2.2."""
    return hmac.digest(salt, key, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes of RFC 5869 section 2.3.

    Raises `ConfigError("keys.hkdf.length")` unless 1 to 8160 bytes are asked for.
    """
    if not 0 < length <= _MAX_EXPAND:
        raise ConfigError("keys.hkdf.length", f"hkdf cannot give {length} bytes, expected 1 to {_MAX_EXPAND}")
    block = hmac.digest(prk, info + b"\x01", "sha256")
    if length == _DIGEST_BYTES:
        return block
    output = bytearray(block)
    counter = 1
    while len(output) < length:
        counter += 1
        block = hmac.digest(prk, b"%b%b%c" % (block, info, counter), "sha256")
        output += block
    return bytes(output[:length])


def p256_key(scalar: bytes) -> EllipticCurvePrivateKey:
    """Return the P-256 key of a 32-byte big-endian scalar.

    Raises `ConfigError("keys.p256.scalar")` when it is not 32 bytes, zero, or not below the group order.
    """
    number = int.from_bytes(scalar)
    if len(scalar) != _DIGEST_BYTES or not 0 < number < P256_ORDER:
        raise ConfigError("keys.p256.scalar", "scalar is not 32 bytes between 1 and the p-256 group order")
    return derive_private_key(number, _P256)


def derive_p256_scalar(scalar: bytes, context: Sequence[bytes]) -> bytes:
    """Return the 32-byte P-256 scalar derived from a parent's scalar.

    There is no retry: an output that is no scalar (once in 2**32) raises `ConfigError("keys.p256.scalar")`.
    """
    derived = hkdf_sha256(scalar, context)
    if not 0 < int.from_bytes(derived) < P256_ORDER:
        raise ConfigError("keys.p256.scalar", "derived bytes are not a p-256 scalar: use another context")
    return derived


def p256_pkcs8(scalar: bytes) -> bytes:
    """Return the unencrypted PKCS#8 DER of a scalar: exactly 138 bytes, with the public point inside."""
    der = p256_key(scalar).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    if len(der) != PKCS8_BYTES:  # pragma: no cover - another encoder would silently change every disk key
        raise ConfigError("keys.p256.pkcs8", f"pkcs#8 has {len(der)} bytes, expected {PKCS8_BYTES}")
    return der


def derive_dh_secret(scalar: bytes, context: Sequence[bytes]) -> bytes:
    """Return 32 bytes: the SHA-256 of the derived scalar's PKCS#8, public point included."""
    return sha256(p256_pkcs8(hkdf_sha256(scalar, context))).digest()
