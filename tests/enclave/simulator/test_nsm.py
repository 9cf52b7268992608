"""The simulated module keeps the real one's rules and byte format; its evidence carries the refusals too."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest

from enclave.devices.nsm import MAX_REQUEST, Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.cose import parse_sign1
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, decode_envelope, encode_v0
from shared.attestation.nitro import parse_document, verify_document
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import InvalidEvidence, ProtocolError

NOW = 1_767_225_600
PCRS = {index: bytes([0xA0 + index]) * 48 for index in (0, 1, 2)}
AUTHORITY = SimulatedAuthority.create()
ANCHORS = TrustAnchors.production().with_extra(AUTHORITY.root_pem)


@pytest.fixture
def device() -> SimulatedNsm:
    """A module whose clock stands still."""
    return SimulatedNsm(PCRS, AUTHORITY, clock=lambda: NOW + 0.5)


@pytest.fixture
def nsm(device: SimulatedNsm) -> Nsm:
    """The typed client over it."""
    return Nsm(device)


def error(device: SimulatedNsm, request: bytes) -> object:
    answer = cbor2.loads(device.transact(request))
    assert isinstance(answer, dict)
    return answer["Error"]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises((InvalidEvidence, ProtocolError)) as caught:
        call()
    return caught.value.code


def test_a_document_verifies_under_its_authority_alone(nsm: Nsm) -> None:
    cose = nsm.attestation(user_data=b"u", nonce=b"n", public_key=b"k")
    verified = verify_document(cose, now=NOW, anchors=ANCHORS, report_data=b"u", nonce=b"n", public_key=b"k")
    assert verified.simulated
    assert verified.document.timestamp_ms == NOW * 1000 + 500
    assert code_of(lambda: verify_document(cose, now=NOW, anchors=TrustAnchors.production())) == (
        "nitro.chain.anchor"
    )


def test_a_document_carries_the_locked_registers(nsm: Nsm, device: SimulatedNsm) -> None:
    document = parse_document(nsm.attestation())
    instance = device.module_id.rpartition("-")[0]
    assert sorted(document.pcrs) == list(range(16))
    assert {index: document.pcrs[index] for index in PCRS} == PCRS
    assert document.pcrs[4] == hashlib.sha384(bytes(48) + instance.encode()).digest()
    nsm.lock_pcr(17)
    assert sorted(parse_document(nsm.attestation()).pcrs) == [*range(16), 17]


def test_a_document_has_the_byte_format_of_a_real_one(nsm: Nsm, shared_data: Callable[[str], Path]) -> None:
    envelope = decode_envelope(shared_data("attestation/upstream/nitro/nitro_attestation.bin").read_bytes())
    assert isinstance(envelope.quote, NitroEnclaveQuote)
    real, ours = envelope.quote.nsm_quote, nsm.attestation(user_data=bytes(64))
    assert ours[:8] == real[:8]
    assert shape(ours) == shape(real)


def test_a_document_starts_as_documented(nsm: Nsm) -> None:
    assert nsm.attestation()[:7].hex() == "8444a1013822a0"
    assert shape(nsm.attestation(user_data=bytes(64))) == [
        *(b"\xbf", b"\xff"),
        *("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"),
        *("public_key", "user_data", "nonce"),
        [*range(16)],
        4,
    ]


def shape(cose: bytes) -> list[object]:
    """The first and last byte of the payload, its keys in order, the register indexes, the chain's length."""
    payload = parse_sign1(cose).payload
    fields = cbor2.loads(payload)
    assert isinstance(fields, dict)
    return [payload[:1], payload[-1:], *fields, list(fields["pcrs"]), len(fields["cabundle"])]


def test_documents_of_one_enclave_share_their_intermediates(nsm: Nsm) -> None:
    first, second = (parse_document(nsm.attestation()) for _ in range(2))
    assert first.cabundle == second.cabundle


def test_a_leaf_is_renewed_before_a_document_under_it_would_expire() -> None:
    hands = [float(NOW)]
    nsm = Nsm(SimulatedNsm(PCRS, AUTHORITY, clock=lambda: hands[0]))
    leaves = set()
    for _ in range(12):
        cose = nsm.attestation()
        leaves.add(parse_document(cose).certificate)
        assert verify_document(cose, now=int(hands[0]) + 3600, anchors=ANCHORS).simulated
        hands[0] += 1000
    assert len(leaves) == 2


def test_extends_by_the_real_rule(nsm: Nsm) -> None:
    expected = hashlib.sha384(bytes(48) + b"data").digest()
    assert nsm.extend_pcr(16, b"data") == expected == nsm.describe_pcr(16)


def test_a_locked_register_does_not_change(nsm: Nsm) -> None:
    assert code_of(lambda: nsm.extend_pcr(0, b"x")) == "nsm.read_only_index"
    nsm.lock_pcrs(18)
    assert nsm.pcr_locked(17)
    assert not nsm.pcr_locked(18)
    assert code_of(lambda: nsm.extend_pcr(17, b"x")) == "nsm.read_only_index"


