"""Arbitrary and damaged bytes into every format of evidence: the outcome is a value or a `DstackError`."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from cryptography import x509
from cryptography.hazmat.asn1 import encode_der
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    TdxQuote,
    check_pod_payload,
    decode_envelope,
    encode_envelope,
    encode_v0,
)
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.event_log import (
    check_event_lists,
    replay,
    replay_registers,
    runtime_events_of,
    system_events,
)
from shared.attestation.event_log_json import (
    event_log_json,
    expand_event_log,
    getquote_log,
    parse_event_log_json,
)
from shared.attestation.messagepack import decode_strict
from shared.attestation.scale import Reader
from shared.attestation.stripped import strip
from shared.attestation.tcg_log import ccel_events, parse_tcg_log, replay_pcrs, tpm_events
from shared.ratls.extensions import ATTESTATION, EVENT_LOG, TDX_QUOTE, USAGE, read_attestation, read_usage
from shared.ratls.peer import check_client_certificate, ratls_report_data
from tests.fuzz.budget import fuzz, mutated, outcome

DATA = Path(__file__).parent.parent / "data"
ENVELOPES = [path.read_bytes() for path in sorted((DATA / "attestation/synthetic/envelopes").glob("*.bin"))]
V1 = [data for data in ENVELOPES if data[0]]
LOG = (DATA / "attestation/synthetic/tdx/event_log.json").read_bytes()
LOGS = [LOG, LOG.replace(b"\n }", b',\n  "version": 2, "preimage": "00"\n }'), b"[]"]
OVMF = (DATA / "tcg/ovmf_tcg_eventlog.bin").read_bytes()


def _ccel() -> bytes:
    """Return a short CCEL: a header, two records of one SHA-384 digest each, and padding."""
    spec = b"Spec ID Event03\0" + bytes.fromhex("000000000002000201000000" + "0c003000" + "00")
    header = bytes.fromhex("0100000003000000") + bytes(20) + len(spec).to_bytes(4, "little") + spec
    record = bytes.fromhex("01000000" + "0a000000" + "01000000" + "0c00") + bytes(48)
    return header + 2 * (record + b"\x09\x00\x00\x00ACPI DATA") + b"\xff" * 64


CCEL = _ccel()
SMALL = st.binary(max_size=2048)


def _use(attestation: Attestation) -> None:
    """Do to decoded evidence what a verifier does before any signature."""
    assert decode_envelope(encode_envelope(attestation)) == attestation
    assert decode_envelope(encode_v1(attestation)) == attestation
    assert decode_envelope(encode_envelope(strip(attestation))) == strip(attestation)
    outcome(check_pod_payload, attestation)
    outcome(system_events, attestation.runtime_events)
    outcome(replay, attestation.runtime_events, "sha384", boot_time=True)
    match attestation.quote:
        case TdxQuote() as quote:
            tdx = quote
        case GcpTdxQuote() as quote:
            tdx = quote.tdx
            outcome(replay_pcrs, quote.tpm.event_log, (0, 2, 14))
        case _:
            return
    outcome(check_event_lists, tdx.event_log, attestation.runtime_events)
    outcome(replay_registers, tdx.event_log)


@fuzz(SMALL.map(lambda tail: b"\x00" + tail) | mutated(ENVELOPES))
def test_an_envelope(data: bytes) -> None:
    if (attestation := outcome(decode_envelope, data)) is not None:
        if not data[0]:
            assert encode_v0(attestation) == data
        _use(attestation)


@fuzz(SMALL.map(lambda tail: b"\x83" + tail) | mutated(V1))
def test_an_envelope_of_version_1(data: bytes) -> None:
    if (attestation := outcome(decode_envelope, data)) is not None:
        _use(attestation)


@fuzz(SMALL)
def test_scale(data: bytes) -> None:
    outcome(Reader(data).compact, "number")
    outcome(Reader(data).string, "text")
    outcome(Reader(data).list_of, lambda reader: reader.string("item"), "list", smallest=1)


@fuzz(SMALL | mutated(V1) | st.lists(st.binary(max_size=3), max_size=500).map(b"\x94".join))
def test_messagepack(data: bytes) -> None:
    outcome(decode_strict, data)


@fuzz(SMALL | mutated(LOGS) | st.text(max_size=200).map(lambda name: LOG.replace(b"app-id", name.encode())))
def test_a_json_event_log(data: bytes) -> None:
    events = outcome(parse_event_log_json, data)
    if events is not None:
        assert parse_event_log_json(event_log_json(events)) == events
        runtime = runtime_events_of(events)
        outcome(check_event_lists, events, runtime)
        outcome(check_event_lists, getquote_log(events), runtime)
        outcome(system_events, runtime)
        outcome(replay, runtime, "sha256")
        outcome(replay_registers, events)


@fuzz(mutated([b"ELGZv1" + gzip.compress(log, mtime=0) for log in LOGS]) | SMALL.map(b"ELGZv1".__add__))
def test_a_compressed_event_log(data: bytes) -> None:
    outcome(expand_event_log, data)


@fuzz(SMALL | mutated([OVMF]))
def test_a_tpm_log(data: bytes) -> None:
    outcome(parse_tcg_log, data, kind="tpm")
    events = outcome(tpm_events, data)
    if events is not None:
        outcome(replay_pcrs, events, range(24))


@fuzz(SMALL | mutated([CCEL]))
def test_a_ccel(data: bytes) -> None:
    events = outcome(ccel_events, data)
    if events is not None:
        outcome(replay_registers, events)
        outcome(check_event_lists, events, ())


def _legacy_values() -> dict[x509.ObjectIdentifier, list[bytes]]:
    quote = decode_envelope((DATA / "attestation/synthetic/envelopes/v0_tdx.bin").read_bytes()).quote
    assert isinstance(quote, TdxQuote)
    short = json.dumps(json.loads(LOG)[:2]).encode()
    contents = {
        TDX_QUOTE: [quote.quote],
        EVENT_LOG: [short, b"ELGZv1" + gzip.compress(LOG, mtime=0), b"[]"],
        ATTESTATION: [ENVELOPES[0][:200]],
        USAGE: [b"kms:rpc"],
    }
    return {oid: [encode_der(content) for content in found] for oid, found in contents.items()}


VALUES = _legacy_values()


@st.composite
def extensions(draw: st.DrawFn) -> x509.Extensions:
    found = []
    for oid, valid in VALUES.items():
        if draw(st.booleans()):
            value = draw(st.sampled_from(valid) | mutated(valid) | st.binary(max_size=64))
            found.append(x509.Extension(oid, draw(st.booleans()), x509.UnrecognizedExtension(oid, value)))
    return x509.Extensions(found)


@fuzz(extensions())
def test_certificate_extensions(found: x509.Extensions) -> None:
    outcome(read_usage, found)
    envelope = outcome(read_attestation, found)
    if envelope is not None:
        outcome(decode_envelope, envelope)


def _certificate() -> bytes:
    key = derive_private_key(7, SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fuzz")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    builder = builder.not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
    for oid, values in VALUES.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, values[-1]), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


CERTIFICATE = _certificate()


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@fuzz(st.binary(max_size=600) | mutated([CERTIFICATE]))
def test_a_certificate(der: bytes) -> None:
    outcome(check_client_certificate, der, temp_ca_der=CERTIFICATE, now=1_800_000_000)
    outcome(ratls_report_data, der)
