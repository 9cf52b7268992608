"""secp256k1 on OpenSSL, for platforms without a coincurve wheel.

Whatever touches a private key is OpenSSL's. Recovery has no OpenSSL call, so its point arithmetic is here:
it sees public values only (a digest, a signature, a public key), so it need not run in constant time.
"""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256K1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_P: Final = 2**256 - 2**32 - 977
ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_G: Final = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
_CURVE: Final = SECP256K1()
_ECDSA: Final = ECDSA(Prehashed(SHA256()), deterministic_signing=True)  # RFC 6979 with HMAC-SHA256

_Point = tuple[int, int] | None  # None is the point at infinity


class OpenSslCurve:
    """The `shared.keys.k256.Curve` backend that needs nothing beyond cryptography."""

    def signer(self, private: bytes) -> "OpenSslSigner":
        """Prepare a private key."""
        return OpenSslSigner(_private_key(private))

    def public_key(self, private: bytes) -> bytes:
        """Return the compressed public key, 33 bytes."""
        return _compressed(_private_key(private))

    def recover(self, digest: bytes, signature: bytes) -> bytes:
        """Return the compressed public key that signed, or raise `ValueError`."""
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64])
        return _recover(int.from_bytes(digest), r, s, signature[64])


class OpenSslSigner:
    """A prepared private key."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = _compressed(key)

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the 65-byte recoverable signature."""
        r, s = decode_dss_signature(self._key.sign(digest, _ECDSA))
        s = min(s, ORDER - s)
        number = int.from_bytes(digest)
        recovery_id = 0 if _recover(number, r, s, 0) == self._public else 1
        return r.to_bytes(32) + s.to_bytes(32) + bytes((recovery_id,))


def _private_key(private: bytes) -> EllipticCurvePrivateKey:
    return derive_private_key(int.from_bytes(private), _CURVE)


def _compressed(key: EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def _recover(digest: int, r: int, s: int, recovery_id: int) -> bytes:
    # SEC 1 section 4.1.6: Q = (s R - e G) / r, where R has x = r and the parity that recovery_id names.
    square = (pow(r, 3, _P) + 7) % _P
    y = pow(square, (_P + 1) // 4, _P)
    if y * y % _P != square:
        raise ValueError("r is not the x coordinate of a point")
    if y % 2 != recovery_id:
        y = _P - y
    inverse = pow(r, -1, ORDER)
    point = _add(_multiply((r, y), s * inverse % ORDER), _multiply(_G, -digest * inverse % ORDER))
    if point is None:
        raise ValueError("the recovered key is the point at infinity")
    return bytes((2 + point[1] % 2,)) + point[0].to_bytes(32)


def _add(left: _Point, right: _Point) -> _Point:
    if left is None or right is None:
        return left or right
    (x1, y1), (x2, y2) = left, right
    if x1 == x2:
        if (y1 + y2) % _P == 0:
            return None
        slope = 3 * x1 * x1 * pow(2 * y1, -1, _P) % _P
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, _P) % _P
    x3 = (slope * slope - x1 - x2) % _P
    return x3, (slope * (x1 - x3) - y1) % _P


def _multiply(point: _Point, scalar: int) -> _Point:
    total: _Point = None
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total
