"""Real documents of AWS hardware, and samples made once for this project."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.attestation.envelope import Attestation, NitroEnclaveQuote, decode_envelope
from shared.attestation.identity import app_info, boot_info, check_image, os_image_hash_of
from shared.attestation.nitro import NitroDocument, parse_document, verify_document
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifierCache, verify_attestation
from tests.shared.attestation.forgery import refuses

SharedData = Callable[[str], Path]

NITRO = "attestation/upstream/nitro/"
MEASURED = ("nitro_attestation.bin", "nitro_attestation_nsm_qvl.bin")
DEBUG = "nitro_attestation_dbg.bin"
SYNTHETIC_TIME = 1767225600
# When these tests were written: long after the documents, and before their root expires.
LATER = 1795000000


@pytest.fixture
def expected(shared_data: SharedData) -> dict[str, Any]:
    """Fields that were computed from the documents by other means."""
    found: dict[str, Any] = json.loads(shared_data("attestation/upstream/expected/nitro.json").read_bytes())
    return found


def load(shared_data: SharedData, name: str) -> tuple[Attestation, NitroDocument]:
    attestation = decode_envelope(shared_data(NITRO + name).read_bytes())
    assert isinstance(attestation.quote, NitroEnclaveQuote)
    return attestation, parse_document(attestation.quote.nsm_quote)


@pytest.mark.parametrize("name", MEASURED)
def test_a_real_document_verifies_at_its_own_time(name: str, shared_data: SharedData) -> None:
    attestation, document = load(shared_data, name)
    for cache in (None, VerifierCache()):
        verified = verify_attestation(
            attestation, now=document.timestamp, anchors=TrustAnchors.production(), cache=cache
        )
        assert not verified.verdict.simulated
        assert verified.verdict.anchors == ("aws-nitro-enclaves-root-g1",)
        assert check_image(verified)


@pytest.mark.parametrize("name", [*MEASURED, DEBUG])
def test_n33_a_real_document_is_stale_now(name: str, shared_data: SharedData) -> None:
    with refuses("nitro.stale"):
        verify_attestation(load(shared_data, name)[0], now=LATER, anchors=TrustAnchors.production())


def test_n30_a_real_debug_document_is_refused_at_its_own_time(shared_data: SharedData) -> None:
    attestation, document = load(shared_data, DEBUG)
    with refuses("nitro.debug"):
        verify_attestation(attestation, now=document.timestamp, anchors=TrustAnchors.production())


@pytest.mark.parametrize("name", [*MEASURED, DEBUG])
def test_the_fields_of_a_real_document_are_as_expected(
    name: str, shared_data: SharedData, expected: dict[str, Any]
) -> None:
    attestation, document = load(shared_data, name)
    want = expected[name]
    assert document.module_id == want["module_id"]
    assert document.timestamp_ms == want["timestamp"]
    assert document.user_data is not None
    assert document.user_data.hex() == want["user_data"] == attestation.report_data.hex()
    assert {f"pcr{i}": document.pcrs[i].hex() for i in (0, 1, 2, 4)} == {
        f"pcr{i}": want[f"pcr{i}"] for i in (0, 1, 2, 4)
    }
    assert sorted(document.pcrs) == list(range(16))
    assert attestation.config == want["config"]
    assert os_image_hash_of(document.pcrs).hex() == want["image_hash_sha256"]
    events = [[event.event, event.payload.hex()] for event in attestation.runtime_events]
    assert events == want["runtime_events"]
    assert isinstance(attestation.quote, NitroEnclaveQuote)
    assert len(attestation.quote.nsm_quote) == want["cose_len"]


@pytest.mark.parametrize("name", MEASURED)
def test_the_identity_of_a_real_document_is_as_expected(
    name: str, shared_data: SharedData, expected: dict[str, Any]
) -> None:
    attestation, document = load(shared_data, name)
    verified = verify_attestation(attestation, now=document.timestamp, anchors=TrustAnchors.production())
    info, want = boot_info(verified), expected[name]
    image = want["image_hash_sha256"]
    assert (info.os_image_hash.hex(), info.compose_hash.hex(), info.mr_system.hex()) == (image, image, image)
    assert info.mr_aggregated.hex() == image
    assert info.device_id.hex() == want["device_id_at_312dc605"]
    assert info.app_id.hex() == (want["runtime_events"][0][1] if want["runtime_events"] else "")


def test_the_later_device_id_of_a_real_document_is_as_published(shared_data: SharedData) -> None:
    attestation, document = load(shared_data, "nitro_attestation.bin")
    verified = verify_attestation(attestation, now=document.timestamp, anchors=TrustAnchors.production())
    assert app_info(verified).device_id_pcr4.hex() == (
        "f1e60ca892d43cd58b25acf6bcbd1cb609209d7113d87a14646a247dcc01dd75"
    )


@pytest.mark.parametrize("name", MEASURED)
def test_n31_the_chain_of_a_real_document_ends_with_its_leaf(name: str, shared_data: SharedData) -> None:
    """A document within its age is refused once a certificate of its chain is over."""
    attestation, document = load(shared_data, name)
    assert isinstance(attestation.quote, NitroEnclaveQuote)
    verified = verify_document(
        attestation.quote.nsm_quote, now=document.timestamp, anchors=TrustAnchors.production()
    )
    assert verified.valid_until == document.timestamp + 3601


def test_n34_a_real_document_without_a_nonce_is_refused_where_one_is_expected(
    shared_data: SharedData,
) -> None:
    attestation, document = load(shared_data, MEASURED[0])
    assert isinstance(attestation.quote, NitroEnclaveQuote)
    cose, at, production = attestation.quote.nsm_quote, document.timestamp, TrustAnchors.production()
    with refuses("nitro.nonce"):
        verify_document(cose, now=at, anchors=production, nonce=b"expected")
    with refuses("nitro.public_key"):
        verify_document(cose, now=at, anchors=production, public_key=b"expected")


# --- samples made for this project ---


def test_the_synthetic_document_verifies_under_its_root(shared_data: SharedData) -> None:
    pem = shared_data("attestation/synthetic/nitro/root-ca.pem").read_bytes()
    cose = shared_data("attestation/synthetic/nitro/document.cose").read_bytes()
    anchors = TrustAnchors.production().with_extra(pem)
    verified = verify_document(cose, now=SYNTHETIC_TIME, anchors=anchors)
    assert verified.simulated
    want = json.loads(shared_data("attestation/synthetic/expected.json").read_bytes())
    assert verified.document.timestamp_ms == want["nitro"]["timestamp_ms"]
    assert verified.document.user_data is not None
    assert verified.document.user_data.hex() == want["report_data"]


def test_the_synthetic_debug_document_is_refused(shared_data: SharedData) -> None:
    pem = shared_data("attestation/synthetic/nitro/root-ca.pem").read_bytes()
    cose = shared_data("attestation/synthetic/nitro/document_debug.cose").read_bytes()
    with refuses("nitro.debug"):
        verify_document(cose, now=SYNTHETIC_TIME, anchors=TrustAnchors.production().with_extra(pem))


def test_the_synthetic_envelope_has_the_expected_identity(shared_data: SharedData) -> None:
    pem = shared_data("attestation/synthetic/nitro/root-ca.pem").read_bytes()
    envelope = shared_data("attestation/synthetic/envelopes/v0_nitro.bin").read_bytes()
    want = json.loads(shared_data("attestation/synthetic/expected.json").read_bytes())["nitro"]
    anchors = TrustAnchors.production().with_extra(pem)
    shown = app_info(verify_attestation(envelope, now=SYNTHETIC_TIME, anchors=anchors)).to_json()
    for name in ("os_image_hash", "compose_hash", "mr_system", "mr_aggregated", "app_id"):
        assert shown[name] == want[name]
    assert shown["device_id"] == want["device_id_at_312dc605"]
    assert shown["device_id_pcr4"] == want["device_id_after_pr_1302"]
