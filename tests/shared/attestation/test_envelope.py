from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.attestation.envelope import (
    MAX_ENVELOPE,
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    PcrValue,
    Quote,
    RuntimeEvent,
    SevSnpQuote,
    TdxEvent,
    TdxQuote,
    TpmEvent,
    TpmQuote,
    decode_envelope,
    encode_v0,
)
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import refuses

T = TypeVar("T")

U32 = st.integers(0, (1 << 32) - 1)
BYTES = st.binary(max_size=70)
TEXT = st.text(max_size=20)


def tuples(item: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(item, max_size=3).map(tuple)


TDX = st.builds(TdxQuote, BYTES, tuples(st.builds(TdxEvent, U32, U32, BYTES, TEXT, BYTES)))
TPM = st.builds(
    TpmQuote,
    BYTES,
    BYTES,
    tuples(st.builds(PcrValue, U32, TEXT, BYTES)),
    BYTES,
    st.sampled_from(["dstack", "gcp", "nitroenclave", "aws-ec2"]),
    tuples(st.builds(TpmEvent, U32, BYTES)),
)
ATTESTATION = st.builds(
    Attestation,
    st.one_of(
        TDX,
        st.builds(GcpTdxQuote, TDX, TPM),
        st.builds(NitroEnclaveQuote, BYTES),
        st.builds(SevSnpQuote, BYTES, tuples(BYTES), TEXT),
        st.builds(NitroTpmQuote, BYTES),
    ),
    tuples(st.builds(RuntimeEvent, TEXT, BYTES)),
    st.binary(min_size=64, max_size=64),
    TEXT,
)
MINIMAL = Attestation(NitroEnclaveQuote(b"\x84"), (), bytes(64), "")


@given(ATTESTATION)
def test_every_variant_round_trips(attestation: Attestation) -> None:
    assert decode_envelope(encode_v0(attestation)) == attestation


@given(st.binary(max_size=200).map(lambda tail: b"\x00" + tail))
def test_raises_nothing_but_our_error(data: bytes) -> None:
    try:
        attestation = decode_envelope(data)
    except InvalidEvidence:
        return
    assert encode_v0(attestation) == data


@given(ATTESTATION, st.data())
def test_a_damaged_envelope_is_refused_or_means_other_bytes(
    attestation: Attestation, data: st.DataObject
) -> None:
    encoded = bytearray(encode_v0(attestation))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_envelope(bytes(encoded))
    except InvalidEvidence:
        return
    assert encode_v0(decoded) == encoded


@pytest.mark.parametrize(
    ("quote", "variant"),
    [
        (TdxQuote(b"", ()), "dstack-tdx"),
        (GcpTdxQuote(TdxQuote(b"", ()), TpmQuote(b"", b"", (), b"", "gcp", ())), "dstack-gcp-tdx"),
        (NitroEnclaveQuote(b""), "dstack-nitro-enclave"),
        (SevSnpQuote(b"", (), ""), "dstack-amd-sev-snp"),
        (NitroTpmQuote(b""), "dstack-aws-nitro-tpm"),
    ],
)
def test_each_variant_has_upstreams_number_and_name(quote: Quote, variant: str) -> None:
    attestation = Attestation(quote, (), bytes(64), "")
    numbers = [
        "dstack-tdx",
        "dstack-gcp-tdx",
        "dstack-nitro-enclave",
        "dstack-amd-sev-snp",
        "dstack-aws-nitro-tpm",
    ]
    assert encode_v0(attestation)[:2] == bytes([0, numbers.index(variant)])
    assert attestation.tee_variant == variant


@pytest.mark.parametrize("first", [0x01, 0x7F, 0x90, 0xFF])
def test_n05_refuses_an_unknown_version(first: int) -> None:
    with refuses("envelope.version.unknown"):
        decode_envelope(bytes([first]) + encode_v0(MINIMAL)[1:])


def test_n05_refuses_an_unknown_variant() -> None:
    with refuses("envelope.variant.unknown"):
        decode_envelope(b"\x00\x05" + encode_v0(MINIMAL)[2:])


def test_n05_refuses_an_unknown_tpm_platform() -> None:
    tpm = TpmQuote(b"", b"", (), b"", "dstack", ())
    encoded = bytearray(encode_v0(Attestation(GcpTdxQuote(TdxQuote(b"", ()), tpm), (), bytes(64), "")))
    encoded[8] = 4
    with refuses("envelope.platform.unknown"):
        decode_envelope(bytes(encoded))


def test_refuses_an_empty_envelope() -> None:
    with refuses("envelope.empty"):
        decode_envelope(b"")


def test_n03_refuses_an_oversize_envelope() -> None:
    with refuses("envelope.size"):
        decode_envelope(bytes(MAX_ENVELOPE + 1))


def test_n01_refuses_trailing_bytes() -> None:
    with refuses("scale.trailing"):
        decode_envelope(encode_v0(MINIMAL) + b"\x00")


def test_n03_refuses_an_event_count_beyond_the_input() -> None:
    head = b"\x00\x02\x04\x84"
    with refuses("scale.count"):
        decode_envelope(head + bytes.fromhex("03ffffffff") + bytes(64))


def test_n10_refuses_more_events_than_any_guest_makes() -> None:
    events = tuple(RuntimeEvent("e", b"") for _ in range(4097))
    with refuses("scale.count"):
        decode_envelope(encode_v0(Attestation(NitroEnclaveQuote(b""), events, bytes(64), "")))


def test_does_not_encode_an_event_that_v0_cannot_carry() -> None:
    with refuses("envelope.event.version"):
        encode_v0(Attestation(NitroEnclaveQuote(b""), (RuntimeEvent("e", b"", 2),), bytes(64), ""))


def test_does_not_encode_a_preimage_that_v0_cannot_carry() -> None:
    for event in (TdxEvent(3, 1, b"", "e", b"", 2), TdxEvent(3, 1, b"", "e", b"", preimage=b"p")):
        with refuses("envelope.event.version"):
            encode_v0(Attestation(TdxQuote(b"", (event,)), (), bytes(64), ""))


def test_does_not_encode_a_stack_kind_that_v0_cannot_carry() -> None:
    with refuses("envelope.stack.kind"):
        encode_v0(Attestation(NitroEnclaveQuote(b""), (), bytes(64), "", "payload"))


def test_does_not_encode_report_data_of_another_length() -> None:
    with refuses("envelope.report_data.length"):
        encode_v0(Attestation(NitroEnclaveQuote(b""), (), bytes(63), ""))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("attestation/upstream/nitro/nitro_attestation.bin", "dstack-nitro-enclave"),
        ("attestation/upstream/tdx/v0_tdx_attestation.bin", "dstack-tdx"),
        ("attestation/synthetic/envelopes/v0_gcp_tdx.bin", "dstack-gcp-tdx"),
        ("attestation/synthetic/envelopes/v0_nitro.bin", "dstack-nitro-enclave"),
        ("attestation/synthetic/envelopes/v0_tdx.bin", "dstack-tdx"),
    ],
)
def test_known_envelopes_round_trip_to_the_byte(
    shared_data: Callable[[str], Path], name: str, variant: str
) -> None:
    data = shared_data(name).read_bytes()
    attestation = decode_envelope(data)
    assert attestation.tee_variant == variant
    assert encode_v0(attestation) == data
