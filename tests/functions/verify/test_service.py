"""The verify function without a cloud: upstream's response shape, order and reasons."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from functions.verify.service import HTTP_STATUS, MAX_BODY, MAX_TIME, Gather, VerifyService, parse_request
from shared.attestation.collateral import bundle_json, collateral_json
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import Attestation, RuntimeEvent, TdxQuote, encode_envelope
from shared.attestation.event_log_json import event_log_json, getquote_log
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.trust import TrustAnchors
from shared.errors import ProtocolError, UnavailableError
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, REPORT_DATA, Forge
from tests.shared.attestation.guest_forgery import (
    BOOT_EVENTS,
    EVENTS,
    LEGACY,
    LITE,
    UNVERIFIED,
    GcpGuest,
    TdxGuest,
    TpmGuest,
)

# spec attestation 7.1, in its order
ANSWER = ("is_valid", "details", "reason")
OURS = ("code", "verdict")
DETAILS = (
    *("quote_verified", "event_log_verified", "os_image_hash_verified", "acpi_tables_verified"),
    *("os_image_is_dev", "os_image_version", "tee_variant", "report_data", "tcb_status", "advisory_ids"),
    *("key_provider", "app_info"),
)
APP_INFO = (
    *("app_id", "compose_hash", "instance_id", "device_id", "mr_system", "mr_aggregated", "os_image_hash"),
    *("key_provider_info", "init_script_hashes"),
)
BOOT_INFO = (
    *("teeVariant", "mrAggregated", "osImageHash", "mrSystem", "appId", "composeHash", "instanceId"),
    *("deviceId", "keyProviderInfo", "tcbStatus", "advisoryIds"),
)
FLAGS = DETAILS[:3]


@pytest.fixture(scope="module")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()


@pytest.fixture(scope="module")
def tdx() -> TdxGuest:
    """A TDX guest without a fault."""
    return TdxGuest()


@pytest.fixture(scope="module")
def gcp() -> GcpGuest:
    """A Google Cloud guest without a fault."""
    return GcpGuest()


@pytest.fixture(scope="module")
def tpm() -> TpmGuest:
    """An EC2 guest without a fault."""
    return TpmGuest()


def judge(
    guest: TdxGuest | GcpGuest | TpmGuest | Forge,
    request: object,
    *,
    now: int = NOW,
    policy: Policy = DEFAULT_POLICY,
    gather: Gather | None = None,
    **options: Any,
) -> dict[str, Any]:
    endorsements = getattr(guest, "endorsements", Endorsements())
    service = VerifyService(
        guest.anchors, policy, gather=gather or (lambda _attestation, _now: endorsements), **options
    )
    answer: dict[str, Any] = json.loads(service.answer(json.dumps(request).encode(), now))
    return answer


def enclave(forge: Forge, **changes: Any) -> dict[str, str]:
    return {"attestation": forge.envelope(**changes).hex()}


def envelope(attestation: Attestation) -> dict[str, str]:
    return {"attestation": encode_envelope(attestation).hex()}


def legacy(attestation: Attestation, **changes: Any) -> dict[str, Any]:
    """An old client's request."""
    quote = attestation.quote
    assert isinstance(quote, TdxQuote)
    return {
        "quote": quote.quote.hex(),
        "event_log": event_log_json(getquote_log(quote.event_log)),
        "vm_config": attestation.config,
        **changes,
    }


def flags(answer: dict[str, Any]) -> tuple[bool, ...]:
    return tuple(answer["details"][name] for name in FLAGS)


# --- the shape ---


