"""Keys that a guest agent derives from its app's k256 key, and the proofs that go with them.

Spec guest-agent sections 2.3, 2.5 and 2.13. The derived bytes never change: apps encrypt and hold funds by
them. In v0 neither purpose nor algorithm enters the derivation, so that one path gives one secret to both
curves and to P-256 (`shared.keys.key_ring` keeps an app from using it twice); v1 separates them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.keys.app_keys import issuer_of_key, verify_issued_key
from shared.keys.k256 import SigningKey, public_key, recover_public_key
from shared.keys.kdf import derive_p256_scalar, expand, extract, hkdf_sha256

SECP256K1: Final = "secp256k1"
ED25519: Final = "ed25519"

CHAIN_LINKS: Final = 2

KEPT_KEYS: Final = 256
KEPT_NAME: Final = 1024
"""Characters of a path and a purpose: longer ones are not kept."""

SIGN_PATH: Final = "vms"
SIGN_PURPOSE: Final = "signing"

_ALIASES: Final = {"": SECP256K1, "k256": SECP256K1, SECP256K1: SECP256K1, ED25519: ED25519}
_SALT_V1: Final = b"dstack-guest-v1"
_KEY_V1: Final = b"dstack-guest-v1-key"
_CLAIM_V1: Final = b"dstack-guest-v1-key-claim"


class GuestKey(msgspec.Struct, frozen=True):
    """A derived key: 32 secret bytes, its public key (33 compressed, or 32 of ed25519), and its proof.

    `signature_chain` is the app key's signature over the claim (65 bytes), and the KMS's over the app key:
    65 bytes too, empty for keys that were made without a KMS.
    """

    key: bytes
    public_key: bytes
    signature_chain: tuple[bytes, bytes]

    def __repr__(self) -> str:
        return f"GuestKey(public_key={self.public_key.hex()})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("public_key", self.public_key.hex())]


class AppKey:
    """An app's k256 key (32 bytes) with the KMS's signature over it (65, or none), prepared once.

    The keys that were derived last are kept: apps ask for few, and often, and whoever reads this memory has
    the key that all of them come from. Raises `ConfigError("keys.k256.scalar")` for what is no scalar.
    """

    def __init__(self, k256_key: bytes, k256_signature: bytes) -> None:
        self._signer = SigningKey(k256_key)
        self._secret = k256_key
        self._signature = k256_signature
        self._prk_v1 = extract(_SALT_V1, k256_key)
        self.public_key = public_key(k256_key)
        self._recall = lru_cache(maxsize=KEPT_KEYS)(self._derive)

    def __repr__(self) -> str:
        return f"AppKey(public_key={self.public_key.hex()})"

    def derive(self, path: str, purpose: str, algorithm: str) -> GuestKey:
        """Return a key of v0 (`GetKey`). `algorithm` is secp256k1, k256, empty for these, or ed25519.

        Raises `ProtocolError`: `guest_keys.algorithm`, `guest_keys.scalar`.
        """
        curve = _ALIASES.get(algorithm)
        if curve is None:
            raise unsupported_algorithm()
        is_short = len(path) + len(purpose) <= KEPT_NAME
        return (self._recall if is_short else self._derive)(path, purpose, curve)

    def derive_v1(self, domain: str, algorithm: str) -> GuestKey:
        """Return a key of v1. `algorithm` is exactly secp256k1 or ed25519. Raises as `derive`."""
        if algorithm not in (SECP256K1, ED25519):
            raise unsupported_algorithm()
        info = _framed(_KEY_V1, algorithm.encode(), domain.encode())
        return self._proven(
            expand(self._prk_v1, info, 32), algorithm, lambda public: claim_v1(algorithm, domain, public)
        )

    def derive_tls_scalar(self, path: str) -> bytes:
        """Return the 32-byte P-256 scalar of `Tappd.DeriveKey`: the same bytes as v0 gives for the path.

        Raises `ConfigError("keys.p256.scalar")`, once in 2**32 paths.
        """
        return derive_p256_scalar(self._secret, (path.encode(),))

    def _derive(self, path: str, purpose: str, curve: str) -> GuestKey:
        key = hkdf_sha256(self._secret, (path.encode(),))
        return self._proven(key, curve, lambda public: claim_v0(purpose, public))

    def _proven(self, key: bytes, algorithm: str, claim: Callable[[bytes], bytes]) -> GuestKey:
        public = public_key_of(key, algorithm)
        return GuestKey(key, public, (self._signer.sign(claim(public)), self._signature))


def public_key_of(key: bytes, algorithm: str) -> bytes:
    """Return the public key of 32 secret bytes on secp256k1 (compressed, 33) or ed25519 (32).

    Raises `ProtocolError("guest_keys.scalar")` for bytes that are no secp256k1 scalar.
    """
    if algorithm == ED25519:
        return Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    try:
        return public_key(key)
    except ConfigError as error:
        raise ProtocolError("guest_keys.scalar", "Failed to parse k256 key") from error


def claim_v0(purpose: str, public: bytes) -> bytes:
    """Return what the app key signs of a v0 key: a purpose and the public key as hex text."""
    return f"{purpose}:{public.hex()}".encode()


def claim_v1(algorithm: str, domain: str, public: bytes) -> bytes:
    """Return what the app key signs of a v1 key."""
    return _framed(_CLAIM_V1, algorithm.encode(), domain.encode(), public)


def verify_key_chain(claim: bytes, chain: Sequence[bytes], *, app_id: bytes, root_pubkey: bytes) -> bytes:
    """Return the app's k256 public key (33 bytes) that made a claim, once a KMS root vouches for it.

    `claim` is `claim_v0` or `claim_v1` of the key in question, `chain` its two links (those of `Sign` come
    after the signature), `app_id` the 20 bytes of the app that the key is expected to belong to, and
    `root_pubkey` the KMS's k256 root key (compressed, 33 bytes), learnt from its contract or its evidence and
    never from the agent. Raises `InvalidEvidence`: `guest_keys.chain`, `keys.issued.signer`, and as
    `recover_public_key`; `ProtocolError("keys.app_id.length")`.
    """
    signer, signature = _links(claim, chain)
    verify_issued_key(app_id, signer, signature, root_pubkey)
    return signer


def root_of_key_chain(claim: bytes, chain: Sequence[bytes], *, app_id: bytes) -> bytes:
    """Return the k256 root key (33 bytes) that a chain ends in, whoever that is. Raises as verifying does."""
    signer, signature = _links(claim, chain)
    return issuer_of_key(app_id, signer, signature)


def unsupported_algorithm() -> ProtocolError:
    """Return the refusal of an algorithm, in the words that upstream's clients know."""
    return ProtocolError("guest_keys.algorithm", "Unsupported algorithm")


def _links(claim: bytes, chain: Sequence[bytes]) -> tuple[bytes, bytes]:
    if len(chain) != CHAIN_LINKS or not chain[1]:
        raise InvalidEvidence(
            "guest_keys.chain",
            f"chain has links of {', '.join(str(len(link)) for link in chain) or 'no'} bytes, expected two: "
            "keys that no KMS made are vouched for by nobody",
        )
    return recover_public_key(claim, chain[0]), chain[1]


def _framed(*parts: bytes) -> bytes:
    """Return the parts with the length of each before it: no two lists give the same bytes."""
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(4), part))
