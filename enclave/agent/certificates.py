"""Certificates for an app's TLS keys (spec guest-agent section 2.5).

Who signs depends on where the guest's keys came from: a KMS (`enclave.agent.kms_issuer`), or the guest's own
CA (`enclave.agent.local_issuer`); `enclave.agent.issuers` chooses. What an app asks for is a `CsrConfig`
either way: GetTlsKey's arguments, or DeriveKey's.
"""

import secrets
from collections.abc import Callable
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import ProtocolError
from shared.keys.kdf import derive_p256_scalar, p256_key
from shared.ratls.csr import CsrConfig

KeyEvidence = Callable[[EllipticCurvePublicKey], bytes]
"""Makes an envelope that binds this guest to a key, in the form that certificates carry."""

_SEED_BYTES: Final = 32


class CertificateIssuer(Protocol):
    """Gets certificates for keys of this guest."""

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        """Return the chain for `key` as PEMs, leaf first. Blocks: never call it on an event loop.

        Raises `ProtocolError`: `certificate.validity`, `certificate.name`; what the devices raise, and what
        the signer does.
        """
        ...


def new_tls_key() -> EllipticCurvePrivateKey:
    """Return the key of one GetTlsKey call, or of one DeriveKey call with `random_seed`."""
    return p256_key(derive_p256_scalar(secrets.token_bytes(_SEED_BYTES), ()))


def tls_key_pem(key: EllipticCurvePrivateKey) -> str:
    """Return the key as apps get it: PKCS#8 with the public key inside, 138 bytes in DER."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def check_validity_asked(config: CsrConfig) -> None:
    """Check the times that an app asks for. Raises `ProtocolError("certificate.validity")`."""
    if (
        config.not_before is not None
        and config.not_after is not None
        and config.not_before >= config.not_after
    ):
        raise ProtocolError("certificate.validity", "not_before must be earlier than not_after")
