"""Collateral as text: upstream's JSON, the bundle, and what is read before anything is verified."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.simulator.intel_documents import utc_text
from enclave.simulator.tdx import SimulatedIntel
from shared.attestation.collateral import (
    MAX_BUNDLE_CERTIFICATE,
    MAX_BUNDLE_ITEMS,
    MAX_CHAIN,
    MAX_COLLATERAL,
    bundle_json,
    collateral_json,
    describe,
    parse_bundle,
    parse_collateral,
    utc_seconds,
)
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements, TdxCollateral
from shared.errors import ProtocolError
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.tdx_forgery import DAY, NOW, TdxForge

SAMPLE = Path(__file__).parents[2] / "data" / "attestation" / "synthetic" / "tdx" / "collateral.json"


@pytest.fixture(scope="module")
def forge() -> TdxForge:
    return TdxForge(SimulatedIntel.create(fmspc=bytes.fromhex("b0c06f000000")))


def as_object(collateral: TdxCollateral) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(collateral_json(collateral))
    return found


# --- the JSON ---


def test_collateral_survives_its_json(forge: TdxForge) -> None:
    chained = forge.altered(pck_certificate_chain=forge.intel.pck_chain.decode())
    for collateral in (forge.collateral, chained):
        text = collateral_json(collateral)
        assert parse_collateral(text) == parse_collateral(text.encode()) == collateral
    assert "pck_certificate_chain" not in as_object(forge.collateral)


def test_a_sample_in_upstreams_format_is_read() -> None:
    raw = SAMPLE.read_bytes()
    collateral = parse_collateral(raw)
    assert as_object(collateral) == json.loads(raw)
    assert describe(collateral).fmspc.hex() == "00a06d080000"


@pytest.mark.parametrize(
    "field", [name for name in TdxCollateral.__struct_fields__ if "pck_cert" not in name]
)
@pytest.mark.parametrize("value", [None, 1, "", [], "é", "z" * 700_000])
def test_a_field_of_another_form_is_refused(forge: TdxForge, field: str, value: object) -> None:
    with refuses("collateral.field", ProtocolError):
        parse_collateral(json.dumps(as_object(forge.collateral) | {field: value}))


def test_a_missing_or_unknown_field_is_refused(forge: TdxForge) -> None:
    fields = as_object(forge.collateral)
    for wrong in (fields | {"extra": "1"}, {k: v for k, v in fields.items() if k != "tcb_info"}):
        with refuses("collateral.field", ProtocolError):
            parse_collateral(json.dumps(wrong))
    with refuses("collateral.field", ProtocolError):
        parse_collateral(b"[]")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_has_64_bytes(forge: TdxForge, length: int) -> None:
    with refuses("collateral.field", ProtocolError):
        parse_collateral(json.dumps(as_object(forge.collateral) | {"tcb_info_signature": "11" * length}))


@pytest.mark.parametrize("text", ["0x3081", "308", "30 81", "é"])
def test_hex_is_bare(forge: TdxForge, text: str) -> None:
    with refuses("collateral.field", ProtocolError):
        parse_collateral(json.dumps(as_object(forge.collateral) | {"pck_crl": text}))


def test_chains_are_bounded(forge: TdxForge) -> None:
    for field in ("pck_certificate_chain", "tcb_info_issuer_chain"):
        with refuses("collateral.field", ProtocolError):
            parse_collateral(json.dumps(as_object(forge.collateral) | {field: "-" * (MAX_CHAIN + 1)}))


def test_json_itself_is_strict() -> None:
    with refuses("collateral.size", ProtocolError):
        parse_collateral(b" " * (MAX_COLLATERAL + 1))
    with refuses("collateral.syntax", ProtocolError):
        parse_collateral(b"{")
    with refuses("collateral.duplicate_key", ProtocolError):
        parse_collateral(b'{"tcb_info":"a","tcb_info":"b"}')
    with refuses("collateral.depth", ProtocolError):
        parse_collateral(b"[" * 100 + b"]" * 100)


# --- the bundle ---


def test_a_bundle_survives_its_json(forge: TdxForge) -> None:
    for endorsements in (
        NO_ENDORSEMENTS,
        Endorsements((forge.collateral, forge.collateral), (b"\x30\x00", b"\x01"), (b"\x02",)),
    ):
        assert parse_bundle(bundle_json(endorsements).encode()) == endorsements
    assert parse_bundle(b"{}") == NO_ENDORSEMENTS


def test_one_collateral_alone_is_a_bundle(forge: TdxForge) -> None:
    assert parse_bundle(collateral_json(forge.collateral).encode()) == Endorsements((forge.collateral,))


@pytest.mark.parametrize(
    "bundle",
    [
        [],
        {"crls": "abc"},
        {"crls": ["%"]},
        {"crls": ["YQ"]},
        {"crls": [""]},
        {"crls": [1]},
        {"crls": ["é"]},
        {"certificates": ["YWFh" * MAX_BUNDLE_CERTIFICATE]},
        {"certificates": ["YQ=="] * (MAX_BUNDLE_ITEMS + 1)},
    ],
)
def test_a_bundle_of_another_form_is_refused(bundle: object) -> None:
    with refuses("collateral.bundle", ProtocolError):
        parse_bundle(json.dumps(bundle).encode())


def test_a_bundle_with_other_members_is_refused() -> None:
    for bundle in ({"tdx": [1]}, {"tdx": [], "more": []}):
        with refuses("collateral.field", ProtocolError):
            parse_bundle(json.dumps(bundle).encode())


# --- what it claims ---


def test_the_facts_are_read(forge: TdxForge) -> None:
    facts = describe(forge.intel.collateral(NOW, crl_issued=NOW - DAY, revoked=("pck", "platform")))
    assert (facts.fmspc.hex(), facts.ca) == ("b0c06f000000", "platform")
    assert (facts.tcb_info.issued, facts.tcb_info.next_update) == (NOW, NOW + 30 * DAY)
    assert facts.qe_identity == facts.tcb_info
    assert (facts.pck_crl.issued, facts.pck_crl.next_update) == (NOW - DAY, NOW + 29 * DAY)
    assert facts.tcb_evaluation_number == 17
    assert (facts.issued, facts.latest_issued, facts.next_update) == (NOW - DAY, NOW, NOW + 29 * DAY)
    serials = {forge.intel.pck.certificate.serial_number, forge.intel.platform.certificate.serial_number}
    assert facts.revoked == serials
    assert facts.not_after == utc_seconds("2049-12-31T00:00:00Z")


def test_unknown_members_of_intels_documents_are_ignored(forge: TdxForge) -> None:
    assert describe(forge.intel.collateral(NOW, tcb_info={"tcbType2": {}}))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"tcb_info": "{"}, "tcb_info"),
        ({"tcb_info": "[]"}, "tcb_info"),
        ({"tcb_info": "{}"}, "tcb_info"),
        ({"tcb_info": "\ud800"}, "tcb_info"),
        ({"qe_identity": "{}"}, "qe_identity"),
        ({"pck_crl": b""}, "crl"),
        ({"root_ca_crl": b"\x30\x03\x02\x01\x01"}, "crl"),
        ({"tcb_info_issuer_chain": ""}, "chain"),
        ({"qe_identity_issuer_chain": "é"}, "chain"),
        ({"pck_crl_issuer_chain": "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"}, "chain"),
    ],
)
def test_collateral_that_cannot_be_read_is_refused(
    forge: TdxForge, fields: dict[str, Any], code: str
) -> None:
    with refuses(f"collateral.{code}"):
        describe(forge.altered(**fields))


@pytest.mark.parametrize("opening", ["[", '{"x":'])
def test_a_signed_text_that_nests_deep_is_refused(forge: TdxForge, opening: str) -> None:
    deep = f'{{"x":{opening * 20_000}'
    for name in ("tcb_info", "qe_identity"):
        with refuses(f"collateral.{name}"):
            describe(forge.altered(**{name: deep}))


@pytest.mark.parametrize("fmspc", ["", "b0c06f0000", "0xb0c06f0000", "zzzzzzzzzzzz"])
def test_an_fmspc_has_six_bytes(forge: TdxForge, fmspc: str) -> None:
    with refuses("collateral.tcb_info"):
        describe(forge.intel.collateral(NOW, tcb_info={"fmspc": fmspc}))


@pytest.mark.parametrize(
    "date", ["", "2026-01-01", "2026-01-01T00:00:00+00:00", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00.5Z"]
)
def test_a_date_is_in_utc_and_whole_seconds(forge: TdxForge, date: str) -> None:
    with refuses("collateral.date"):
        describe(forge.intel.collateral(NOW, tcb_info={"nextUpdate": date}))
    assert utc_seconds(utc_text(NOW)) == NOW


def test_a_chain_may_lack_its_last_newline(forge: TdxForge) -> None:
    chain = forge.collateral.tcb_info_issuer_chain
    assert describe(forge.altered(tcb_info_issuer_chain=chain.rstrip("\n"))) == describe(forge.collateral)


def test_a_list_says_when_the_next_is_due(forge: TdxForge) -> None:
    endless = without_next_update(forge)
    with refuses("collateral.crl"):
        describe(forge.altered(pck_crl=endless))


def without_next_update(forge: TdxForge) -> bytes:
    """The revocation list without its optional nextUpdate, and with a signature that nobody checks here."""
    moment = datetime.fromtimestamp(NOW, UTC)
    der = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(forge.intel.platform.certificate.subject)
        .last_update(moment)
        .next_update(moment)
        .sign(forge.intel.platform.key, SHA256())
        .public_bytes(Encoding.DER)
    )
    time = b"\x17\x0d" + moment.strftime("%y%m%d%H%M%SZ").encode()
    shorter = der.replace(time + time, time)
    assert len(shorter) == len(der) - len(time)
    # the lengths of the list and of its signed part
    outer, inner = shorter[:2], shorter[2:4]
    assert (outer[:1], outer[1:], inner[:1]) == (b"\x30", b"\x81", der[2:3])
    fixed = bytearray(shorter)
    fixed[2] -= len(time)
    at = 4 if fixed[4] != 0x81 else 5
    fixed[at] -= len(time)
    return bytes(fixed)
