"""Certificates for an app's TLS keys (spec guest-agent section 2.5).

Who signs depends on where the guest's keys came from: a KMS, or the guest's own CA. What an app asks for is a
`CsrConfig` either way: GetTlsKey's arguments, or DeriveKey's.
"""

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from shared.ratls.csr import CsrConfig


class CertificateIssuer(Protocol):
    """Gets certificates for keys of this guest."""

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        """Return the chain for `key` as PEMs, leaf first. Blocks: never call it on an event loop.

        Raises `ProtocolError("certificate.validity")`, what the devices raise, and what the signer does.
        """
        ...
