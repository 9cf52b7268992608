import gzip
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.asn1 import encode_der
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.attestation.envelope import TdxQuote, decode_envelope, encode_v0
from shared.attestation.event_log_json import event_log_json
from shared.errors import InvalidEvidence
from shared.ratls import extensions
from shared.ratls.certificates import client_certificate
from tests.shared.attestation.forgery import refuses

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
        extensions.read_extension(_with((extensions.ATTESTATION, value)), extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.encoding"


def test_n02_refuses_an_extension_that_occurs_twice() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_extension(duplicated(), extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.duplicate"


def test_refuses_a_standard_extension_that_does_not_parse() -> None:
    certificate = _with((x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\xff"))
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_extension(certificate, extensions.ATTESTATION)
    assert caught.value.code == "ratls.extension.malformed"


ENVELOPE = (
    Path(__file__).parents[2] / "data" / "attestation" / "synthetic" / "envelopes" / "v0_tdx.bin"
).read_bytes()


def legacy_pair(change: Callable[[bytes], bytes] = lambda log: log) -> tuple[bytes, x509.Extensions]:
    """Return an envelope without config, and extensions that carry the same evidence in two parts."""
    attestation = decode_envelope(ENVELOPE)
    assert isinstance(attestation.quote, TdxQuote)
    log = change(event_log_json(attestation.quote.event_log).encode())
    parts = {extensions.TDX_QUOTE: attestation.quote.quote, extensions.EVENT_LOG: log}
    wrapped = [(oid, encode_der(content)) for oid, content in parts.items()]
    return encode_v0(msgspec.structs.replace(attestation, config="")), _with(*wrapped).extensions


def compressed(log: bytes) -> bytes:
    return b"ELGZv1" + gzip.compress(log, mtime=0)


@pytest.mark.parametrize("change", [bytes, compressed])
def test_the_legacy_pair_reads_as_the_envelope_it_stands_for(change: Callable[[bytes], bytes]) -> None:
    envelope, found = legacy_pair(change)
    assert extensions.read_attestation(found) == envelope


def test_an_event_of_version_2_in_a_legacy_pair_is_not_lost() -> None:
    _, found = legacy_pair(lambda log: log.replace(b"}]", b',"version":2}]'))
    envelope = extensions.read_attestation(found)
    assert envelope is not None
    assert [event.version for event in decode_envelope(envelope).runtime_events] == [1] * 7 + [2]


def test_a_certificate_without_evidence_reads_as_none() -> None:
    assert extensions.read_attestation(_with((extensions.USAGE, b"\x04\x01a")).extensions) is None


@pytest.mark.parametrize("oid", [extensions.TDX_QUOTE, extensions.EVENT_LOG])
def test_refuses_half_a_legacy_pair(oid: x509.ObjectIdentifier) -> None:
    with refuses("ratls.extension.legacy"):
        extensions.read_attestation(_with((oid, b"\x04\x01q")).extensions)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: b"[", "event_log.syntax"),
        (lambda _: b"ELGZv1text", "event_log.gzip"),
        (lambda log: compressed(log + b" " * 16384), "event_log.gzip.size"),
        (lambda _: compressed(bytes(10_000_000)), "event_log.gzip.size"),
    ],
)
def test_n04_refuses_a_legacy_event_log_that_is_not_one(change: Callable[[bytes], bytes], code: str) -> None:
    with refuses(code):
        extensions.read_attestation(legacy_pair(change)[1])


def test_n01_refuses_a_legacy_quote_that_is_not_one() -> None:
    pair = (extensions.TDX_QUOTE, encode_der(b"quote")), (extensions.EVENT_LOG, encode_der(b"[]"))
    with refuses("tdx.quote.size"):
        extensions.read_attestation(_with(*pair).extensions)


def test_refuses_a_usage_that_is_not_utf8() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        extensions.read_usage(_with((extensions.USAGE, b"\x04\x01\xff")).extensions)
    assert caught.value.code == "ratls.extension.encoding"


def test_reading_a_standard_extension_as_ours_is_a_mistake_of_the_caller() -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    with pytest.raises(TypeError):
        extensions.read_extension(certificate, x509.OID_KEY_USAGE)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_reading_raises_nothing_but_our_errors(value: bytes) -> None:
    try:
        content = extensions.read_extension(_with((extensions.ATTESTATION, value)), extensions.ATTESTATION)
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


def _with(*values: tuple[x509.ObjectIdentifier, bytes]) -> x509.Certificate:
    builder = _builder().public_key(KEY.public_key())
    for oid, value in values:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(KEY, SHA256())


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
