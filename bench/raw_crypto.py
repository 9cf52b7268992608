"""The cryptography that a request cannot do without, called as directly as its libraries allow."""

import hmac
import os
from collections.abc import Callable
from hashlib import sha256

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_P256 = ec.SECP256R1()


def app_keys() -> Callable[[], object]:
    """Return what GetAppKey computes: two P-256 derivations, one HKDF, one recoverable signature."""
    ca, root, app_id = os.urandom(32), os.urandom(32), os.urandom(20)
    signer = PrivateKey(root)

    def hkdf(key: bytes, info: bytes) -> bytes:
        return hmac.digest(hmac.digest(b"RATLS", key, "sha256"), info + b"\x01", "sha256")

    def secret(info: bytes) -> bytes:
        key = ec.derive_private_key(int.from_bytes(hkdf(ca, info)), _P256)
        return sha256(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).digest()

    def keys() -> tuple[bytes, ...]:
        k256 = hkdf(root, app_id + b"app-key")
        public = PublicKey.from_valid_secret(k256).format()
        digest = keccak.new(data=b"dstack-kms-issued:" + app_id + public, digest_bits=256).digest()
        return (
            secret(app_id + b"app-disk-crypt-key"),
            secret(app_id + b"env-encrypt-key"),
            k256,
            signer.sign_recoverable(digest, hasher=None),
        )

    return keys


def attested_connection() -> Callable[[], object]:
    """Return what the server's half of a new attested connection computes, before any dispatch.

    An X25519 exchange; its own P-256 signature; two P-256 verifications (the client's key and the certificate
    that carries it); one P-384 verification (the document's, its chain being cached).
    """
    es256, es384 = ec.ECDSA(SHA256()), ec.ECDSA(SHA384())
    p256, p384 = ec.generate_private_key(_P256), ec.generate_private_key(ec.SECP384R1())
    message = os.urandom(600)
    signed256, signed384 = p256.sign(message, es256), p384.sign(message, es384)
    public256, public384 = p256.public_key(), p384.public_key()
    peer = X25519PrivateKey.generate().public_key()

    def handshake_and_verdict() -> None:
        X25519PrivateKey.generate().exchange(peer)
        p256.sign(message, es256)
        for _ in range(2):
            public256.verify(signed256, message, es256)
        public384.verify(signed384, message, es384)

    return handshake_and_verdict
