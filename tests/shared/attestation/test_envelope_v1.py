import hashlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from shared.attestation.envelope import (
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
    check_pod_payload,
    decode_envelope,
    encode_envelope,
    encode_v0,
)
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.messagepack import Value, array, bin_, byte_array, map_, string, uint
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import refuses

ENVELOPES = Path(__file__).parents[2] / "data" / "attestation" / "synthetic" / "envelopes"

U32 = st.integers(0, (1 << 32) - 1)
BYTES = st.binary(max_size=70)
TEXT = st.text(max_size=20)
VERSION = st.sampled_from([1, 2])
TDX = st.builds(
    TdxQuote,
    BYTES,
    st.lists(st.builds(TdxEvent, U32, U32, BYTES, TEXT, BYTES, VERSION, st.none() | BYTES), max_size=3).map(
        tuple
    ),
)
TPM = st.builds(
    TpmQuote,
    BYTES,
    BYTES,
    st.lists(st.builds(PcrValue, U32, TEXT, BYTES), max_size=3).map(tuple),
    BYTES,
    st.sampled_from(["dstack", "gcp", "nitroenclave", "aws-ec2"]),
    st.lists(st.builds(TpmEvent, U32, BYTES), max_size=3).map(tuple),
)
QUOTE: st.SearchStrategy[Quote] = st.one_of(
    TDX,
    st.builds(GcpTdxQuote, TDX, TPM),
    st.builds(NitroEnclaveQuote, BYTES),
    st.builds(SevSnpQuote, BYTES, st.lists(BYTES, max_size=3).map(tuple), TEXT),
    st.builds(NitroTpmQuote, BYTES),
)
ATTESTATION = st.builds(
    Attestation,
    QUOTE,
    st.lists(st.builds(RuntimeEvent, TEXT, BYTES, VERSION), max_size=3).map(tuple),
    st.binary(min_size=64, max_size=64),
    TEXT,
    st.none() | TEXT,
)
# The vector of section 1.4.
VECTOR = bytes.fromhex(
    "83a776657273696f6e01a8706c6174666f726d82a46b696e64ad6e6974726f2d656e636c617665a46461746181"
    "a96e736d5f71756f746594cc8444cca101a5737461636b82a46b696e64a664737461636ba46461746183"
    "ab7265706f72745f64617461dc0040ccff7f" + "00" * 62 + "ae72756e74696d655f6576656e74739182a56576656e74"
    "a66170702d6964a77061796c6f6164c414" + "11" * 20 + "a6636f6e666967a27b7d"
)


def raw(value: Value) -> bytes:
    """Encode with every byte field as a byte string: upstream's other spelling."""
    match value:
        case int():
            return uint(value)
        case bytes():
            return bin_(value)
        case str():
            return string(value)
        case list():
            return array([raw(item) for item in value])
        case dict():
            return map_({key: raw(item) for key, item in value.items()})


def tree(platform: str = "nitro-enclave", data: Any = None, **stack: Any) -> dict[str, Any]:
    body = {"report_data": bytes(64), "runtime_events": [], "config": "", **stack}
    return {
        "version": 1,
        "platform": {"kind": platform, "data": {"nsm_quote": b"\x84"} if data is None else data},
        "stack": {"kind": "dstack", "data": body},
    }


TDX_EVENT = {"imr": 3, "event_type": 7, "digest": b"d", "event": "e", "event_payload": b"p"}
TPM_QUOTE = {
    "message": b"m",
    "signature": b"s",
    "pcr_values": [{"index": 0, "algorithm": "sha256", "value": b"v"}],
    "ak_cert": b"c",
    "platform": "gcp",
    "event_log": [{"pcr_index": 1, "digest": b"d"}],
}


def tdx_tree(**changes: Any) -> dict[str, Any]:
    return tree("tdx", {"quote": b"q", "event_log": [{**TDX_EVENT, **changes}]})


def gcp_tree(**changes: Any) -> dict[str, Any]:
    return tree("gcp-tdx", {"quote": b"q", "event_log": [], "tpm_quote": {**TPM_QUOTE, **changes}})


def test_the_vector_of_the_format_is_reproduced() -> None:
    attestation = Attestation(
        NitroEnclaveQuote(bytes.fromhex("8444a101")),
        (RuntimeEvent("app-id", b"\x11" * 20),),
        b"\xff\x7f" + bytes(62),
        "{}",
    )
    assert encode_v1(attestation) == VECTOR
    assert decode_envelope(VECTOR) == attestation


