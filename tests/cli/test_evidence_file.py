"""Every form in which evidence travels, told apart by its bytes."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.asn1 import encode_der
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cli.evidence_file import MAX_INPUT, EvidenceFile, read_evidence
from shared.attestation.envelope import Attestation, TdxQuote, encode_envelope
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.event_log_json import event_log_json, getquote_log
from shared.attestation.report_data import report_data
from shared.attestation.stripped import strip
from shared.errors import ConfigError
from shared.ratls.certificates import client_certificate, spki_der
from shared.ratls.extensions import EVENT_LOG, TDX_QUOTE
from tests.shared.attestation.forgery import NOW, REPORT_DATA, Forge, refuses
from tests.shared.attestation.guest_forgery import LITE, GcpGuest, TdxGuest, TpmGuest

KEY = ec.generate_private_key(ec.SECP256R1())
BOUND = report_data("ratls-cert", spki_der(KEY.public_key()))


@pytest.fixture(scope="module")
def guests() -> dict[str, Attestation]:
    """One envelope of each platform."""
    nitro = read_evidence(Forge().envelope()).attestation
    assert nitro is not None
    return {
        "tdx": TdxGuest().attestation(),
        "gcp": GcpGuest().attestation(),
        "nitro-tpm": TpmGuest().attestation(),
        "nitro": nitro,
    }


def quote_of(attestation: Attestation) -> TdxQuote:
    assert isinstance(attestation.quote, TdxQuote)
    return attestation.quote


def getquote(attestation: Attestation, **changes: object) -> bytes:
    """The guest agent's answer, as its JSON mapping spells it."""
    quote = quote_of(attestation)
    return json.dumps(
        {
            "quote": quote.quote.hex(),
            "event_log": event_log_json(getquote_log(quote.event_log)),
            "report_data": attestation.report_data.hex(),
            "vm_config": attestation.config,
            "attestation": "",
            **changes,
        }
    ).encode()


