"""Trust anchors for Nitro documents: who may sign, as explicit arguments (spec attestation section 4.4).

An anchor is a name, a key and a validity, not a certificate: what a document carries as its first certificate
is never compared with it and never trusted.
"""

import hashlib
from typing import Self

import msgspec
from cryptography import x509

from shared.attestation.certificate import Certificate
from shared.errors import ConfigError, InvalidEvidence


class TrustAnchor(msgspec.Struct, frozen=True):
    """One root. `subject` and `spki` are DER, times unix seconds, `sha256` the root certificate's digest.

    Evidence under an anchor that is not `production` is simulated, and everything made from it says so.
    """

    name: str
    subject: bytes
    spki: bytes
    not_before: int
    not_after: int
    sha256: bytes
    production: bool


# CN=aws.nitro-enclaves,OU=AWS,O=Amazon,C=US; P-384; 2019-10-28 to 2049-10-28.
AWS_ROOT_G1 = TrustAnchor(
    name="aws-nitro-enclaves-root-g1",
    subject=bytes.fromhex(
        "3049310b3009060355040613025553310f300d060355040a0c06416d617a6f6e310c300a060355040b0c03415753311b3019"
        "06035504030c126177732e6e6974726f2d656e636c61766573"
    ),
    spki=bytes.fromhex(
        "3076301006072a8648ce3d020106052b8104002203620004fc0254eba608c1f36870e29ada90be46383292736e894bfff6"
        "72d989444b5051e534a4b1f6dbe3c0bc581a32b7b176070ede12d69a3fea211b66e752cf7dd1dd095f6f1370f4170843d9"
        "dc100121e4cf63012809664487c9796284304dc53ff4"
    ),
    not_before=1572269285,
    not_after=2519044085,
    sha256=bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"),
    production=True,
)


class NitroAnchors(msgspec.Struct, frozen=True):
    """The roots that one verifier accepts; at least one."""

    anchors: tuple[TrustAnchor, ...]

    @classmethod
    def production(cls) -> Self:
        """Only AWS's own root."""
        return cls((AWS_ROOT_G1,))

    def with_extra(self, pem: bytes) -> Self:
        """Return these anchors and the root certificates in `pem`, which count as simulated.

        Raises `ConfigError`: `trust.anchor.malformed` when the text holds no readable P-384 certificate,
        `trust.anchor.not_ca` for one that may not sign certificates.
        """
        # Loads the ssh key formats too, a tenth of a cold start that seldom has an extra root.
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        try:
            found = [
                Certificate.parse(c.public_bytes(Encoding.DER)) for c in x509.load_pem_x509_certificates(pem)
            ]
            extra = tuple(_extra_anchor(certificate) for certificate in found)
        except (ValueError, InvalidEvidence) as error:
            raise ConfigError(
                "trust.anchor.malformed",
                "trust anchor is not a pem of p-384 root certificates signed with sha-384",
            ) from error
        known = {anchor.sha256 for anchor in self.anchors}
        return type(self)(self.anchors + tuple(anchor for anchor in extra if anchor.sha256 not in known))


def _extra_anchor(certificate: Certificate) -> TrustAnchor:
    constraints = certificate.constraints()
    certificate.key()
    if not constraints.ca or not constraints.key_cert_sign:
        raise ConfigError(
            "trust.anchor.not_ca",
            f"trust anchor {certificate.name!r} is not a certificate authority's certificate",
        )
    digest = hashlib.sha256(certificate.der).digest()
    return TrustAnchor(
        name=f"external-{digest[:8].hex()}",
        subject=certificate.subject,
        spki=certificate.spki,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        sha256=digest,
        production=False,
    )