@pytest.mark.parametrize("name", ["tdx", "nitro", "gcp_tdx"])
def test_a_sample_envelope_is_the_same_evidence_in_both_versions(name: str) -> None:
    v0, v1 = ((ENVELOPES / f"{version}_{name}.bin").read_bytes() for version in ("v0", "v1"))
    attestation = decode_envelope(v1)
    assert decode_envelope(v0) == attestation
    assert encode_v0(attestation) == v0
    assert encode_v1(attestation) == v1


@given(ATTESTATION)
def test_every_variant_round_trips(attestation: Attestation) -> None:
    assert decode_envelope(encode_v1(attestation)) == attestation
    assert decode_envelope(encode_envelope(attestation)) == attestation


def test_both_spellings_and_any_key_order_are_the_same_evidence() -> None:
    for value in (tdx_tree(), gcp_tree(), tree()):
        decoded = decode_envelope(raw(value))
        assert decode_envelope(encode_v1(decoded)) == decoded
        turned = dict(reversed(value.items()))
        turned["platform"] = dict(reversed(value["platform"].items()))
        assert decode_envelope(raw(turned)) == decoded


def test_an_event_may_lack_digest_version_and_preimage() -> None:
    event = {key: value for key, value in TDX_EVENT.items() if key != "digest"}
    decoded = decode_envelope(raw(tree("tdx", {"quote": b"q", "event_log": [event]})))
    assert isinstance(decoded.quote, TdxQuote)
    assert decoded.quote.event_log == (TdxEvent(3, 7, b"", "e", b"p"),)


def test_an_event_of_version_2_keeps_its_preimage() -> None:
    decoded = decode_envelope(raw(tdx_tree(version=2, preimage="00FF")))
    assert isinstance(decoded.quote, TdxQuote)
    assert decoded.quote.event_log[0].version == 2
    assert decoded.quote.event_log[0].preimage == b"\x00\xff"


@pytest.mark.parametrize(
    "change",
    [
        {"runtime_events": (RuntimeEvent("e", b"", 2),)},
        {"quote": TdxQuote(b"", (TdxEvent(3, 1, b"", "e", b"", 2),))},
        {
            "quote": GcpTdxQuote(
                TdxQuote(b"", (TdxEvent(3, 1, b"", "e", b"", 1, b"p"),)),
                TpmQuote(b"", b"", (), b"", "gcp", ()),
            )
        },
        {"report_data_payload": "x"},
    ],
)
def test_v1_is_chosen_where_v0_would_lose_something(change: dict[str, Any]) -> None:
    plain = Attestation(NitroEnclaveQuote(b""), (), bytes(64), "")
    assert encode_envelope(plain)[0] == 0
    assert encode_envelope(msgspec.structs.replace(plain, **change))[0] == 0x83


def test_the_payload_of_a_pod_is_kept_and_checked() -> None:
    digest = hashlib.sha512("app-data:ünï".encode()).digest()
    pod = Attestation(NitroEnclaveQuote(b""), (), digest, "", "ünï")
    assert decode_envelope(encode_envelope(pod)) == pod
    check_pod_payload(pod)
    check_pod_payload(msgspec.structs.replace(pod, report_data_payload=None))


def test_refuses_a_pod_payload_that_report_data_does_not_hash() -> None:
    with refuses("envelope.pod.report_data"):
        check_pod_payload(Attestation(NitroEnclaveQuote(b""), (), bytes(64), "", "payload"))


@pytest.mark.parametrize("first", [0x80, 0x83, 0x8F, 0xDE, 0xDF])
def test_n05_a_messagepack_map_is_read_as_version_1(first: int) -> None:
    with refuses(
        "msgpack.minimal" if first > 0x8F else "envelope.fields" if first == 0x80 else "msgpack.key"
    ):
        decode_envelope(bytes([first]) + (bytes(64) if first != 0x80 else b""))


def test_n05_refuses_another_version_in_messagepack() -> None:
    with refuses("envelope.version.unknown"):
        decode_envelope(raw({**tree(), "version": 2}))


def test_n05_refuses_an_unknown_platform_kind() -> None:
    with refuses("envelope.variant.unknown"):
        decode_envelope(raw(tree("sgx")))


def test_n05_refuses_an_unknown_stack_kind() -> None:
    value = tree()
    value["stack"]["kind"] = "other"
    with refuses("envelope.stack.kind"):
        decode_envelope(raw(value))


