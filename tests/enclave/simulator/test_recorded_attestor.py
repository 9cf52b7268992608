"""Evidence from a file, and what becomes of it."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from enclave.simulator.recorded_attestor import RecordedAttestor
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import (
    Attestation,
    NitroEnclaveQuote,
    TdxQuote,
    decode_envelope,
    encode_envelope,
    encode_v0,
)
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import ConfigError, InvalidEvidence
from tests.shared.refusal import refuses

NOW = 1_790_000_000
SEED = bytes(range(32))


@pytest.fixture
def record(shared_data: Callable[[str], Path]) -> bytes:
    return shared_data("guest-agent/attestation.bin").read_bytes()


def quote_of(envelope: bytes) -> bytes:
    quote = decode_envelope(envelope).quote
    assert isinstance(quote, TdxQuote)
    return quote.quote


def test_changes_64_bytes_of_the_quote_and_those_of_the_stack(record: bytes) -> None:
    data = os.urandom(64)
    answer = RecordedAttestor(record).attest(data)
    before, after = quote_of(record), quote_of(answer)
    assert after == before[:568] + data + before[632:]
    assert decode_envelope(answer).report_data == data
    assert len(answer) == len(record)
    assert sum(left != right for left, right in zip(record, answer, strict=True)) <= 128


def test_keeps_the_record_where_patching_is_off(record: bytes) -> None:
    assert RecordedAttestor(record, patch=False).attest(os.urandom(64)) == record


def test_answers_in_the_version_of_the_record(record: bytes) -> None:
    newer = encode_v1(decode_envelope(record))
    data = os.urandom(64)
    assert RecordedAttestor(record).attest(data)[0] == 0
    answer = RecordedAttestor(newer).attest(data)
    assert 0x80 <= answer[0] <= 0x8F
    assert quote_of(answer) == quote_of(RecordedAttestor(record).attest(data))


def test_a_patched_quote_verifies_nowhere(record: bytes) -> None:
    intel = SimulatedIntel.from_seed(SEED)
    signed = RecordedAttestor(record, intel=intel).attest(bytes(64))
    patched = RecordedAttestor(signed).attest(os.urandom(64))
    with refuses("tdx.dcap.quote_signature", InvalidEvidence):
        verify_with(intel, patched)


def test_a_seed_signs_the_same_measurements_anew(record: bytes) -> None:
    data = os.urandom(64)
    intel = SimulatedIntel.from_seed(SEED)
    answer = RecordedAttestor(record, intel=intel).attest(data)
    assert verify_with(SimulatedIntel.from_seed(SEED), answer).report_data == data
    assert quote_of(answer)[48:568] == quote_of(record)[48:568]


def test_a_seed_signs_quotes_of_version_5_too() -> None:
    intel = SimulatedIntel.from_seed(SEED)
    source = SimulatedTdx(SimulatedIntel.create(), version=5)
    record = encode_v0(Attestation(TdxQuote(source.quote(bytes(64)), ()), (), bytes(64), ""))
    data = os.urandom(64)
    assert verify_with(intel, RecordedAttestor(record, intel=intel).attest(data)).report_data == data


def test_evidence_of_an_enclave_gets_the_data_beside_its_document() -> None:
    record = encode_envelope(Attestation(NitroEnclaveQuote(b"document"), (), bytes(64), ""))
    data = os.urandom(64)
    answer = decode_envelope(RecordedAttestor(record).attest(data))
    assert answer == msgspec.structs.replace(decode_envelope(record), report_data=data)


def test_a_seed_is_refused_beside_evidence_that_it_cannot_sign() -> None:
    record = encode_envelope(Attestation(NitroEnclaveQuote(b"document"), (), bytes(64), ""))
    with refuses("simulator.attestation", ConfigError):
        RecordedAttestor(record, intel=SimulatedIntel.from_seed(SEED))


def test_a_record_that_is_none_is_refused() -> None:
    with refuses("envelope.empty"):
        RecordedAttestor(b"")


def test_a_seed_makes_the_same_certificates_every_time() -> None:
    first, second = SimulatedIntel.from_seed(SEED), SimulatedIntel.from_seed(SEED)
    assert first.root_pem == second.root_pem
    assert first.pck_chain == second.pck_chain
    assert first.root_pem != SimulatedIntel.from_seed(bytes(32)).root_pem


def verify_with(intel: SimulatedIntel, envelope: bytes) -> Attestation:
    return verify_attestation(
        decode_envelope(envelope),
        now=NOW,
        anchors=TrustAnchors.production().with_extra(intel.root_pem),
        endorsements=Endorsements(tdx=(intel.collateral(NOW - 60),)),
    ).attestation
