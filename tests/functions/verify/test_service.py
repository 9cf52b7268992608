"""The verify function without a cloud: upstream's response shape, order and reasons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from functions.verify.service import HTTP_STATUS, MAX_BODY, VerifyService, anchors_from, parse_request
from shared.attestation.envelope import Attestation, RuntimeEvent, TdxQuote, encode_v0
from shared.attestation.trust import NitroAnchors
from shared.errors import ConfigError, ProtocolError
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, REPORT_DATA, Forge

FLAG = "DSTACK_VERIFIER_ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS"
ROOT = "DSTACK_VERIFIER_ATTESTATION__ROOT_CA__AWS_NITRO_ENCLAVE"
DETAILS = {
    "quote_verified",
    "event_log_verified",
    "os_image_hash_verified",
    "acpi_tables_verified",
    "os_image_is_dev",
    "os_image_version",
    "tee_variant",
    "report_data",
    "tcb_status",
    "advisory_ids",
    "key_provider",
    "app_info",
}


@pytest.fixture(scope="module")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()


def ask(forge: Forge, request: object, now: int = NOW) -> dict[str, Any]:
    service = VerifyService(forge.anchors)
    answer: dict[str, Any] = json.loads(service.answer(json.dumps(request).encode(), now))
    return answer


def evidence(forge: Forge, **changes: Any) -> dict[str, str]:
    return {"attestation": forge.envelope(**changes).hex()}


def flags(answer: dict[str, Any]) -> tuple[bool, bool, bool]:
    details = answer["details"]
    return details["quote_verified"], details["os_image_hash_verified"], details["event_log_verified"]


def test_a_valid_answer_has_upstreams_fields_and_a_verdict(forge: Forge) -> None:
    answer = ask(forge, evidence(forge))
    assert set(answer) == {"is_valid", "details", "reason", "code", "verdict"}
    assert answer["is_valid"] is True
    assert (answer["reason"], answer["code"]) == (None, None)
    assert set(answer["details"]) == {*DETAILS, "boot_info"}
    assert flags(answer) == (True, True, True)
    assert answer["details"]["tee_variant"] == "dstack-nitro-enclave"
    assert answer["details"]["report_data"] == REPORT_DATA.hex()
    assert answer["details"]["tcb_status"] is None
    assert answer["details"]["acpi_tables_verified"] is False
    assert answer["verdict"]["simulated"] is True


def test_boot_info_is_the_webhooks_object(forge: Forge) -> None:
    info = ask(forge, evidence(forge))["details"]["boot_info"]
    assert info["teeVariant"] == "dstack-nitro-enclave"
    assert info["appId"] == APP_ID.hex()
    assert info["tcbStatus"] == ""
    assert info["composeHash"] == info["osImageHash"]


def test_refused_evidence_is_an_answer(forge: Forge) -> None:
    answer = ask(forge, evidence(forge), now=NOW + 3601)
    assert answer["is_valid"] is False
    assert answer["reason"].startswith("Quote verification failed: document was made 3601 seconds ago")
    assert answer["code"] == "nitro.stale"
    assert set(answer["details"]) == DETAILS
    assert flags(answer) == (False, False, False)
    assert answer["details"]["report_data"] is None
    assert answer["verdict"] is None


def test_n30_a_debug_enclave_is_refused(forge: Forge) -> None:
    answer = ask(forge, evidence(forge, pcrs=dict.fromkeys(PCRS, bytes(48))))
    assert (answer["is_valid"], answer["code"]) == (False, "nitro.debug")


def test_flags_before_a_wrong_image_stay_set(forge: Forge) -> None:
    answer = ask(forge, evidence(forge, config='{"os_image_hash":"' + "11" * 32 + '"}'))
    assert answer["reason"].startswith("OS image hash verification failed: ")
    assert answer["code"] == "identity.os_image.mismatch"
    assert flags(answer) == (True, False, False)
    assert answer["details"]["report_data"] == REPORT_DATA.hex()
    lanes = {lane["name"]: lane["status"] for lane in answer["verdict"]["lanes"]}
    assert lanes["os_image"] == "skipped"


def test_flags_before_an_unreadable_app_id_stay_set(forge: Forge) -> None:
    answer = ask(forge, evidence(forge, events=(RuntimeEvent("app-id", b"short"),)))
    assert answer["reason"].startswith("Event log verification failed: ")
    assert flags(answer) == (True, True, False)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "Internal error: Quote is required"),
        ({"quote": None, "event_log": "[]"}, "Internal error: Quote is required"),
        ({"quote": "00"}, "Internal error: Event log is required"),
        ({"attestation": ""}, "Internal error: Failed to decode attestaion"),
        ({"attestation": "0002"}, "Internal error: Failed to decode attestaion"),
        ({"attestation": "83"}, "Internal error: Failed to decode attestaion"),
    ],
)
def test_undecodable_requests_have_upstreams_reasons(
    request_: dict[str, str], reason: str, forge: Forge
) -> None:
    answer = ask(forge, request_)
    assert (answer["is_valid"], answer["reason"]) == (False, reason)
    assert answer["code"]


def test_with_an_attestation_the_other_fields_are_ignored(forge: Forge) -> None:
    noise = {"quote": "00", "event_log": "no json", "vm_config": "{}", "debug": True, "unknown": [1]}
    assert ask(forge, {**evidence(forge), **noise})["is_valid"] is True


def test_other_platforms_are_refused(forge: Forge) -> None:
    for request in (
        {"quote": "00", "event_log": "[]"},
        {"attestation": encode_v0(Attestation(TdxQuote(b"", ()), (), bytes(64), "")).hex()},
    ):
        assert ask(forge, request)["code"] == "attestation.platform.unsupported"


def test_a_vm_config_in_the_request_does_not_replace_the_envelopes(forge: Forge) -> None:
    wrong = {**evidence(forge), "vm_config": '{"os_image_hash":"' + "11" * 32 + '"}'}
    assert ask(forge, wrong)["is_valid"] is True


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
        (b'{"debug":"yes"}', "verify.body.field"),
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


def test_real_evidence_is_judged(shared_data: Callable[[str], Path]) -> None:
    envelope = shared_data("attestation/upstream/nitro/nitro_attestation.bin").read_bytes()
    body = json.dumps({"attestation": envelope.hex()}).encode()
    service = VerifyService(NitroAnchors.production())
    assert json.loads(service.answer(body, 1766678659))["verdict"]["simulated"] is False
    assert json.loads(service.answer(body, NOW))["code"] == "nitro.stale"


# --- trust anchors from the environment ---


def test_trusts_only_aws_by_default() -> None:
    assert anchors_from({}) == NitroAnchors.production()
    assert anchors_from({FLAG: "true"}) == NitroAnchors.production()


def test_an_external_root_needs_the_flag(tmp_path: Path, forge: Forge) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(forge.made["root"].pem)
    assert len(anchors_from({ROOT: str(path), FLAG: "true"}).anchors) == 2
    for flag in ({}, {FLAG: "false"}, {FLAG: "1"}):
        with pytest.raises(ConfigError) as caught:
            anchors_from({ROOT: str(path), **flag})
        assert caught.value.code == "verify.anchors.flag"


def test_refuses_a_root_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        anchors_from({ROOT: str(tmp_path / "absent"), FLAG: "true"})
    assert caught.value.code == "verify.anchors.file"