def test_a_valid_answer_has_upstreams_fields_in_its_order(
    forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> None:
    answers = {
        "dstack-nitro-enclave": judge(forge, enclave(forge)),
        "dstack-tdx": judge(tdx, envelope(tdx.attestation())),
        "dstack-gcp-tdx": judge(gcp, envelope(gcp.attestation())),
        "dstack-aws-nitro-tpm": judge(tpm, envelope(tpm.attestation())),
    }
    for variant, answer in answers.items():
        assert tuple(answer) == (*ANSWER, *OURS)
        assert (answer["is_valid"], answer["reason"], answer["code"]) == (True, None, None), answer
        assert tuple(answer["details"]) == (*DETAILS, "boot_info")
        assert flags(answer) == (True, True, True)
        assert answer["details"]["acpi_tables_verified"] is False
        assert answer["details"]["tee_variant"] == answer["verdict"]["platform"] == variant
        assert answer["details"]["report_data"] == REPORT_DATA.hex()
        assert tuple(answer["details"]["app_info"])[: len(APP_INFO)] == APP_INFO
        assert tuple(answer["details"]["boot_info"]) == BOOT_INFO
        assert answer["verdict"]["simulated"] is True


def test_tcb_status_is_the_vendors_word_or_null(
    forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> None:
    """boot_info has upstream's words: empty for an enclave, and UpToDate for a NitroTPM (N-41)."""
    for guest, request, shown, told in (
        (forge, enclave(forge), None, ""),
        (tpm, envelope(tpm.attestation()), None, "UpToDate"),
        (tdx, envelope(tdx.attestation()), "UpToDate", "UpToDate"),
        (gcp, envelope(gcp.attestation()), "UpToDate", "UpToDate"),
    ):
        details = judge(guest, request)["details"]
        assert details["tcb_status"] == shown
        assert details["boot_info"]["tcbStatus"] == told
        assert details["advisory_ids"] == []


def test_n41_the_answer_says_that_nobody_signed_a_tcb_status(tpm: TpmGuest) -> None:
    verdict = judge(tpm, envelope(tpm.attestation()))["verdict"]
    assert verdict["disabled_checks"] == [
        "tcb_status: nitrotpm evidence carries none, and policies are told UpToDate"
    ]


def test_the_key_provider_is_decoded(tdx: TdxGuest) -> None:
    def provider(payload: bytes) -> Any:
        events = (*BOOT_EVENTS, RuntimeEvent("key-provider", payload))
        return judge(tdx, envelope(tdx.attestation(events=events)))["details"]["key_provider"]

    assert provider(b'{"name":"kms","id":"3059"}') == {"name": "kms", "id": "3059"}
    assert judge(tdx, envelope(tdx.attestation(events=BOOT_EVENTS)))["details"]["key_provider"] is None


@pytest.mark.parametrize("payload", [b"kms", b"[]", b'{"name":1}', b"\xff", b"[" * 100_000])
def test_an_ec2_guests_key_provider_of_another_shape_is_null(payload: bytes, tpm: TpmGuest) -> None:
    """Nothing compares it with a bound configuration there, so it may be anything."""
    events = (*BOOT_EVENTS, RuntimeEvent("key-provider", payload))
    answer = judge(tpm, envelope(tpm.attestation(events=events)))
    assert (answer["is_valid"], answer["details"]["key_provider"]) == (True, None)
    assert answer["details"]["app_info"]["key_provider_info"] == payload.hex()


def test_boot_info_is_the_webhooks_object(forge: Forge) -> None:
    info = judge(forge, enclave(forge))["details"]["boot_info"]
    assert info["teeVariant"] == "dstack-nitro-enclave"
    assert info["appId"] == APP_ID.hex()
    assert info["composeHash"] == info["osImageHash"]


# --- stages ---


def test_refused_evidence_is_an_answer(forge: Forge) -> None:
    answer = judge(forge, enclave(forge), now=NOW + 3601)
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: document was made 3601 seconds ago")
    assert answer["code"] == "nitro.stale"
    assert tuple(answer["details"]) == DETAILS
    assert flags(answer) == (False, False, False)
    assert answer["details"]["report_data"] is None
    assert answer["verdict"] is None


def test_n30_a_debug_enclave_is_refused(forge: Forge) -> None:
    answer = judge(forge, enclave(forge, pcrs=dict.fromkeys(PCRS, bytes(48))))
    assert (answer["is_valid"], answer["code"]) == (False, "nitro.debug")


def test_flags_before_a_wrong_image_stay_set(forge: Forge, tdx: TdxGuest) -> None:
    wrong = '{"os_image_hash":"' + "11" * 32 + '"}'
    for guest, request, code in (
        (forge, enclave(forge, config=wrong), "identity.os_image.mismatch"),
        (tdx, envelope(tdx.attestation(config=wrong)), "identity.os_image.acpi"),
    ):
        answer = judge(guest, request)
        assert answer["reason"].startswith("OS image hash verification failed: ")
        assert answer["code"] == code
        assert flags(answer) == (True, False, False)
        assert tuple(answer["details"]) == DETAILS
        assert answer["details"]["report_data"] == REPORT_DATA.hex()
        assert answer["details"]["tee_variant"]
        assert answer["verdict"]["lanes"]["os_image"]["status"] == "skipped"


def test_an_unreadable_event_is_refused_with_the_quote(forge: Forge) -> None:
    """Upstream reads it last; here nothing is half believed."""
    answer = judge(forge, enclave(forge, events=(RuntimeEvent("app-id", b"short"),)))
    assert answer["reason"].startswith("Quote verification failed: ")
    assert answer["code"] == "event_log.length"
    assert flags(answer) == (False, False, False)


@pytest.mark.parametrize(
    ("request_", "reason", "code"),
    [
        ({}, "Internal error: Quote is required", "verify.quote.missing"),
        ({"quote": None, "event_log": "[]"}, "Internal error: Quote is required", "verify.quote.missing"),
        ({"quote": "00"}, "Internal error: Event log is required", "verify.event_log.missing"),
        ({"attestation": ""}, "Internal error: Failed to decode attestaion", "envelope.empty"),
        ({"attestation": "0002"}, "Internal error: Failed to decode attestaion", "scale.truncated"),
        ({"attestation": "83"}, "Internal error: Failed to decode attestaion", "msgpack.length"),
    ],
)
def test_undecodable_requests_have_upstreams_reasons(
    request_: dict[str, str], reason: str, code: str, forge: Forge
) -> None:
    answer = judge(forge, request_)
    assert (answer["is_valid"], answer["reason"], answer["code"]) == (False, reason, code)


def test_a_network_that_fails_is_an_answer_with_its_own_code(tdx: TdxGuest) -> None:
    def gather(_attestation: Attestation, _now: int) -> Endorsements:
        raise UnavailableError("pccs.unavailable", "no service answered")

    answer = judge(tdx, envelope(tdx.attestation()), gather=gather)
    assert (answer["is_valid"], answer["code"]) == (False, "pccs.unavailable")
    assert answer["reason"] == "Quote verification failed: no service answered"
    assert flags(answer) == (False, False, False)


def test_without_a_source_nothing_is_fetched(tdx: TdxGuest) -> None:
    service = VerifyService(tdx.anchors)
    body = json.dumps(envelope(tdx.attestation())).encode()
    assert json.loads(service.answer(body, NOW))["code"] == "tdx.collateral.missing"


# --- requests ---


def test_with_an_attestation_the_other_fields_are_ignored(forge: Forge) -> None:
    noise = {"quote": "00", "event_log": "no json", "vm_config": "{}", "debug": True, "unknown": [1]}
    assert judge(forge, {**enclave(forge), **noise})["is_valid"] is True


def test_a_vm_config_in_the_request_does_not_replace_the_envelopes(forge: Forge) -> None:
    wrong = {**enclave(forge), "vm_config": '{"os_image_hash":"' + "11" * 32 + '"}'}
    assert judge(forge, wrong)["is_valid"] is True


def test_an_old_clients_request_is_judged_like_the_envelope(tdx: TdxGuest) -> None:
    attestation = tdx.attestation()
    old = judge(tdx, legacy(attestation))
    assert old == judge(tdx, envelope(attestation))
    assert old["is_valid"] is True
    whole = judge(tdx, legacy(attestation, vm_config=json.dumps({"vm_config": LITE})))
    assert whole["is_valid"] is True


def test_an_old_clients_request_without_a_config_names_no_image(tdx: TdxGuest) -> None:
    answer = judge(tdx, legacy(tdx.attestation(), vm_config=None))
    assert answer["code"] == "identity.os_image.acpi"
    assert flags(answer) == (True, False, False)


@pytest.mark.parametrize("log", ["", "{}", "[1]", "hex"])
def test_an_old_clients_unreadable_log_is_an_internal_error(log: str, tdx: TdxGuest) -> None:
    answer = judge(tdx, legacy(tdx.attestation(), event_log=log))
    assert answer["code"].startswith("event_log.")
    assert answer["reason"].startswith("Internal error: ")


def test_n17_expected_report_data_is_compared(forge: Forge, tdx: TdxGuest) -> None:
    for guest, request in ((forge, enclave(forge)), (tdx, envelope(tdx.attestation()))):
        found = judge(guest, {**request, "expected_report_data": REPORT_DATA.hex()})
        assert found["verdict"]["lanes"]["report_data_expected"]["status"] == "verified"
        refused = judge(guest, {**request, "expected_report_data": "00" * 64})
        assert (refused["is_valid"], refused["code"]) == (False, "attestation.report_data")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "verify.body.syntax"),
        (b"{", "verify.body.syntax"),
        (b"\xff", "verify.body.syntax"),
        (b'{"attestation":"\xff"}', "verify.body.syntax"),
        (b'{"x":' + b"[" * 100_000, "verify.body.syntax"),
        (b"[]", "verify.body.field"),
        (b'{"attestation":7}', "verify.body.field"),
        (b'{"attestation":"0"}', "verify.body.field"),
        (b'{"attestation":"0x00"}', "verify.body.field"),
        (b'{"attestation":"zz"}', "verify.body.field"),
        (b'{"attestation":" 00"}', "verify.body.field"),
        (b'{"quote":"zz","event_log":""}', "verify.body.field"),
        (b'{"expected_report_data":"00"}', "verify.body.field"),
        (b'{"expected_report_data":"zz"}', "verify.body.field"),
        (b'{"debug":"yes"}', "verify.body.field"),
        (b'{"now":-1}', "verify.body.field"),
        (b'{"now":"1"}', "verify.body.field"),
        (b'{"now":1e300}', "verify.body.field"),
        (b'{"now":%d}' % (MAX_TIME + 1), "verify.body.field"),
        (b" " * (MAX_BODY + 1), "verify.body.size"),
    ],
)
def test_refuses_a_body_that_is_no_request(body: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(body)
    assert caught.value.code == code
    assert HTTP_STATUS[code] in {400, 413, 422}


def test_takes_the_largest_body() -> None:
    assert parse_request(b"{}" + b" " * (MAX_BODY - 2)).attestation is None


# --- time and collateral of a request ---


@pytest.mark.parametrize("field", [{"now": NOW}, {"collateral": {}}])
def test_a_request_may_not_choose_its_own_time_or_collateral(field: dict[str, Any], forge: Forge) -> None:
    with pytest.raises(ProtocolError) as caught:
        judge(forge, {**enclave(forge), **field})
    assert caught.value.code == "verify.body.override"
    assert HTTP_STATUS["verify.body.override"] == 422


def test_an_auditor_may_where_the_settings_say_so(tdx: TdxGuest, forge: Forge) -> None:
    def offline(_attestation: Attestation, _now: int) -> Endorsements:
        raise AssertionError("fetched")

    later = NOW + 365 * 86_400
    for text in (bundle_json(tdx.endorsements), collateral_json(tdx.endorsements.tdx[0])):
        request = {**envelope(tdx.attestation()), "now": NOW, "collateral": json.loads(text)}
        answer = judge(tdx, request, now=later, overrides=True, gather=offline)
        assert answer["is_valid"] is True, answer
        assert answer["verdict"]["verified_at"] == NOW
    assert judge(forge, {**enclave(forge), "now": NOW}, now=later, overrides=True)["is_valid"] is True


def test_an_auditors_collateral_that_cannot_be_read_is_an_internal_error(tdx: TdxGuest) -> None:
    request = {**envelope(tdx.attestation()), "collateral": [1]}
    answer = judge(tdx, request, overrides=True)
    assert answer["code"] == "collateral.bundle"
    assert answer["reason"].startswith("Internal error: ")


@pytest.mark.parametrize("now", [0, 1, MAX_TIME])
def test_no_time_of_an_audit_is_a_crash(
    now: int, forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> None:
    for guest, request in (
        (forge, enclave(forge)),
        (tdx, envelope(tdx.attestation())),
        (gcp, envelope(gcp.attestation())),
        (tpm, envelope(tpm.attestation())),
    ):
        answer = judge(guest, {**request, "now": now}, overrides=True)
        assert answer["is_valid"] is False
        assert answer["code"]


# --- images ---


def test_an_accepted_legacy_image_is_described_by_its_metadata(tdx: TdxGuest) -> None:
    asked: list[bytes] = []

    def image(image_hash: bytes) -> Any:
        asked.append(image_hash)
        return SimpleNamespace(is_dev=True, version="0.5.4")

    request = envelope(tdx.attestation(config=LEGACY))
    answer = judge(tdx, request, policy=UNVERIFIED, os_image=image)
    assert asked == [bytes.fromhex("ab" * 32)]
    details = answer["details"]
    assert (details["os_image_is_dev"], details["os_image_version"]) == (True, "0.5.4")
    assert flags(answer) == (True, True, False)
    assert answer["is_valid"] is True
    assert "boot_info" not in details
    assert answer["verdict"]["disabled_checks"] == ["tdx.allow_unverified_image is true"]
    assert details["app_info"]["self_asserted"] == ["os_image_hash"]


def test_an_image_that_cannot_be_had_is_refused(tdx: TdxGuest) -> None:
    def image(_hash: bytes) -> Any:
        raise UnavailableError("os_image.status", "got status 404")

    answer = judge(tdx, envelope(tdx.attestation(config=LEGACY)), policy=UNVERIFIED, os_image=image)
    assert (answer["is_valid"], answer["code"]) == (False, "os_image.status")
    assert answer["reason"] == "OS image hash verification failed: got status 404"
    assert flags(answer) == (True, False, False)


def test_nothing_is_downloaded_for_what_needs_no_image(
    forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> None:
    """Neither for a lite image, nor for another platform, nor for an image that the policy refuses."""

    def image(_hash: bytes) -> Any:
        raise AssertionError("downloaded")

    for guest, request, policy in (
        (tdx, envelope(tdx.attestation()), UNVERIFIED),
        (gcp, envelope(gcp.attestation()), UNVERIFIED),
        (tpm, envelope(tpm.attestation()), UNVERIFIED),
        (forge, enclave(forge), UNVERIFIED),
        (tdx, envelope(tdx.attestation(config=LEGACY)), DEFAULT_POLICY),
        (tdx, envelope(tdx.attestation(config="{}")), UNVERIFIED),
    ):
        assert judge(guest, request, policy=policy, os_image=image)


# --- paths ---


def test_paths_and_methods(forge: Forge) -> None:
    service = VerifyService(forge.anchors)
    assert service.handle("GET", "/health", b"", NOW) == service.handle("GET", "/health", b"x", NOW)
    assert json.loads(service.handle("GET", "/health", b"", NOW).body) == {
        "status": "ok",
        "service": "dstack-verifier",
    }
    valid = service.handle("POST", "/verify", json.dumps(enclave(forge)).encode(), NOW)
    assert (valid.status, json.loads(valid.body)["is_valid"]) == (200, True)
    for method, path in (("GET", "/verify"), ("POST", "/health"), ("POST", "/"), ("DELETE", "/verify")):
        assert service.handle(method, path, b"", NOW).status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 422), (b'{"now":1}', 422), (b" " * (MAX_BODY + 1), 413)],
)
def test_a_body_that_is_no_request_is_a_client_error(body: bytes, status: int, forge: Forge) -> None:
    answer = VerifyService(forge.anchors).handle("POST", "/verify", body, NOW)
    assert answer.status == status
    assert set(json.loads(answer.body)) == {"error", "code"}


