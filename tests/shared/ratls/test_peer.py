"""Decisions on the certificates of both sides, each refusal by its code."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha512
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, DstackError, InvalidEvidence
from shared.ratls import extensions, peer
from shared.ratls.certificates import (
    CLIENT_NAME,
    ROOT_CA_NAME,
    TEMP_CA_NAME,
    Issuer,
    client_certificate,
    rpc_certificate,
    self_signed_ca,
    spki_der,
)

NOW = 1_800_000_000
DAY = 86_400
HOST = "kms.example.com"
ENVELOPE = b"\0envelope"

KEY = ec.derive_private_key(1, ec.SECP256R1())
TEMP_KEY = ec.derive_private_key(2, ec.SECP256R1())
TEMP_CA = self_signed_ca(TEMP_KEY, TEMP_CA_NAME, 0, NOW - DAY, NOW + 10 * DAY)
TEMP_DER = TEMP_CA.public_bytes(Encoding.DER)
ROOT_KEY = ec.derive_private_key(3, ec.SECP256R1())
ROOT = self_signed_ca(ROOT_KEY, ROOT_CA_NAME, 1, NOW - DAY, NOW + 10 * DAY)
ROOT_PEM = ROOT.public_bytes(Encoding.PEM)

CLIENT = client_certificate(KEY, attestation=ENVELOPE, issuer=(TEMP_CA, TEMP_KEY), now=NOW).public_bytes(
    Encoding.DER
)
SELF_ISSUED = client_certificate(KEY, attestation=ENVELOPE, issuer=None, now=NOW).public_bytes(Encoding.DER)
KMS = rpc_certificate(KEY, domain=HOST, issuer=(ROOT, ROOT_KEY), attestation=ENVELOPE, now=NOW).public_bytes(
    Encoding.DER
)

KEY_USAGE = (x509.OID_KEY_USAGE, bytes.fromhex("03020780"), True)


def check_client(der: bytes, now: int = NOW) -> bytes | None:
    shown = peer.check_client_certificate(der, temp_ca_der=TEMP_DER, now=now)
    assert (shown.not_before, shown.not_after) == peer.validity(der)
    return shown.envelope


def check_kms(der: bytes, *, root: bytes = ROOT_PEM, host: str = HOST, now: int = NOW) -> bytes:
    return peer.check_kms_certificate(der, root_ca_pem=root, hostname=host, now=now)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidEvidence) as caught:
        call()
    return caught.value.code


# ---- client certificates


def test_takes_a_client_issued_by_the_temp_ca() -> None:
    assert check_client(CLIENT) == ENVELOPE


def test_takes_a_self_issued_client() -> None:
    assert check_client(SELF_ISSUED) == ENVELOPE


@pytest.mark.parametrize("issuer", [(TEMP_CA, TEMP_KEY), None], ids=["temp-ca", "self-issued"])
def test_n50_a_client_without_evidence_has_none(issuer: Issuer | None) -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=issuer, now=NOW)
    assert check_client(certificate.public_bytes(Encoding.DER)) is None


def test_n50_evidence_is_bound_to_the_key_of_its_certificate() -> None:
    other = client_certificate(ROOT_KEY, attestation=ENVELOPE, issuer=None, now=NOW)
    assert check_client(other.public_bytes(Encoding.DER)) == ENVELOPE
    assert peer.ratls_report_data(other.public_bytes(Encoding.DER)) != peer.ratls_report_data(SELF_ISSUED)


def test_refuses_a_client_of_another_ca() -> None:
    certificate = client_certificate(KEY, attestation=ENVELOPE, issuer=(ROOT, ROOT_KEY), now=NOW)
    assert refusal(lambda: check_client(certificate.public_bytes(Encoding.DER))) == "ratls.issuer"


def test_refuses_a_client_of_a_ca_with_the_temp_cas_name() -> None:
    impostor = self_signed_ca(ROOT_KEY, TEMP_CA_NAME, 0, NOW, NOW + DAY)
    certificate = client_certificate(KEY, attestation=ENVELOPE, issuer=(impostor, ROOT_KEY), now=NOW)
    assert refusal(lambda: check_client(certificate.public_bytes(Encoding.DER))) == "ratls.signature"


def test_refuses_a_self_issued_client_that_another_key_signed() -> None:
    der = build(subject=CLIENT_NAME, issuer=CLIENT_NAME, signer=ROOT_KEY)
    assert refusal(lambda: check_client(der)) == "ratls.signature"


def test_refuses_a_self_issued_client_with_a_damaged_signature() -> None:
    damaged = bytearray(SELF_ISSUED)
    damaged[-1] ^= 1
    assert refusal(lambda: check_client(bytes(damaged))) == "ratls.signature"


def test_refuses_the_temp_ca_itself_as_a_client() -> None:
    assert refusal(lambda: check_client(TEMP_DER)) == "ratls.leaf.is_ca"


@pytest.mark.parametrize(("now", "code"), [(NOW - 301, "not_yet_valid"), (NOW + DAY + 1, "expired")])
@pytest.mark.parametrize("der", [CLIENT, SELF_ISSUED], ids=["temp-ca", "self-issued"])
def test_refuses_a_client_outside_its_validity(der: bytes, now: int, code: str) -> None:
    assert refusal(lambda: check_client(der, now)) == f"ratls.certificate.{code}"


@pytest.mark.parametrize("now", [NOW - 300, NOW + DAY])
def test_takes_a_client_at_both_ends_of_its_validity(now: int) -> None:
    assert check_client(CLIENT, now) == ENVELOPE


def test_refuses_a_client_certificate_for_servers_alone() -> None:
    der = build(extra=[eku(ExtendedKeyUsageOID.SERVER_AUTH)])
    assert refusal(lambda: check_client(der)) == "ratls.extended_key_usage"


@pytest.mark.parametrize(
    "usage", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
)
def test_takes_a_client_certificate_for_clients(usage: x509.ObjectIdentifier) -> None:
    assert check_client(build(extra=[eku(usage)])) is None


# ---- the KMS's certificate


def test_takes_the_kms() -> None:
    assert check_kms(KMS) == ENVELOPE


@pytest.mark.parametrize("host", ["KMS.example.com", "kms.example.com."])
def test_host_names_compare_as_dns_does(host: str) -> None:
    assert check_kms(KMS, host=host) == ENVELOPE


def test_takes_a_kms_at_an_address() -> None:
    der = kms(domain="127.0.0.1")
    assert check_kms(der, host="127.0.0.1") == ENVELOPE
    assert refusal(lambda: check_kms(der, host="127.0.0.2")) == "ratls.hostname"


@pytest.mark.parametrize(
    "host", ["other.example.com", "example.com", "a.kms.example.com", "", "*.example.com"]
)
def test_refuses_a_kms_of_another_name(host: str) -> None:
    assert refusal(lambda: check_kms(KMS, host=host)) == "ratls.hostname"


def test_n52_refuses_a_wildcard_name() -> None:
    assert refusal(lambda: check_kms(kms(domain="*.example.com"))) == "ratls.hostname"


def test_refuses_a_kms_that_is_named_in_its_subject_alone() -> None:
    der = build(subject=HOST, issuer_ca=(ROOT, ROOT_KEY), extra=[usage("kms:rpc")])
    assert refusal(lambda: check_kms(der)) == "ratls.hostname"


@pytest.mark.parametrize("name", ["app:custom", "app:ca", "KMS:RPC", "kms:rpc\0", ""])
def test_n51_refuses_a_certificate_of_another_usage(name: str) -> None:
    der = build(issuer_ca=(ROOT, ROOT_KEY), extra=[san(HOST), usage(name), evidence()])
    assert refusal(lambda: check_kms(der)) == "ratls.usage"


def test_n51_refuses_a_certificate_without_a_usage() -> None:
    der = build(issuer_ca=(ROOT, ROOT_KEY), extra=[san(HOST), evidence()])
    assert refusal(lambda: check_kms(der)) == "ratls.usage"


def test_n51_refuses_a_leaf_under_an_app_ca() -> None:
    app_key = ec.generate_private_key(ec.SECP256R1())
    app_ca = self_signed_ca(app_key, "Dstack App CA", 0, NOW, NOW + DAY)
    der = build(issuer_ca=(app_ca, app_key), extra=[san(HOST), usage("kms:rpc"), evidence()])
    assert refusal(lambda: check_kms(der)) == "ratls.issuer"


def test_refuses_a_kms_without_an_attestation() -> None:
    assert refusal(lambda: check_kms(kms(attestation=None))) == "ratls.attestation.missing"


def test_refuses_a_kms_under_another_root() -> None:
    other = self_signed_ca(KEY, "Another Root", 1, NOW - DAY, NOW + DAY)
    assert refusal(lambda: check_kms(KMS, root=other.public_bytes(Encoding.PEM))) == "ratls.issuer"


def test_refuses_a_kms_under_a_root_of_the_same_name() -> None:
    other = self_signed_ca(KEY, ROOT_CA_NAME, 1, NOW - DAY, NOW + DAY)
    assert refusal(lambda: check_kms(KMS, root=other.public_bytes(Encoding.PEM))) == "ratls.signature"


def test_a_source_is_taken_under_any_root_and_name() -> None:
    other = (self_signed_ca(TEMP_KEY, "Another Root", 1, NOW - DAY, NOW + DAY), TEMP_KEY)
    for der in (KMS, build(issuer_ca=other, extra=[usage("kms:rpc"), evidence()])):
        assert peer.check_source_kms_certificate(der, now=NOW) == ENVELOPE


@pytest.mark.parametrize("name", ["app:custom", "KMS:RPC", ""])
def test_n51_refuses_a_source_of_another_usage(name: str) -> None:
    der = build(issuer_ca=(ROOT, ROOT_KEY), extra=[san(HOST), usage(name), evidence()])
    assert refusal(lambda: peer.check_source_kms_certificate(der, now=NOW)) == "ratls.usage"


def test_refuses_a_source_without_an_attestation_and_one_out_of_date() -> None:
    def check(der: bytes, now: int = NOW) -> None:
        peer.check_source_kms_certificate(der, now=now)

    assert refusal(lambda: check(kms(attestation=None))) == "ratls.attestation.missing"
    assert refusal(lambda: check(KMS, NOW + 30 * DAY)) == "ratls.certificate.expired"
    assert refusal(lambda: check(KMS[:-1])) == "ratls.certificate.malformed"


def test_the_issuer_is_known_by_its_signature() -> None:
    peer.check_issued_by(KMS, ROOT_KEY.public_key())
    assert refusal(lambda: peer.check_issued_by(KMS, TEMP_KEY.public_key())) == "ratls.signature"


def test_refuses_a_self_issued_kms() -> None:
    der = build(subject=HOST, issuer=HOST, signer=KEY, extra=[san(HOST), usage("kms:rpc"), evidence()])
    assert refusal(lambda: check_kms(der)) == "ratls.issuer"


@pytest.mark.parametrize(("now", "code"), [(NOW - 301, "not_yet_valid"), (NOW + DAY + 1, "expired")])
def test_refuses_a_kms_outside_its_validity(now: int, code: str) -> None:
    assert refusal(lambda: check_kms(KMS, now=now)) == f"ratls.certificate.{code}"


@pytest.mark.parametrize(("now", "code"), [(NOW - DAY - 1, "not_yet_valid"), (NOW + 10 * DAY + 1, "expired")])
def test_refuses_a_kms_when_its_root_is_outside_its_validity(now: int, code: str) -> None:
    assert refusal(lambda: check_kms(KMS, now=now)) == f"ratls.root.{code}"


def test_refuses_a_kms_certificate_for_clients_alone() -> None:
    der = build(issuer_ca=(ROOT, ROOT_KEY), extra=[eku(ExtendedKeyUsageOID.CLIENT_AUTH), san(HOST)])
    assert refusal(lambda: check_kms(der)) == "ratls.extended_key_usage"


def test_refuses_the_root_itself_as_the_kms() -> None:
    assert refusal(lambda: check_kms(ROOT.public_bytes(Encoding.DER))) == "ratls.leaf.is_ca"


@pytest.mark.parametrize(
    ("pem", "code"),
    [
        (b"", "ratls.root.malformed"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ratls.root.malformed"),
        (ROOT_PEM + ROOT_PEM, "ratls.root.count"),
        (
            client_certificate(KEY, attestation=None, issuer=None, now=NOW).public_bytes(Encoding.PEM),
            "ratls.root.not_ca",
        ),
    ],
)
def test_refuses_a_pin_that_is_not_one_root(pem: bytes, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_kms(KMS, root=pem)
    assert caught.value.code == code


def test_refuses_a_pin_on_another_curve() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = self_signed_ca(key, ROOT_CA_NAME, 1, NOW, NOW + DAY).public_bytes(Encoding.PEM)
    with pytest.raises(ConfigError) as caught:
        check_kms(KMS, root=pem)
    assert caught.value.code == "ratls.root.malformed"


# ---- what holds for both


@pytest.mark.parametrize("der", [b"", b"\x30\x00", CLIENT[:-1], CLIENT + b"\0", b"\0" + CLIENT])
def test_n01_refuses_bytes_that_are_not_one_certificate(der: bytes) -> None:
    assert refusal(lambda: check_client(der)) == "ratls.certificate.malformed"


def test_n03_refuses_an_oversize_certificate() -> None:
    assert refusal(lambda: check_client(bytes(100 * 1024 + 1))) == "ratls.certificate.size"


def test_refuses_trailing_bytes_inside_the_attestation_extension() -> None:
    der = build(extra=[(extensions.ATTESTATION, b"\x04\x01a\0", False)])
    assert refusal(lambda: check_client(der)) == "ratls.extension.encoding"


def test_refuses_an_extension_that_occurs_twice() -> None:
    first = (extensions.ATTESTATION, b"\x04\x05first", False)
    der = build(extra=[first, (extensions.USAGE, b"\x04\x06second", False)])
    arc = bytes.fromhex("060a2b0601040183e73d01")
    assert (
        refusal(lambda: check_client(der.replace(arc + b"\x04", arc + b"\x08")))
        == "ratls.extension.duplicate"
    )


def test_refuses_an_unknown_critical_extension() -> None:
    der = build(extra=[(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00", True)])
    assert refusal(lambda: check_client(der)) == "ratls.extension.critical"


def test_refuses_the_attestation_extension_as_critical() -> None:
    der = build(extra=[(extensions.ATTESTATION, b"\x04\x01a", True)])
    assert refusal(lambda: check_client(der)) == "ratls.extension.critical"


def test_refuses_a_leaf_with_ca_true() -> None:
    der = build(extra=[(x509.OID_BASIC_CONSTRAINTS, bytes.fromhex("30030101ff"), True)])
    assert refusal(lambda: check_client(der)) == "ratls.leaf.is_ca"


def test_takes_a_leaf_with_ca_false() -> None:
    assert check_client(build(extra=[(x509.OID_BASIC_CONSTRAINTS, b"\x30\x00", True)])) is None


@pytest.mark.parametrize("bits", ["03020284", "03020520"], ids=["certificate signing", "encipherment alone"])
def test_refuses_a_leaf_of_another_key_usage(bits: str) -> None:
    der = build(key_usage=(x509.OID_KEY_USAGE, bytes.fromhex(bits), True))
    assert refusal(lambda: check_client(der)) == "ratls.key_usage"


@pytest.mark.parametrize(
    "public",
    [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["p-384", "secp256k1", "rsa", "ed25519"],
)
def test_refuses_a_key_that_is_not_on_p256(public: CertificatePublicKeyTypes) -> None:
    assert refusal(lambda: check_client(build(public=public))) == "ratls.key"


def test_refuses_a_compressed_public_key() -> None:
    full = spki_der(KEY.public_key())
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    tbs = x509.load_der_x509_certificate(build()).tbs_certificate_bytes
    assert full in tbs
    assert refusal(lambda: check_client(resign(tbs.replace(full, compressed)))) == "ratls.key"


@pytest.mark.parametrize("algorithm", [SHA384(), SHA512()], ids=["sha384", "sha512"])
def test_refuses_another_signature_algorithm(algorithm: SHA384 | SHA512) -> None:
    assert refusal(lambda: check_client(build(algorithm=algorithm))) == "ratls.signature.algorithm"


def test_refuses_a_certificate_of_version_1() -> None:
    certificate = x509.load_der_x509_certificate(build(key_usage=None))
    tbs = certificate.tbs_certificate_bytes
    version_3 = bytes.fromhex("a003020102")
    assert version_3 in tbs
    assert refusal(lambda: check_client(resign(tbs.replace(version_3, b"")))) == "ratls.certificate.version"


@pytest.mark.parametrize("oid", [extensions.TDX_QUOTE, extensions.EVENT_LOG])
def test_refuses_legacy_evidence(oid: x509.ObjectIdentifier) -> None:
    assert (
        refusal(lambda: check_client(build(extra=[(oid, b"\x04\x01a", False)]))) == "ratls.extension.legacy"
    )


def test_the_attestation_is_preferred_to_legacy_evidence() -> None:
    der = build(extra=[(extensions.TDX_QUOTE, b"\x04\x01a", False), evidence()])
    assert check_client(der) == ENVELOPE


# ---- report data


def test_report_data_reproduces_the_vector() -> None:
    vectors = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
    scalar = int(vectors["inputs"]["root_ca_p256_scalar"], 16)
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    certificate = client_certificate(key, attestation=None, issuer=None, now=NOW)
    data = peer.ratls_report_data(certificate.public_bytes(Encoding.DER))
    assert data.hex() == vectors["ratls_report_data_for_root_spki"]


def test_report_data_covers_the_whole_key_info() -> None:
    assert peer.ratls_report_data(KMS) == sha512(b"ratls-cert:" + spki_der(KEY.public_key())).digest()


def test_the_certificates_that_upstream_shapes_are_readable(shared_data: Callable[[str], Path]) -> None:
    keys = json.loads(shared_data("kms/simulator-appkeys.json").read_text())
    assert refusal(lambda: check_kms(KMS, root=keys["ca_cert"].encode())) == "ratls.signature"


# ---- nothing but our errors


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_checks_raise_nothing_but_our_errors(der: bytes) -> None:
    assert_only_our_errors(der)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(deadline=None)
@given(st.sampled_from([CLIENT, SELF_ISSUED, KMS]), st.data())
def test_checks_of_damaged_certificates_raise_nothing_but_our_errors(der: bytes, data: st.DataObject) -> None:
    damaged = bytearray(der)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    assert_only_our_errors(bytes(damaged))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("der", [CLIENT, SELF_ISSUED, KMS], ids=["temp-ca", "self-issued", "kms"])
def test_no_flipped_bit_passes(der: bytes) -> None:
    check = check_kms if der is KMS else check_client
    for position in range(len(der)):
        for bit in range(8):
            damaged = bytearray(der)
            damaged[position] ^= 1 << bit
            with pytest.raises(InvalidEvidence):
                check(bytes(damaged))


def assert_only_our_errors(der: bytes) -> None:
    for check in (check_client, check_kms, peer.ratls_report_data):
        with contextlib.suppress(DstackError):
            check(der)


# ---- builders

_Extension = tuple[x509.ObjectIdentifier, bytes, bool]


def kms(*, domain: str = HOST, attestation: bytes | None = ENVELOPE) -> bytes:
    certificate = rpc_certificate(
        KEY, domain=domain, issuer=(ROOT, ROOT_KEY), attestation=attestation, now=NOW
    )
    return certificate.public_bytes(Encoding.DER)


def build(
    *,
    subject: str = CLIENT_NAME,
    issuer: str | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    issuer_ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] = (TEMP_CA, TEMP_KEY),
    public: CertificatePublicKeyTypes | None = None,
    key_usage: _Extension | None = KEY_USAGE,
    extra: list[_Extension] | None = None,
    algorithm: SHA256 | SHA384 | SHA512 | None = None,
) -> bytes:
    """Return a leaf with raw extensions: by default a client's, issued by the temp CA, without evidence."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer_ca[0].subject if issuer is None else _name(issuer))
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, tz=UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + DAY, tz=UTC))
        .public_key(public or KEY.public_key())
    )
    for oid, value, critical in [*([key_usage] if key_usage else []), *(extra or [])]:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=critical)
    return builder.sign(signer or issuer_ca[1], algorithm or SHA256()).public_bytes(Encoding.DER)


