import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidEvidence
from shared.ratls import extensions
from shared.ratls.certificates import client_certificate

NOW = 1_800_000_000
KEY = generate_private_key(SECP256R1())


def test_oids_are_those_of_the_arc() -> None:
    assert extensions.TDX_QUOTE.dotted_string == "1.3.6.1.4.1.62397.1.1"
    assert extensions.ATTESTATION.dotted_string == "1.3.6.1.4.1.62397.1.8"


def test_usage_is_wrapped_twice() -> None:
    assert extensions.usage_extension("kms:rpc").value.hex() == "04076b6d733a727063"


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_attestation_round_trips(envelope: bytes) -> None:
    certificate = client_certificate(KEY, attestation=envelope, issuer=None, now=NOW)
    assert extensions.read_extension(certificate, extensions.ATTESTATION) == envelope


def test_an_absent_extension_reads_as_none() -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    assert extensions.read_extension(certificate, extensions.USAGE) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"kms:rpc",
        b"\x04\x07kms:rp",  # short
        b"\x04\x07kms:rpc\0",  # trailing
        b"\x04\x81\x07kms:rpc",  # length not minimal
        b"\x24\x09\x04\x07kms:rpc",  # constructed
        b"\x04\x80\x04\x07kms:rpc\0\0",  # indefinite
        b"\x0c\x07kms:rpc",  # UTF8String
    ],
)
def test_n01_refuses_values_that_are_not_one_octet_string(value: bytes) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_extension(_with(extensions.ATTESTATION, value), extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.encoding"


def test_n02_refuses_an_extension_that_occurs_twice() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_extension(duplicated(), extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.duplicate"


def test_refuses_a_standard_extension_that_does_not_parse() -> None:
    certificate = _with(x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\xff")
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_extension(certificate, extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.malformed"


@pytest.mark.parametrize("oid", [extensions.TDX_QUOTE, extensions.EVENT_LOG])
def test_refuses_the_legacy_extensions(oid: x509.ObjectIdentifier) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_attestation(_with(oid, b"\x04\x01q").extensions)
    assert caught.value.code == "ratls.extension.legacy"


def test_refuses_a_usage_that_is_not_utf8() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_usage(_with(extensions.USAGE, b"\x04\x01\xff").extensions)
    assert caught.value.code == "ratls.extension.encoding"


def test_reading_a_standard_extension_as_ours_is_a_mistake_of_the_caller() -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    with pytest.raises(TypeError):
        extensions.read_extension(certificate, x509.OID_KEY_USAGE)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_reading_raises_nothing_but_our_errors(value: bytes) -> None:
    try:
        content = extensions.read_extension(_with(extensions.ATTESTATION, value), extensions.ATTESTATION)
    except InvalidEvidence:
        return
    assert content is not None
    assert value.endswith(content)


def duplicated() -> x509.Certificate:
    # The builder refuses duplicates: give two extensions of equal shape, then rename one.
    key = generate_private_key(SECP256R1())
    certificate = (
        _builder()
        .public_key(key.public_key())
        .add_extension(extensions.attestation_extension(b"first"), critical=False)
        .add_extension(x509.UnrecognizedExtension(extensions.USAGE, b"\x04\x06second"), critical=False)
        .sign(key, SHA256())
    )
    der = certificate.public_bytes(Encoding.DER)
    arc = bytes.fromhex("060a2b0601040183e73d01")
    assert der.count(arc + b"\x04") == 1
    return x509.load_der_x509_certificate(der.replace(arc + b"\x04", arc + b"\x08"))


def _with(oid: x509.ObjectIdentifier, value: bytes) -> x509.Certificate:
    builder = _builder().public_key(KEY.public_key())
    return builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False).sign(KEY, SHA256())


def _builder() -> x509.CertificateBuilder:
    certificate = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    return (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .serial_number(1)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
