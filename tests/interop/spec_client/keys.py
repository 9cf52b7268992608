"""Key derivation, signatures and env encryption, a second time (spec kms 3)."""

import hashlib
import os

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# --- derivation from the root CA's scalar (3.1, 3.2)

_PKCS8_HEAD = bytes.fromhex("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")
_PKCS8_POINT = bytes.fromhex("a144034200")


def hkdf(secret: bytes, context: tuple[bytes, ...], length: int = 32) -> bytes:
    return HKDF(SHA256(), length, salt=b"RATLS", info=b"".join(context)).derive(secret)


def pkcs8(scalar: bytes) -> bytes:
    """The 138 bytes of a P-256 private key."""
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return _PKCS8_HEAD + scalar + _PKCS8_POINT + point


def derive_dh(root: bytes, context: tuple[bytes, ...]) -> bytes:
    return hashlib.sha256(pkcs8(hkdf(root, context))).digest()


def disk_crypt_key(root: bytes, app_id: bytes, instance_id: bytes) -> bytes:
    return derive_dh(root, (app_id, instance_id, b"app-disk-crypt-key"))


def env_crypt_key(root: bytes, app_id: bytes) -> bytes:
    return derive_dh(root, (app_id, b"env-encrypt-key"))


def env_public_key(env_key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(env_key).public_key().public_bytes_raw()


def app_ca_scalar(root: bytes, app_id: bytes) -> bytes:
    return hkdf(root, (app_id, b"app-ca"))


def app_k256_key(root_k256: bytes, app_id: bytes) -> bytes:
    return hkdf(root_k256, (app_id, b"app-key"))


# --- the messages of signatures (3.2, 3.5)


def issued_message(app_id: bytes, app_k256_key: bytes) -> bytes:
    return b"dstack-kms-issued:" + app_id + k256_public(app_k256_key)


def env_message(app_id: bytes, public_key: bytes, timestamp: int | None = None) -> bytes:
    """The legacy message, or the one with a time."""
    time = b"" if timestamp is None else timestamp.to_bytes(8, "big")
    return b"dstack-env-encrypt-pubkey:" + app_id + time + public_key


# --- secp256k1 over Keccak-256 (3.1)

_P = 2**256 - 2**32 - 977
_N = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_G = (
    0x79BE667E_F9DCBBAC_55A06295_CE870B07_029BFCDB_2DCE28D9_59F2815B_16F81798,
    0x483ADA77_26A3C465_5DA4FBFC_0E1108A8_FD17B448_A6855419_9C47D08F_FB10D4B8,
)
_Point = tuple[int, int] | None


def k256_public(scalar: bytes) -> bytes:
    """The compressed public key."""
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256K1())
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def k256_sign(scalar: bytes, message: bytes) -> bytes:
    """r || s || recid, deterministic (RFC 6979) and with low s."""
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256K1())
    algorithm = ec.ECDSA(Prehashed(SHA256()), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(keccak256(message), algorithm))
    raw = r.to_bytes(32, "big") + min(s, _N - s).to_bytes(32, "big")
    public = k256_public(scalar)
    return next(raw + bytes([i]) for i in (0, 1) if k256_recover(message, raw + bytes([i])) == public)


def k256_recover(message: bytes, signature: bytes) -> bytes:
    """The compressed public key that made a signature of 65 bytes, whose last one is 0 or 1."""
    if len(signature) != 65 or signature[64] > 1:
        raise ValueError("not a signature with a recovery id of 0 or 1")
    r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
    if not (0 < r < _N and 0 < s <= _N // 2):
        raise ValueError("r or s is out of range")
    y = pow(r**3 + 7, (_P + 1) // 4, _P)
    if (y * y - r**3 - 7) % _P:
        raise ValueError("r is no point's x")
    point = (r, y if y % 2 == signature[64] else _P - y)
    z, inverse = int.from_bytes(keccak256(message), "big"), pow(r, -1, _N)
    public = _add(_times(_G, -z * inverse % _N), _times(point, s * inverse % _N))
    if public is None:
        raise ValueError("the key is the point at infinity")
    return bytes([2 + public[1] % 2]) + public[0].to_bytes(32, "big")


def _add(a: _Point, b: _Point) -> _Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % _P == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, _P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, _P)
    x = (slope * slope - a[0] - b[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P


def _times(point: _Point, factor: int) -> _Point:
    total: _Point = None
    while factor:
        if factor & 1:
            total = _add(total, point)
        point, factor = _add(point, point), factor >> 1
    return total


# --- Keccak-256 with its original padding

_RATE = 136
_MASK = 2**64 - 1


def keccak256(message: bytes) -> bytes:
    padded = message + b"\x01" + bytes(-(len(message) + 1) % _RATE)
    padded = padded[:-1] + bytes([padded[-1] | 0x80])
    lanes = [0] * 25
    for at in range(0, len(padded), _RATE):
        for index in range(_RATE // 8):
            lanes[index] ^= int.from_bytes(padded[at + 8 * index : at + 8 * index + 8], "little")
        lanes = _permuted(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _permuted(lanes: list[int]) -> list[int]:
    """Keccak-f[1600]; lane (x, y) is at x + 5y."""
    register = 1
    for _round in range(24):
        columns = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        for x in range(5):
            change = columns[x - 1] ^ _rotated(columns[(x + 1) % 5], 1)
            for y in range(0, 25, 5):
                lanes[x + y] ^= change
        x, y, current = 1, 0, lanes[1]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, lanes[x + 5 * y] = lanes[x + 5 * y], _rotated(current, (step + 1) * (step + 2) // 2)
        for y in range(0, 25, 5):
            row = lanes[y : y + 5]
            for x in range(5):
                lanes[y + x] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5]) & _MASK
        for bit in range(7):
            lanes[0] ^= (register & 1) << ((1 << bit) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
    return lanes


def _rotated(lane: int, by: int) -> int:
    by %= 64
    return (lane << by | lane >> (64 - by)) & _MASK


# --- env encryption (3.6)


def encrypt_env(
    public_key: bytes, plaintext: bytes, *, ephemeral: bytes | None = None, iv: bytes | None = None
) -> bytes:
    key = X25519PrivateKey.from_private_bytes(ephemeral or os.urandom(32))
    iv = iv or os.urandom(12)
    shared = key.exchange(X25519PublicKey.from_public_bytes(public_key))
    return key.public_key().public_bytes_raw() + iv + AESGCM(shared).encrypt(iv, plaintext, None)


def decrypt_env(env_key: bytes, blob: bytes) -> bytes:
    ephemeral = X25519PublicKey.from_public_bytes(blob[:32])
    shared = X25519PrivateKey.from_private_bytes(env_key).exchange(ephemeral)
    return AESGCM(shared).decrypt(blob[32:44], blob[44:], None)
