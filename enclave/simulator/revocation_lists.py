"""Revocation lists of simulated authorities, made fresh at any time."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

LIFETIME = timedelta(days=7)


def sign_list(
    issuer: x509.Name,
    key: PrivateKey,
    *,
    now: int,
    revoked: Iterable[int] = (),
    lifetime: timedelta = LIFETIME,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """Return a list (DER) that starts at `now` (unix seconds) and names these serial numbers.

    `extensions` are added with their criticality, after the list's own number.
    """
    start = datetime.fromtimestamp(now, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(start)
        .next_update(start + lifetime)
        .add_extension(x509.CRLNumber(max(now, 0)), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
        builder = builder.add_revoked_certificate(entry.build())
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256
    return builder.sign(key, SHA384() if wide else SHA256()).public_bytes(Encoding.DER)
