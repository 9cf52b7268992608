"""The certificate of an app as its peers see it: under its app's CA, or vouched for by its evidence alone.

A KMS gives each app a CA of its own (spec kms section 4.2), and gives a certificate under it only to a guest
whose evidence and policy allow it: leaf, app CA, root. A guest without a KMS, or one that does not wait for
it, issues its own certificate. As in `shared.ratls.peer`, the envelope in the certificate is still to be
verified by the caller, over `ratls_report_data` of the leaf.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.errors import InvalidEvidence
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import (
    APP_ID,
    USAGE_APP,
    USAGE_APP_CA,
    USAGE_KMS_RPC,
    read_attestation,
    read_extensions,
    read_usage,
    unwrap,
)
from shared.ratls.leaf import (
    Leaf,
    check_critical,
    check_extended_usage,
    check_issuer,
    check_validity,
    find_extension,
    p256_key,
    parse_certificate,
    pinned_root,
    validity_of,
    verify_p256,
)

APP_ID_BYTES: Final = 20

MAX_CHAIN: Final = 3
"""Leaf, app CA and root: whatever a peer sends besides is not looked at, and therefore refused."""

SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH


class AppCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What an app's certificate says. `app_id` (20 bytes) is the KMS's word, empty without a pinned root.

    `envelope` is None where there is no evidence. `not_before` is in unix seconds, `key` SPKI DER.
    """

    key: bytes
    not_before: int
    envelope: bytes | None
    app_id: bytes = b""


def check_app_chain(
    chain: Sequence[bytes], *, root_ca_pem: bytes, now: int, role: x509.ObjectIdentifier | None
) -> AppCertificate:
    """Return what a certificate says that a KMS of this root issued to an app, after these checks.

    1. the pinned root is one P-256 CA certificate, valid at `now`;
    2. there are a leaf and an app CA (DER), and the third, where there is one, is the pinned root;
    3. the app CA was issued by that root, is valid, a CA, of usage `app:ca`, and names one app;
    4. the leaf parses exactly, is v3, on P-256, for an end entity, valid at `now`, and was issued by that CA;
    5. its usage is `app:custom` and its app id the CA's;
    6. extended key usage, when present, includes `role`; None asks nothing of it.

    A leaf that the root itself issued is a KMS's, never an app's. Raises `InvalidEvidence`: `ratls.chain`,
    `ratls.usage`, `ratls.app_id` and other `ratls.*`; `ConfigError("ratls.root.*")` for an unusable pin.
    """
    root = pinned_root(root_ca_pem)
    check_validity(root, now, "ratls.root")
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise InvalidEvidence(
            "ratls.chain", f"there are {len(chain)} certificates, expected a leaf, its app's ca and the root"
        )
    if len(chain) == MAX_CHAIN and chain[2] != root.public_bytes(Encoding.DER):
        raise InvalidEvidence("ratls.chain", "the chain ends in a root other than the pinned one")
    app_ca = _app_ca(chain[1], root, now)
    app_id = _app_id(read_extensions(app_ca), "the app's ca")
    leaf = _leaf(chain[0], now, role)
    check_issuer(leaf.certificate, app_ca)
    verify_p256(p256_key(app_ca), leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    _check_usage(leaf.extensions, USAGE_APP, "the certificate")
    if _app_id(leaf.extensions, "the certificate") != app_id:
        raise InvalidEvidence(
            "ratls.app_id", f"the certificate names another app than its ca, {app_id.hex()}"
        )
    return _said(leaf, app_id)


def check_self_issued(
    chain: Sequence[bytes], *, now: int, role: x509.ObjectIdentifier | None
) -> AppCertificate:
    """Return what a certificate says for which only its evidence can vouch, after these checks.

    It parses exactly, is v3, on P-256, for an end entity, valid at `now`, fit for `role`, and does not call
    itself a KMS's. Where it was issued by itself that signature holds; another issuer, a guest's own CA, is
    nobody's word and is not looked at. Raises `InvalidEvidence("ratls.*")`.
    """
    if not chain:
        raise InvalidEvidence("ratls.chain", "there is no certificate")
    leaf = _leaf(chain[0], now, role)
    if read_usage(leaf.extensions) == USAGE_KMS_RPC:
        raise InvalidEvidence("ratls.usage", f"certificate usage is {USAGE_KMS_RPC!r}, expected an app's")
    if leaf.certificate.issuer == leaf.certificate.subject:
        verify_p256(leaf.key, leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    return _said(leaf, b"")


def _said(leaf: Leaf, app_id: bytes) -> AppCertificate:
    return AppCertificate(
        key=spki_der(leaf.key),
        not_before=validity_of(leaf.certificate)[0],
        envelope=read_attestation(leaf.extensions),
        app_id=app_id,
    )


def _leaf(der: bytes, now: int, role: x509.ObjectIdentifier | None) -> Leaf:
    leaf = Leaf(der, now)
    if role is not None:
        check_extended_usage(leaf.extensions, role)
    return leaf


def _app_ca(der: bytes, root: x509.Certificate, now: int) -> x509.Certificate:
    app_ca = parse_certificate(der)
    check_issuer(app_ca, root)
    verify_p256(p256_key(root), app_ca.signature, app_ca.tbs_certificate_bytes)
    check_validity(app_ca, now, "ratls.certificate")
    extensions = read_extensions(app_ca)
    check_critical(extensions)
    constraints = find_extension(extensions, x509.BasicConstraints)
    usage = find_extension(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise InvalidEvidence("ratls.chain", "the app's ca may not sign certificates")
    _check_usage(extensions, USAGE_APP_CA, "the app's ca")
    return app_ca


def _check_usage(extensions: x509.Extensions, wanted: str, what: str) -> None:
    usage = read_usage(extensions)
    if usage != wanted:
        raise InvalidEvidence("ratls.usage", f"usage of {what} is {usage!r}, expected {wanted!r}")


def _app_id(extensions: x509.Extensions, what: str) -> bytes:
    app_id = unwrap(extensions, APP_ID)
    if app_id is None or len(app_id) != APP_ID_BYTES:
        raise InvalidEvidence("ratls.app_id", f"{what} does not name an app by {APP_ID_BYTES} bytes")
    return app_id