def test_describes_itself(nsm: Nsm, device: SimulatedNsm) -> None:
    description = nsm.describe_nsm()
    assert description.module_id == device.module_id
    assert (description.max_pcrs, description.digest) == (32, "SHA384")
    assert description.locked_pcrs == tuple(range(16))


def test_random_bytes_differ(nsm: Nsm) -> None:
    assert len(nsm.get_random()) == 256
    assert nsm.get_random() != nsm.get_random()


@pytest.mark.parametrize(("name", "limit"), [("user_data", 512), ("nonce", 512), ("public_key", 1024)])
def test_n33_refuses_oversize_fields(name: str, limit: int, nsm: Nsm) -> None:
    assert nsm.attestation(**{name: bytes(limit)})
    assert code_of(lambda: nsm.attestation(**{name: bytes(limit + 1)})) == "nsm.input_too_large"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"", "InvalidArgument"),
        (b"\xff", "InvalidArgument"),
        (cbor2.dumps(7), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {}, "LockPCR": {}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": 7}), "InvalidArgument"),
        (cbor2.dumps({1: {}}), "InvalidArgument"),
        (cbor2.dumps("Reboot"), "InvalidOperation"),
        (cbor2.dumps({"DescribePCR": {}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {"index": True}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {"index": 32}}), "InvalidIndex"),
        (cbor2.dumps({"LockPCR": {"index": -1}}), "InvalidIndex"),
        (cbor2.dumps({"LockPCRs": {"range": 33}}), "InvalidIndex"),
        (cbor2.dumps({"ExtendPCR": {"index": 16}}), "InvalidArgument"),
        (cbor2.dumps({"ExtendPCR": {"index": 16, "data": b""}}), "InvalidArgument"),
        (cbor2.dumps({"ExtendPCR": {"index": 16, "data": bytes(1025)}}), "InputTooLarge"),
        (cbor2.dumps({"Attestation": {"user_data": "text"}}), "InvalidArgument"),
        (cbor2.dumps({"Attestation": {"other": b""}}), "InvalidArgument"),
        (bytes(MAX_REQUEST + 1), "InputTooLarge"),
    ],
)
def test_answers_a_bad_request_with_the_real_error(
    request_: bytes, expected: str, device: SimulatedNsm
) -> None:
    assert error(device, request_) == expected


# --- the refusals, on evidence that a module made ---


def envelope(nsm: Nsm, report_data: bytes = bytes(64), **fields: bytes | None) -> bytes:
    quote = NitroEnclaveQuote(nsm.attestation(user_data=report_data, **fields))
    return encode_v0(Attestation(quote, (), bytes(64), "{}"))


def test_n01_refuses_simulated_evidence_with_trailing_bytes(nsm: Nsm) -> None:
    data = envelope(nsm) + b"\x00"
    assert code_of(lambda: verify_attestation(data, now=NOW, anchors=ANCHORS)) == "scale.trailing"


def test_n30_refuses_a_simulated_debug_enclave() -> None:
    nsm = Nsm(SimulatedNsm(dict.fromkeys(PCRS, bytes(48)), AUTHORITY, clock=lambda: NOW))
    assert code_of(lambda: verify_attestation(envelope(nsm), now=NOW, anchors=ANCHORS)) == "nitro.debug"


def test_n31_refuses_evidence_of_another_authority(nsm: Nsm) -> None:
    """Every simulated root has the same name: only the key tells them apart."""
    other = TrustAnchors.production().with_extra(SimulatedAuthority.create().root_pem)
    data = envelope(nsm)
    assert code_of(lambda: verify_attestation(data, now=NOW, anchors=other)) == "nitro.chain.signature"


def test_n32_refuses_simulated_evidence_with_an_altered_signature(nsm: Nsm) -> None:
    cose = bytearray(nsm.attestation())
    cose[-1] ^= 1
    assert code_of(lambda: verify_document(bytes(cose), now=NOW, anchors=ANCHORS)) == "cose.signature.invalid"


def test_n33_refuses_simulated_evidence_by_age(nsm: Nsm) -> None:
    data = envelope(nsm)
    for now, code in ((NOW + 3601, "nitro.stale"), (NOW - 300, "nitro.future")):
        assert code_of(lambda now=now: verify_attestation(data, now=now, anchors=ANCHORS)) == code  # type: ignore[misc]


def test_n34_refuses_simulated_evidence_for_another_nonce_key_or_report_data(nsm: Nsm) -> None:
    cose = nsm.attestation(user_data=b"u", nonce=b"n", public_key=b"k")
    for name, code in (("report_data", "user_data"), ("nonce", "nonce"), ("public_key", "public_key")):
        expectation = {name: b"other"}
        refusal = code_of(lambda e=expectation: verify_document(cose, now=NOW, anchors=ANCHORS, **e))  # type: ignore[misc]
        assert refusal == f"nitro.{code}"
    data = envelope(nsm, report_data=bytes(63) + b"\x01")
    assert code_of(lambda: verify_attestation(data, now=NOW, anchors=ANCHORS)) == "nitro.user_data"
