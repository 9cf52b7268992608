"""Trust anchors: who may sign which evidence, as explicit arguments (spec attestation 3.6, 4.4, 5.3).

An anchor is a name, a key and a validity. Whatever root certificate comes with evidence is never trusted and,
where the format allows it, never read.
"""

import hashlib
from typing import Literal, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared.attestation.anchor import TrustAnchor
from shared.attestation.certificate import Certificate
from shared.attestation.roots import AWS_ROOT_G1, GCP_EK_AK_ROOT, INTEL_SGX_ROOT
from shared.errors import ConfigError, InvalidEvidence

Signer = Literal["nitro", "tdx", "gcp_tpm"]
"""Who signs: AWS for enclaves and NitroTPMs, Intel for TDX quotes, Google for the keys of its vTPMs."""

# A smaller RSA root is not one that a vendor or our simulator makes.
_MIN_RSA_BITS = 2048
# What `cryptography` raises on der that its outer parser let through, and the strict parser of Nitro roots.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    InvalidEvidence,
)


class TrustAnchors(msgspec.Struct, frozen=True):
    """The roots that one verifier accepts, by who signs under them; at least one each."""

    nitro: tuple[TrustAnchor, ...]
    tdx: tuple[TrustAnchor, ...]
    gcp_tpm: tuple[TrustAnchor, ...]

    @classmethod
    def production(cls) -> Self:
        """Only the vendors' own roots."""
        return cls(nitro=(AWS_ROOT_G1,), tdx=(INTEL_SGX_ROOT,), gcp_tpm=(GCP_EK_AK_ROOT,))

    def with_extra(self, pem: bytes, *, signer: Signer | None = None) -> Self:
        """Return these anchors and the root certificates in `pem`, which count as simulated.

        Without `signer` each root serves every signer that its key suits: P-384 Nitro, P-256 TDX and TPM, RSA
        TPM. With it, it serves that one alone. Raises `ConfigError`: `trust.anchor.malformed` when the text
        holds no readable certificate, or one whose key does not suit; `trust.anchor.not_ca` for one that may
        not sign certificates.
        """
        # Loads the ssh key formats too, a tenth of a cold start that seldom has an extra root.
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        try:
            ders = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(pem)]
        except (ValueError, x509.InvalidVersion) as error:
            raise ConfigError(
                "trust.anchor.malformed", "trust anchor is not a pem of root certificates"
            ) from error
        anchors = self
        for der in ders:
            anchors = anchors._with_root(der, signer)
        return anchors

    def _with_root(self, der: bytes, signer: Signer | None) -> Self:
        digest = hashlib.sha256(der).digest()
        anchor, suits = _read_root(der, digest)
        if signer is not None and signer not in suits:
            raise ConfigError(
                "trust.anchor.malformed",
                f"trust anchor {anchor.name} has a key for {' and '.join(suits)}, not for {signer}",
            )
        added: dict[str, tuple[TrustAnchor, ...]] = {}
        for name in suits if signer is None else (signer,):
            present: tuple[TrustAnchor, ...] = getattr(self, name)
            if digest not in {known.sha256 for known in present}:
                added[name] = (*present, anchor)
        return msgspec.structs.replace(self, **added)


def _read_root(der: bytes, digest: bytes) -> tuple[TrustAnchor, tuple[Signer, ...]]:
    """Return the anchor that a root certificate makes, and the signers that its key suits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 - as above

    name = f"external-{digest[:8].hex()}"
    try:
        root = x509.load_der_x509_certificate(der)
        key = root.public_key()
        suits = _suits(key, der)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        may_sign = (
            constraints.ca and root.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        )
        anchor = TrustAnchor(
            name=name,
            subject=root.subject.public_bytes(),
            spki=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            not_before=int(root.not_valid_before_utc.timestamp()),
            not_after=int(root.not_valid_after_utc.timestamp()),
            sha256=digest,
            production=False,
            der=der,
        )
    except x509.ExtensionNotFound as error:
        raise ConfigError(
            "trust.anchor.not_ca", f"trust anchor {name} does not say that it may sign certificates"
        ) from error
    except _UNREADABLE as error:
        raise ConfigError("trust.anchor.malformed", f"trust anchor {name} cannot be read: {error}") from error
    if not may_sign:
        raise ConfigError(
            "trust.anchor.not_ca", f"trust anchor {name} is not a certificate authority's certificate"
        )
    if not suits:
        raise ConfigError(
            "trust.anchor.malformed",
            f"trust anchor {name} has a key that no platform uses, expected p-384, p-256 or rsa",
        )
    return anchor, suits


def _suits(key: object, der: bytes) -> tuple[Signer, ...]:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return ("gcp_tpm",)
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, ec.SECP384R1):
            # Nitro chains are read by the strict parser: a root that it refuses could never be matched.
            Certificate.parse(der).key()
            return ("nitro",)
        if isinstance(key.curve, ec.SECP256R1):
            return ("tdx", "gcp_tpm")
    return ()
