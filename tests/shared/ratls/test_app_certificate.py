"""An app's chain: upstream's shapes, extensions wrapped twice, and nothing that was not asked for."""

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from shared.attestation.identity import AppInfo
from shared.attestation.messagepack import decode_strict
from shared.errors import InvalidEvidence
from shared.keys.app_keys import RootKeys, app_ca_scalar
from shared.keys.kdf import p256_key
from shared.ratls.app_certificate import Stamps, app_certificate, validity
from shared.ratls.app_info import encode_app_info
from shared.ratls.certificates import (
    BACKDATE,
    CA_LIFETIME,
    ROOT_CA_NAME,
    app_ca_certificate,
    self_signed_ca,
    spki_der,
)
from shared.ratls.csr import CsrConfig
from shared.ratls.extensions import APP_ID, APP_INFO, ATTESTATION, USAGE, read_extension
from tests.shared.refusal import refuses

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
NOW = 1_900_000_000
DAY = 86_400
ID = bytes.fromhex(VECTORS["inputs"]["app_id"])
ROOTS = RootKeys(
    ca_scalar=bytes.fromhex(VECTORS["inputs"]["root_ca_p256_scalar"]),
    k256=bytes.fromhex(VECTORS["inputs"]["root_k256_scalar"]),
)
ROOT_KEY = p256_key(ROOTS.ca_scalar)
ROOT = self_signed_ca(ROOT_KEY, ROOT_CA_NAME, 1, NOW - DAY, NOW - DAY + CA_LIFETIME)
APP_KEY = p256_key(app_ca_scalar(ROOTS, ID))
APP_CA = app_ca_certificate(APP_KEY, app_id=ID, issuer=(ROOT, ROOT_KEY))
KEY = derive_private_key(5, SECP256R1())
INFO = AppInfo(
    app_id=ID,
    compose_hash=bytes([1]) * 32,
    instance_id=b"",
    device_id=bytes([2]) * 32,
    mr_system=bytes([3]) * 32,
    mr_aggregated=bytes([4]) * 32,
    os_image_hash=bytes([5]) * 32,
    key_provider_info=b"",
    init_script_hashes=(bytes([6]) * 32,),
)
CONFIG = CsrConfig(subject="app.example.com", org_name="Example")
TIMES = (NOW - BACKDATE, NOW + DAY)


def leaf(config: CsrConfig = CONFIG, **stamps: bytes) -> x509.Certificate:
    return app_certificate(
        KEY.public_key(), config, Stamps(app_id=ID, **stamps), issuer=(APP_CA, APP_KEY), times=TIMES
    )


def test_the_app_ca_is_the_one_of_the_vectors() -> None:
    expected = bytes.fromhex(VECTORS["app_ca"]["derived_p256_scalar"])
    assert APP_CA.public_key() == p256_key(expected).public_key()


def test_the_app_ca_has_upstreams_shape() -> None:
    assert APP_CA.issuer == ROOT.subject
    assert APP_CA.subject.rfc4514_string() == "CN=Dstack App CA,O=Dstack"
    APP_CA.verify_directly_issued_by(ROOT)
    found = {extension.oid: extension for extension in APP_CA.extensions}
    constraints = found[ExtensionOID.BASIC_CONSTRAINTS]
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(True, 0))
    assert found[ExtensionOID.KEY_USAGE].value.key_cert_sign
    assert read_extension(APP_CA, APP_ID) == ID
    assert read_extension(APP_CA, USAGE) == b"app:ca"
    assert ExtensionOID.SUBJECT_ALTERNATIVE_NAME not in found
    assert ExtensionOID.EXTENDED_KEY_USAGE not in found


def test_extensions_are_wrapped_twice() -> None:
    for certificate, usage in ((APP_CA, b"\x04\x06app:ca"), (leaf(), b"\x04\x0aapp:custom")):
        assert certificate.extensions.get_extension_for_oid(USAGE).value.value == usage
        extension = certificate.extensions.get_extension_for_oid(APP_ID)
        assert (extension.critical, extension.value.value) == (False, b"\x04\x14" + ID)


