"""secp256k1 on libsecp256k1, through coincurve."""

from coincurve import PrivateKey, PublicKey


class CoincurveCurve:
    """The `shared.keys.k256.Curve` backend for platforms that coincurve has a wheel for."""

    def signer(self, private: bytes) -> "CoincurveSigner":
        """Prepare a private key."""
        return CoincurveSigner(private)

    def public_key(self, private: bytes) -> bytes:
        """Return the compressed public key, 33 bytes."""
        # PublicKey alone: a PrivateKey would compute an x-only key too, at the same price again
        return PublicKey.from_valid_secret(private).format()

    def recover(self, digest: bytes, signature: bytes) -> bytes:
        """Return the compressed public key that signed, or raise `ValueError`."""
        return PublicKey.from_signature_and_message(signature, digest, hasher=None).format()


class CoincurveSigner:
    """A prepared private key."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes) -> None:
        self._key = PrivateKey(private)

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the 65-byte recoverable signature."""
        return self._key.sign_recoverable(digest, hasher=None)