def resign(tbs: bytes) -> bytes:
    """Return a certificate of an edited body (its length is mended), signed by the temp CA."""
    header = 2 + (tbs[1] & 0x7F if tbs[1] & 0x80 else 0)
    tbs = _tlv(0x30, tbs[header:])
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = TEMP_KEY.sign(tbs, ec.ECDSA(SHA256()))
    return _tlv(0x30, tbs + algorithm + _tlv(0x03, b"\0" + signature))


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    head = (
        bytes([length])
        if length < 0x80
        else b"\x82" + length.to_bytes(2)
        if length > 0xFF
        else bytes([0x81, length])
    )
    return bytes([tag]) + head + content


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _raw(extension: x509.ExtensionType, *, critical: bool = False) -> _Extension:
    return extension.oid, extension.public_bytes(), critical


def eku(usage: x509.ObjectIdentifier) -> _Extension:
    return _raw(x509.ExtendedKeyUsage([usage]))


def san(host: str) -> _Extension:
    return _raw(x509.SubjectAlternativeName([x509.DNSName(host)]))


def usage(name: str) -> _Extension:
    extension = extensions.usage_extension(name)
    return extension.oid, extension.value, False


def evidence() -> _Extension:
    extension = extensions.attestation_extension(ENVELOPE)
    return extension.oid, extension.value, False