def test_n05_refuses_an_unknown_tpm_platform() -> None:
    with refuses("envelope.platform.unknown"):
        decode_envelope(raw(gcp_tree(platform="azure")))


@pytest.mark.parametrize("version", [0, 3])
def test_n05_refuses_an_unknown_event_version(version: int) -> None:
    with refuses("envelope.event.version"):
        decode_envelope(raw(tdx_tree(version=version)))
    with refuses("envelope.event.version"):
        decode_envelope(raw(tree(runtime_events=[{"event": "e", "payload": b"", "version": version}])))


def test_n05_refuses_an_unknown_key_at_every_level() -> None:
    inner = tree()
    inner["platform"]["other"] = 1
    for value in (
        {**tree(), "other": 1},
        inner,
        tree(data={"nsm_quote": b"", "other": 1}),
        tree(other=1),
        tree(report_data_payload="only a pod has one"),
        tdx_tree(other=1),
        gcp_tree(other=1),
        gcp_tree(event_log=[{"pcr_index": 1, "digest": b"d", "other": 1}]),
        tree(runtime_events=[{"event": "e", "payload": b"", "other": 1}]),
    ):
        with refuses("envelope.fields"):
            decode_envelope(raw(value))


def test_refuses_a_missing_key_at_every_level() -> None:
    pod = tree()
    pod["stack"]["kind"] = "dstack-pod"
    for value in (
        {"version": 1},
        tree(data={}),
        {**tree(), "stack": {"kind": "dstack"}},
        pod,
        tree("tdx", {"quote": b"q", "event_log": [{"imr": 3}]}),
        tree(runtime_events=[{"event": "e"}]),
    ):
        with refuses("envelope.fields"):
            decode_envelope(raw(value))


@pytest.mark.parametrize(
    "value",
    [
        {**tree(), "platform": 1},
        {**tree(), "version": 1 << 32},
        {**tree(), "version": "1"},
        tree(data={"nsm_quote": "text"}),
        tree(data={"nsm_quote": 1}),
        tree(config=b"bytes"),
        tree(runtime_events=b"bytes"),
        tree(runtime_events=["text"]),
        tdx_tree(imr=1 << 32),
        tdx_tree(preimage=b"00"),
    ],
)
def test_refuses_a_value_of_another_type(value: dict[str, Any]) -> None:
    with refuses("envelope.type"):
        decode_envelope(raw(value))


@pytest.mark.parametrize("text", ["0", "0x00", " 00", "zz"])
def test_refuses_a_preimage_that_is_not_bare_hex(text: str) -> None:
    with refuses("envelope.preimage"):
        decode_envelope(raw(tdx_tree(version=2, preimage=text)))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_refuses_report_data_of_another_length(length: int) -> None:
    with refuses("envelope.report_data.length"):
        decode_envelope(raw(tree(report_data=bytes(length))))
    with refuses("envelope.report_data.length"):
        encode_v1(Attestation(NitroEnclaveQuote(b""), (), bytes(length), ""))


def test_n01_refuses_trailing_bytes() -> None:
    with refuses("msgpack.trailing"):
        decode_envelope(VECTOR + b"\x00")


def test_n02_refuses_a_key_that_occurs_twice() -> None:
    with refuses("msgpack.duplicate"):
        decode_envelope(VECTOR.replace(b"\x82\xa4kind\xa6dstack\xa4data", b"\x82\xa4kind\xa6dstack\xa4kind"))


@given(st.integers(0, len(VECTOR) - 1), st.integers(1, 255))
def test_a_damaged_envelope_is_refused_or_means_other_bytes(at: int, flip: int) -> None:
    damaged = bytearray(VECTOR)
    damaged[at] ^= flip
    try:
        decoded = decode_envelope(bytes(damaged))
    except InvalidEvidence:
        return
    assert encode_v1(decoded) == damaged


def test_byte_fields_are_spelled_as_upstream_spells_them() -> None:
    event = TdxEvent(0, 1, b"d", "e", b"p", 2, b"i")
    encoded = encode_v1(Attestation(TdxQuote(b"\x80q", (event,)), (), bytes(64), ""))
    assert string("quote") + byte_array(b"\x80q") in encoded
    assert string("digest") + bin_(b"d") in encoded
    assert string("version") + uint(2) + string("preimage") + string("69") in encoded