# --- upstream's requests ---


def test_real_evidence_is_judged(shared_data: Callable[[str], Any]) -> None:
    data = shared_data("attestation/upstream/nitro/nitro_attestation.bin").read_bytes()
    body = json.dumps({"attestation": data.hex()}).encode()
    service = VerifyService(TrustAnchors.production())
    assert json.loads(service.answer(body, 1766678659))["verdict"]["simulated"] is False
    assert json.loads(service.answer(body, NOW))["code"] == "nitro.stale"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("quote-report.json", "tdx.collateral.missing"),
        ("tdx-lite-getquote.json", "tdx.collateral.missing"),
        ("tdx-lite-attestation.json", "tdx.collateral.missing"),
        ("sev-snp-attestation.json", "attestation.platform.unsupported"),
    ],
)
def test_upstreams_requests_decode_and_lack_collateral_alone(
    name: str, code: str, shared_data: Callable[[str], Any]
) -> None:
    """With a collateral service the TDX ones verify; SEV-SNP is decoded and not verified here."""
    body = shared_data(f"attestation/upstream/verifier/{name}").read_bytes()
    answer = json.loads(VerifyService(TrustAnchors.production()).answer(body, NOW))
    assert (answer["is_valid"], answer["code"]) == (False, code)
    assert answer["reason"].startswith("Quote verification failed: ")


def test_events_are_those_of_the_guest(tdx: TdxGuest) -> None:
    info = judge(tdx, envelope(tdx.attestation()))["details"]["app_info"]
    assert info["app_id"] == EVENTS[1].payload.hex()
    assert msgspec.json.decode(bytes.fromhex(info["key_provider_info"])) == {"name": "none", "id": ""}
