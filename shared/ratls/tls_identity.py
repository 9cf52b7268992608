"""What an app shows in TLS: the key and the chain that its guest agent gave it (spec guest-agent 2.5)."""

from collections.abc import Sequence
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shared.errors import ConfigError


class TlsIdentity(msgspec.Struct, frozen=True):
    """A key, and the certificates for it, leaf first."""

    key: EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @classmethod
    def from_pems(cls, key: str, certificate_chain: Sequence[str]) -> Self:
        """Read the answer of GetTlsKey: `key` and `certificate_chain`.

        Raises `ConfigError`: `tls_identity.malformed`, `ratls.key.mismatch`.
        """
        try:
            private = load_pem_private_key(key.encode(), password=None)
            chain = tuple(x509.load_pem_x509_certificate(one.encode()) for one in certificate_chain)
        except (ValueError, TypeError, x509.InvalidVersion):
            # no cause: the sentence of a parser could quote the key
            raise ConfigError("tls_identity.malformed", "the key or a certificate is not pem") from None
        if not isinstance(private, EllipticCurvePrivateKey) or not chain:
            raise ConfigError("tls_identity.malformed", "there is no key on a curve, or no certificate")
        if chain[0].public_key() != private.public_key():
            raise ConfigError("ratls.key.mismatch", "the first certificate of the chain is not for the key")
        return cls(private, chain)

    def __repr__(self) -> str:
        return f"TlsIdentity({self.chain[0].subject.rfc4514_string()!r})"