def test_refuses_a_certificate_dated_before_the_first_year() -> None:
    far = self_signed_ca(KEY, CLIENT_NAME, 0, NOW, 2_600_000_000)
    der = far.public_bytes(Encoding.DER)
    stamp = far.not_valid_after_utc.strftime("%Y%m%d%H%M%SZ").encode()
    assert stamp in der
    with pytest.raises(InvalidEvidence) as caught:
        peer.check_client_certificate(
            der.replace(stamp, b"00000101000000Z"), temp_ca_der=TEMP_CA.public_bytes(Encoding.DER), now=NOW
        )
    assert caught.value.code == "ratls.certificate.malformed"


def test_refuses_a_compressed_key_beside_a_copy_of_the_plain_one() -> None:
    """The plain spelling somewhere else in the certificate does not make up for the key's own."""
    plain = spki_der(KEY.public_key())
    certificate = client_certificate(KEY, attestation=plain, issuer=None, now=NOW)
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = _der(0x30, plain[2:23] + _der(0x03, b"\0" + point))
    tbs = certificate.tbs_certificate_bytes
    body = _der(0x30, tbs[4:].replace(plain, compressed, 1))
    signature = KEY.sign(body, ec.ECDSA(SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    forged = _der(0x30, body + algorithm + _der(0x03, b"\0" + signature))
    assert plain in forged
    with pytest.raises(InvalidEvidence) as caught:
        peer.check_client_certificate(forged, temp_ca_der=TEMP_CA.public_bytes(Encoding.DER), now=NOW)
    assert caught.value.code == "ratls.key"


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content
