"""The cryptography that a request cannot do without, called as directly as its libraries allow."""

import hmac
import os
from collections.abc import Callable
from hashlib import sha256, sha384, sha512

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.chain.bundle import ProofBundle

_P256 = ec.SECP256R1()
_KEY_SCHEDULE = 21
"""HMACs of a TLS 1.3 handshake. Three extracts: early, handshake and master secret. Sixteen expands:
`derived` twice, four traffic secrets with key and iv each, two finished keys. Two finished messages."""


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


def handshake() -> Callable[[], object]:
    """Return what the server's half of a new connection computes, TLS 1.3 with a client certificate.

    One encapsulation of ML-KEM-768 and one X25519 exchange with its key (the group that both ends prefer);
    one P-256 signature; one P-256 verification, of the client's possession of its key; 21 HMAC-SHA-384 of
    the key schedule; SHA-384 of the transcript once; AES-256-GCM with four keys: a flight out and one in,
    with a certificate each, a request in and an answer out.
    """
    signed, check = _signature(_P256, SHA256())
    kem = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    peer = X25519PrivateKey.generate().public_key()
    secret, nonce = os.urandom(48), os.urandom(12)
    flight, request, answer = os.urandom(4600), os.urandom(300), os.urandom(1500)
    received = [
        (key, AESGCM(key).encrypt(nonce, text, None)) for text in (flight, request) for key in [_key()]
    ]
    sent = [(_key(), text) for text in (flight, answer)]

    def server_half() -> None:
        MLKEM768PublicKey.from_public_bytes(kem).encapsulate()
        X25519PrivateKey.generate().exchange(peer)
        signed()
        check()
        for _ in range(_KEY_SCHEDULE):
            hmac.digest(secret, secret, "sha384")
        sha384(flight + flight).digest()
        for key, text in received:
            AESGCM(key).decrypt(nonce, text, None)
        for key, text in sent:
            AESGCM(key).encrypt(nonce, text, None)

    return server_half


def evidence(certificates: int) -> Callable[[], object]:
    """Return what verifying a client's evidence computes, `certificates` of its chain being new.

    One P-256 verification, of the certificate with the evidence by who issued it; `certificates` + 1 P-384
    verifications, of those and of the document; SHA-512 of the key that the evidence binds, SHA-256 of the
    registers.
    """
    _, check_certificate = _signature(_P256, SHA256())
    _, check = _signature(ec.SECP384R1(), SHA384())
    key, registers = os.urandom(91), os.urandom(3 * 48)

    def verdict() -> None:
        check_certificate()
        for _ in range(certificates + 1):
            check()
        sha512(key).digest()
        sha256(registers).digest()

    return verdict


def proofs(bundle: ProofBundle) -> Callable[[], object]:
    """Return Keccak-256 of every header and trie node in a proof bundle.

    The contracts' code is left out: it is the same for months, so its hashes can be remembered.
    """
    pieces = (*bundle.headers, *bundle.nodes)

    def hashes() -> None:
        for piece in pieces:
            keccak.new(data=piece, digest_bits=256).digest()

    return hashes


def _signature(
    curve: ec.EllipticCurve, algorithm: hashes.HashAlgorithm
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what makes a signature over some 600 bytes, about a certificate, and what verifies one."""
    key, message = ec.generate_private_key(curve), os.urandom(600)
    ecdsa = ec.ECDSA(algorithm)
    signature, public = key.sign(message, ecdsa), key.public_key()
    return lambda: key.sign(message, ecdsa), lambda: public.verify(signature, message, ecdsa)


def _key() -> bytes:
    return os.urandom(32)
