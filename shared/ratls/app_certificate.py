"""The certificate of one key of an app, under the app's CA (spec kms section 4.2)."""

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import InvalidEvidence
from shared.ratls.certificates import (
    BACKDATE,
    Issuer,
    authority_identifier,
    certificate_builder,
    general_name,
    key_usage,
)
from shared.ratls.csr import CsrConfig
from shared.ratls.extensions import (
    USAGE_APP,
    app_id_extension,
    app_info_extension,
    attestation_extension,
    usage_extension,
)


class Stamps(msgspec.Struct, frozen=True, kw_only=True):
    """What the issuer vouches for. `app_info` (encoded) and `attestation` are None where not asked for.

    `app_id` is None in a guest's own CA: only a KMS can vouch for it.
    """

    app_id: bytes | None
    app_info: bytes | None = None
    attestation: bytes | None = None


def validity(config: CsrConfig, *, now: int, lifetime: int, issuer: x509.Certificate) -> tuple[int, int]:
    """Return the first and last second, as asked for within what is allowed.

    A certificate starts `BACKDATE` before `now` at the earliest, and ends `lifetime` after it at the latest,
    and with its issuer. Raises `InvalidEvidence("csr.validity")` where nothing is left of what was asked.
    """
    earliest, latest = now - BACKDATE, min(now + lifetime, int(issuer.not_valid_after_utc.timestamp()))
    not_before = earliest if config.not_before is None else max(config.not_before, earliest)
    not_after = latest if config.not_after is None else min(config.not_after, latest)
    if not_after <= max(not_before, now):
        raise InvalidEvidence(
            "csr.validity",
            f"the certificate would be valid from {not_before} to {not_after}, which ends before it begins, "
            f"or before now ({now})",
        )
    return not_before, not_after


def app_certificate(
    key: EllipticCurvePublicKey,
    config: CsrConfig,
    stamps: Stamps,
    *,
    issuer: Issuer,
    times: tuple[int, int],
) -> x509.Certificate:
    """Return the end-entity certificate. The names in `config` must have been judged before.

    Without a subject the certificate has an empty name, and its alternative names, if any, are critical
    (RFC 5280 section 4.2.1.6).
    """
    subject = _subject(config)
    builder = certificate_builder(
        key, subject=subject, issuer=issuer[0].subject, not_before=times[0], not_after=times[1]
    )
    builder = builder.add_extension(authority_identifier(issuer), critical=False)
    if config.subject_alt_names:
        names = x509.SubjectAlternativeName(map(general_name, config.subject_alt_names))
        builder = builder.add_extension(names, critical=not list(subject))
    builder = builder.add_extension(key_usage(ca=False), critical=True)
    asked = {
        ExtendedKeyUsageOID.SERVER_AUTH: config.usage_server_auth,
        ExtendedKeyUsageOID.CLIENT_AUTH: config.usage_client_auth,
    }
    if usages := [usage for usage, wanted in asked.items() if wanted]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if stamps.app_id is not None:
        builder = builder.add_extension(app_id_extension(stamps.app_id), critical=False)
    builder = builder.add_extension(usage_extension(USAGE_APP), critical=False)
    if stamps.app_info is not None:
        builder = builder.add_extension(app_info_extension(stamps.app_info), critical=False)
    if stamps.attestation is not None:
        builder = builder.add_extension(attestation_extension(stamps.attestation), critical=False)
    return builder.sign(issuer[1], SHA256())


def _subject(config: CsrConfig) -> x509.Name:
    named = ((NameOID.ORGANIZATION_NAME, config.org_name), (NameOID.COMMON_NAME, config.subject))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in named if value])