def legacy_certificate(attestation: Attestation, **changes: bytes | None) -> x509.Certificate:
    """A very old RA-TLS certificate: raw quote and JSON log."""
    quote = quote_of(attestation)
    parts: dict[str, bytes | None] = {
        "quote": quote.quote,
        "log": event_log_json(getquote_log(quote.event_log)).encode(),
        **changes,
    }
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    plain = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
    )
    for oid, content in ((TDX_QUOTE, parts["quote"]), (EVENT_LOG, parts["log"])):
        if content is not None:
            extension = x509.UnrecognizedExtension(oid, encode_der(content))
            builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, SHA256())


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "hex": lambda data: data.hex().encode(),
    "upper case": lambda data: data.hex().upper().encode() + b"\n",
    "prefixed": lambda data: b"0x" + data.hex().encode(),
    "lines": lambda data: b"\r\n".join(data.hex()[i : i + 64].encode() for i in range(0, 2 * len(data), 64)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("platform", ["tdx", "gcp", "nitro", "nitro-tpm"])
def test_an_envelope_of_either_version_in_any_form(
    platform: str, form: str, guests: dict[str, Attestation]
) -> None:
    attestation = guests[platform]
    for envelope in (encode_envelope(attestation), encode_v1(attestation)):
        found = read_evidence(FORMS[form](envelope))
        assert found == EvidenceFile("envelope", attestation)


def test_the_stripped_form_is_an_envelope(guests: dict[str, Attestation]) -> None:
    stripped = strip(guests["tdx"])
    assert read_evidence(encode_envelope(stripped)).attestation == stripped


@pytest.mark.parametrize("form", FORMS)
def test_bare_hardware_evidence_in_any_form(form: str, guests: dict[str, Attestation]) -> None:
    quote = quote_of(guests["tdx"]).quote
    assert read_evidence(FORMS[form](quote)) == EvidenceFile("tdx-quote", bare=quote)
    document = Forge().document()
    assert read_evidence(FORMS[form](document)) == EvidenceFile("nitro-document", bare=document)
    tagged = b"\xd2" + document
    assert read_evidence(FORMS[form](tagged)) == EvidenceFile("nitro-document", bare=tagged)


@pytest.mark.parametrize("platform", ["tdx", "gcp", "nitro", "nitro-tpm"])
def test_a_request_or_an_agents_answer_with_an_envelope(
    platform: str, guests: dict[str, Attestation]
) -> None:
    text = encode_envelope(guests[platform]).hex()
    for request in (
        {"attestation": text},
        {"attestation": text, "quote": "00", "event_log": "x", "debug": True},
        {"attestation": text, "quote": "", "event_log": "", "report_data": "", "vm_config": ""},
    ):
        found = read_evidence(b"\n " + json.dumps(request).encode())
        assert found == EvidenceFile("request", guests[platform])


def test_a_request_with_a_quote_its_log_and_config(guests: dict[str, Attestation]) -> None:
    found = read_evidence(getquote(guests["tdx"]))
    assert found.kind == "request"
    assert found.attestation is not None
    assert (found.attestation.report_data, found.attestation.config) == (REPORT_DATA, LITE)
    assert found.attestation.runtime_events == guests["tdx"].runtime_events


def test_a_request_without_a_config_has_an_empty_one(guests: dict[str, Attestation]) -> None:
    found = read_evidence(getquote(guests["tdx"], vm_config=None))
    assert found.attestation is not None
    assert found.attestation.config == ""


def test_a_request_with_a_quote_alone_is_bare(guests: dict[str, Attestation]) -> None:
    quote = quote_of(guests["tdx"]).quote
    found = read_evidence(json.dumps({"quote": quote.hex()}).encode())
    assert found == EvidenceFile("tdx-quote", bare=quote)


@pytest.mark.parametrize(
    "request_",
    [
        b"{}",
        b"{",
        b'{"attestation":""}',
        b'{"attestation":7}',
        b'{"attestation":"zz"}',
        b'{"quote":"0"}',
        b'{"quote":"zz","event_log":"[]"}',
        b'{"event_log":"[]"}',
        b'{"attestation":"\xff"}',
        b'{"x":' + b"[" * 100_000,
    ],
)
def test_n05_a_request_without_evidence_is_refused(request_: bytes) -> None:
    with refuses("verify.file.request"):
        read_evidence(request_)


def test_a_request_whose_envelope_is_damaged_is_refused_for_that() -> None:
    with refuses("scale.truncated"):
        read_evidence(b'{"attestation":"0002"}')


# --- certificates ---


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_certificate_with_an_envelope_binds_its_key(
    encoding: Encoding, tdx_guest_envelope: Attestation
) -> None:
    made = client_certificate(KEY, attestation=encode_envelope(tdx_guest_envelope), issuer=None, now=NOW)
    for form in FORMS.values():
        found = read_evidence(form(made.public_bytes(encoding)))
        assert found == EvidenceFile("certificate", tdx_guest_envelope, report_data=BOUND)


@pytest.fixture(scope="module")
def tdx_guest_envelope() -> Attestation:
    """Stripped evidence over KEY."""
    return strip(TdxGuest().attestation(report_data=BOUND))


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_an_old_certificate_with_the_pair_binds_its_key(
    encoding: Encoding, tdx_guest_envelope: Attestation
) -> None:
    found = read_evidence(legacy_certificate(tdx_guest_envelope).public_bytes(encoding))
    assert (found.kind, found.report_data) == ("certificate", BOUND)
    assert found.attestation is not None
    assert found.attestation.config == ""
    assert found.attestation.runtime_events == tdx_guest_envelope.runtime_events


def test_half_a_pair_is_refused(tdx_guest_envelope: Attestation) -> None:
    for part in ("quote", "log"):
        half = legacy_certificate(tdx_guest_envelope, **{part: None})
        with refuses("ratls.extension.legacy"):
            read_evidence(half.public_bytes(Encoding.DER))


def test_a_certificate_without_evidence_is_refused() -> None:
    plain = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
    with refuses("verify.file.no_attestation"):
        read_evidence(plain.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.b64encode(b"no certificate")
        + b"\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB",
        bytes.fromhex("3082000100"),
    ],
)
def test_n01_a_damaged_certificate_is_refused(data: bytes) -> None:
    with refuses("verify.file.unknown"):
        read_evidence(data)


# --- anything else ---


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "envelope.empty"),
        (b"\n", "envelope.version.unknown"),
        (b"hello", "envelope.version.unknown"),
        (b"0", "envelope.version.unknown"),
        (b"\x00", "scale.truncated"),
        (b"\x83", "msgpack.length"),
    ],
)
def test_n01_damaged_input_is_refused(data: bytes, code: str) -> None:
    with refuses(code):
        read_evidence(data)


def test_n01_bytes_after_an_envelope_are_refused() -> None:
    with refuses("scale.trailing"):
        read_evidence(Forge().envelope() + b"\x00")


def test_n03_a_file_larger_than_any_evidence_is_not_looked_at() -> None:
    assert MAX_INPUT > 20 * 1024 * 1024
    with refuses("verify.file.size", ConfigError):
        read_evidence(b"0" * (MAX_INPUT + 1))