def test_the_app_ca_is_valid_as_long_as_the_root() -> None:
    assert APP_CA.not_valid_before_utc == ROOT.not_valid_before_utc
    assert APP_CA.not_valid_after_utc == ROOT.not_valid_after_utc


def test_a_bare_leaf_has_what_every_leaf_has_and_no_more() -> None:
    certificate = leaf()
    certificate.verify_directly_issued_by(APP_CA)
    assert certificate.subject.rfc4514_string() == "CN=app.example.com,O=Example"
    assert spki_der(certificate.public_key()) == spki_der(KEY.public_key())
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + DAY, tz=UTC)
    assert {extension.oid for extension in certificate.extensions} == {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.KEY_USAGE,
        APP_ID,
        USAGE,
    }


def test_a_full_leaf_has_what_was_asked_for() -> None:
    config = msgspec.structs.replace(
        CONFIG,
        subject_alt_names=("app.example.com", "10.0.0.1", "::1"),
        usage_server_auth=True,
        usage_client_auth=True,
    )
    certificate = leaf(config, app_info=encode_app_info(INFO), attestation=b"\0evidence")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not names.critical
    assert names.value.get_values_for_type(x509.DNSName) == ["app.example.com"]
    addresses = names.value.get_values_for_type(x509.IPAddress)
    assert addresses == [ip_address("10.0.0.1"), ip_address("::1")]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert read_extension(certificate, ATTESTATION) == b"\0evidence"
    assert read_extension(certificate, APP_INFO) == encode_app_info(INFO)


def test_n52_server_authentication_is_given_only_when_asked_for() -> None:
    certificate = leaf(msgspec.structs.replace(CONFIG, usage_client_auth=True))
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_leaf_without_a_subject_has_critical_names() -> None:
    certificate = leaf(CsrConfig(subject="", subject_alt_names=("app.example.com",)))
    assert list(certificate.subject) == []
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_app_info_is_an_array_in_upstreams_order() -> None:
    encoded = encode_app_info(INFO)
    assert encoded[:3] == b"\x99\xc4\x14"
    assert encoded.endswith(b"\xc4\x00" + b"\x91\xc4\x20" + bytes([6]) * 32)
    assert decode_strict(encoded) == [
        *(ID, bytes([1]) * 32, b"", bytes([2]) * 32, bytes([3]) * 32, bytes([4]) * 32, bytes([5]) * 32, b""),
        [bytes([6]) * 32],
    ]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((None, None), (NOW - BACKDATE, NOW + DAY)),
        ((0, (1 << 64) - 1), (NOW - BACKDATE, NOW + DAY)),
        ((NOW + 10, NOW + 20), (NOW + 10, NOW + 20)),
        ((None, NOW + 1), (NOW - BACKDATE, NOW + 1)),
    ],
)
def test_validity_is_what_was_asked_for_within_the_policy(
    asked: tuple[int | None, int | None], given: tuple[int, int]
) -> None:
    config = msgspec.structs.replace(CONFIG, not_before=asked[0], not_after=asked[1])
    assert validity(config, now=NOW, lifetime=DAY, issuer=APP_CA) == given


@pytest.mark.parametrize(
    "asked", [(None, NOW), (None, 0), (NOW + 2 * DAY, None), (NOW + 20, NOW + 20), ((1 << 64) - 1, None)]
)
def test_refuses_a_validity_of_which_nothing_is_left(asked: tuple[int | None, int | None]) -> None:
    config = msgspec.structs.replace(CONFIG, not_before=asked[0], not_after=asked[1])
    with refuses("csr.validity", InvalidEvidence):
        validity(config, now=NOW, lifetime=DAY, issuer=APP_CA)


def test_a_leaf_ends_with_its_issuer() -> None:
    end = int(APP_CA.not_valid_after_utc.timestamp())
    assert validity(CONFIG, now=NOW, lifetime=2 * CA_LIFETIME, issuer=APP_CA)[1] == end
    with refuses("csr.validity"):
        validity(CONFIG, now=end, lifetime=DAY, issuer=APP_CA)
