"""App info against values that others computed: samples made for this project, and upstream's fixtures."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.attestation.collateral import parse_bundle
from shared.attestation.envelope import Attestation, GcpTdxQuote, RuntimeEvent, TdxQuote, decode_envelope
from shared.attestation.event_log import SystemEvents, replay, system_events
from shared.attestation.gcp import precheck_gcp
from shared.attestation.identity import app_info, boot_info, info_of
from shared.attestation.image import check_image
from shared.attestation.lanes import expectation, tdx_lanes
from shared.attestation.legacy_request import attestation_of_quote
from shared.attestation.policy import DAY, Policy, TcbStatus, TdxPolicy
from shared.attestation.registers import check_boot_log
from shared.attestation.roots import INTEL_SGX_ROOT
from shared.attestation.tdx import VerifiedTdx
from shared.attestation.tdx_quote import parse_quote
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Verdict, skipped, verified
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from tests.docs.references import REPOSITORY
from tests.shared.attestation.forgery import Forge
from tests.shared.attestation.guest_forgery import (
    APP_ID,
    BOOT_EVENTS,
    COMPOSE,
    EVENTS,
    GCP_IMAGE,
    INSTANCE,
    MR_CONFIG_V1,
    PROVIDER,
    SCRIPT,
    UNVERIFIED,
    GcpGuest,
    TdxGuest,
    TpmGuest,
)
from tests.shared.measurement.made import lite_quoted

SAMPLES = REPOSITORY / "tests" / "data" / "attestation" / "synthetic"
EXPECTED: dict[str, Any] = json.loads((SAMPLES / "expected.json").read_text())
AT: int = EXPECTED["verify_at_unix"]
OLD_AND_LEGACY = Policy(tdx=TdxPolicy(max_collateral_age=10 * 365 * DAY, allow_unverified_image=True))


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def as_verified(attestation: Attestation, evidence: Any, lanes_of: VerifiedTdx) -> VerifiedAttestation:
    """Evidence that nobody verified, for formulas alone: its collateral is gone or its root is not here."""
    events = system_events(attestation.runtime_events)
    lanes = tdx_lanes(lanes_of, events, expectation(None), boot_log=skipped("not looked at"))
    verdict = Verdict(
        platform=attestation.tee_variant,
        anchors=(),
        simulated=False,
        made_at=None,
        verified_at=AT,
        lanes=lanes,
    )
    return VerifiedAttestation(attestation, evidence, events, OLD_AND_LEGACY, verdict)


def as_verified_tdx(quote: bytes, ppid: str) -> VerifiedTdx:
    return VerifiedTdx(
        quote=parse_quote(quote),
        status=TcbStatus.UP_TO_DATE,
        advisory_ids=(),
        tcb_reason="",
        tcb_evaluation_number=0,
        ppid=bytes.fromhex(ppid),
        fmspc=bytes(6),
        trust_anchor=INTEL_SGX_ROOT,
        collateral_issued=0,
        valid_until=0,
    )


# --- samples ---


@pytest.mark.parametrize("name", ["quote_v4", "quote_v5_td10", "quote_v5_td15"])
def test_a_sample_tdx_quote_gives_the_computed_identity(name: str) -> None:
    quote = (SAMPLES / "tdx" / f"{name}.bin").read_bytes()
    log = (SAMPLES / "tdx" / "event_log.json").read_text()
    evidence = verify_attestation(
        attestation_of_quote(quote, log, ""),
        now=AT,
        anchors=TrustAnchors.production().with_extra((SAMPLES / "tdx" / "root-ca.pem").read_bytes()),
        policy=OLD_AND_LEGACY,
        endorsements=parse_bundle((SAMPLES / "tdx" / "collateral.json").read_bytes()),
    )
    want = EXPECTED["tdx"]
    shown = app_info(evidence).to_json()
    for field in ("app_id", "compose_hash", "instance_id", "device_id", "mr_system", "mr_aggregated"):
        assert shown[field] == want[field], field
    assert app_info(evidence, boot_time=True).mr_system.hex() == want["mr_system_boottime"]
    assert evidence.verdict.tcb_status == want["status"]


@pytest.mark.parametrize("name", ["v0_gcp_tdx", "v1_gcp_tdx"])
def test_the_sample_gcp_envelope_gives_the_computed_identity(name: str) -> None:
    attestation = decode_envelope((SAMPLES / "envelopes" / f"{name}.bin").read_bytes())
    assert isinstance(attestation.quote, GcpTdxQuote)
    checked = precheck_gcp(attestation.quote, attestation.runtime_events)
    want = EXPECTED["gcp"]
    for index in (0, 2, 14):
        assert checked.pcrs[index].hex() == want[f"pcr{index}"]
    tdx = as_verified_tdx(attestation.quote.tdx.quote, EXPECTED["tdx"]["ppid"])

    class Gcp:  # what the formulas read of verified GCP evidence
        pcrs = checked.pcrs
        pcr2_events = checked.pcr2_events

    Gcp.tdx = tdx  # type: ignore[attr-defined] # as above
    evidence = check_image(as_verified(attestation, Gcp(), tdx))
    full, boot = info_of(evidence), info_of(evidence, boot_time=True)
    for field in ("os_image_hash", "mr_system", "mr_aggregated", "device_id"):
        assert getattr(full, field).hex() == want[field], field
    assert boot.mr_system.hex() == want["mr_system_boottime"]
    assert boot.mr_aggregated.hex() == want["mr_aggregated_boottime"]


# --- upstream's fixtures ---


@pytest.mark.parametrize("name", ["quote-report.json", "tdx-lite-getquote.json", "v0_tdx_attestation.bin"])
def test_a_real_tdx_guest_gives_the_computed_identity(name: str, shared_data: Callable[[str], Path]) -> None:
    """Registers, log and config are real; the signature's collateral is not kept, so it is taken as good."""
    want = json.loads(shared_data("attestation/upstream/expected/tdx.json").read_text())[name]
    if name.endswith(".json"):
        request = json.loads(shared_data(f"attestation/upstream/verifier/{name}").read_text())
        quote = bytes.fromhex(request["quote"])
        attestation = attestation_of_quote(quote, request["event_log"], request["vm_config"])
    else:
        attestation = decode_envelope(shared_data(f"attestation/upstream/tdx/{name}").read_bytes())
    assert isinstance(attestation.quote, TdxQuote)
    tdx = as_verified_tdx(attestation.quote.quote, want["ppid"])
    report = tdx.quote.report
    assert replay(attestation.runtime_events, "sha384") == report.rtmrs[3]
    assert check_boot_log(report, attestation.quote.event_log) == verified(
        "replayed to RTMR0, RTMR1 and RTMR2"
    )
    evidence = check_image(as_verified(attestation, tdx, tdx))
    for boot_time, key in ((False, "app_info"), (True, "app_info_boottime")):
        shown = info_of(evidence, boot_time=boot_time).to_json()
        for field in shown.keys() & want[key].keys():
            assert shown[field] == want[key][field], (key, field)
    if name.startswith("tdx-lite"):
        assert boot_info(evidence).os_image_hash.hex() == want["app_info"]["os_image_hash"]


@pytest.mark.parametrize("name", ["nitro_attestation.bin", "nitro_attestation_nsm_qvl.bin"])
def test_a_real_enclave_gives_the_computed_identity(name: str, shared_data: Callable[[str], Path]) -> None:
    want = json.loads(shared_data("attestation/upstream/expected/nitro.json").read_text())[name]
    envelope = shared_data(f"attestation/upstream/nitro/{name}").read_bytes()
    now = want["timestamp"] // 1000 + 1
    info = app_info(verify_attestation(envelope, now=now, anchors=TrustAnchors.production()))
    image = want["image_hash_sha256"]
    for field in ("os_image_hash", "compose_hash", "mr_system", "mr_aggregated"):
        assert getattr(info, field).hex() == image, field
    assert info.device_id.hex() == want["device_id_at_312dc605"]
    assert info.app_id.hex() == dict(want["runtime_events"]).get("app-id", "")
    # sha256(PCR4): both enclaves ran on one instance
    later = "f1e60ca892d43cd58b25acf6bcbd1cb609209d7113d87a14646a247dcc01dd75"
    assert info.device_id_pcr4.hex() == later


# --- formulas ---


def test_tdx_formulas(tdx_guest: TdxGuest) -> None:
    boot = b"".join(getattr(lite_quoted(), name) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
    evidence = tdx_guest.checked(mr_config_id=MR_CONFIG_V1)
    info = app_info(evidence)
    assert info.mr_system == sha256(boot, sha256(PROVIDER))
    assert info.mr_aggregated == sha256(boot, replay(EVENTS, "sha384"), MR_CONFIG_V1, bytes(96))
    assert (info.app_id, info.compose_hash, info.instance_id) == (APP_ID, COMPOSE, INSTANCE)
    assert (info.key_provider_info, info.init_script_hashes) == (PROVIDER, (SCRIPT,))
    assert (info.device_id_pcr4, info.self_asserted) == (b"", ())
    early = app_info(evidence, boot_time=True)
    assert early.mr_system == sha256(boot, bytes(32))
    assert early.mr_aggregated == sha256(boot, replay(BOOT_EVENTS, "sha384"), MR_CONFIG_V1, bytes(96))
    assert early.key_provider_info == b""


@pytest.mark.parametrize("field", ["mr_config_id", "mr_owner", "mr_owner_config"])
def test_the_three_configured_ids_count_when_one_is_set(field: str, tdx_guest: TdxGuest) -> None:
    plain = app_info(tdx_guest.checked()).mr_aggregated
    boot = b"".join(getattr(lite_quoted(), name) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
    assert plain == sha256(boot, replay(EVENTS, "sha384"))
    value = MR_CONFIG_V1
    ids = [value if name == field else bytes(48) for name in ("mr_config_id", "mr_owner", "mr_owner_config")]
    assert app_info(tdx_guest.checked(**{field: value})).mr_aggregated == sha256(
        boot, replay(EVENTS, "sha384"), *ids
    )


def test_gcp_formulas(gcp_guest: GcpGuest) -> None:
    evidence = gcp_guest.verify()
    info = app_info(evidence)
    pcrs = evidence.evidence.pcrs  # type: ignore[union-attr] # this evidence is GCP's
    assert info.mr_system == sha256(GCP_IMAGE, sha256(PROVIDER))
    assert info.mr_aggregated == sha256(pcrs[0], pcrs[2], replay(EVENTS, "sha256"))
    early = app_info(evidence, boot_time=True)
    assert early.mr_system == sha256(GCP_IMAGE, bytes(32))
    assert early.mr_aggregated == sha256(pcrs[0], pcrs[2], replay(BOOT_EVENTS, "sha256"))


def test_nitro_tpm_formulas(tpm_guest: TpmGuest) -> None:
    evidence = tpm_guest.verify()
    info = app_info(evidence)
    pcrs = evidence.evidence.document.pcrs  # type: ignore[union-attr] # this evidence is AWS's
    boot = b"".join(pcrs[index] for index in (4, 7, 12))
    assert info.mr_system == sha256(boot, sha256(PROVIDER))
    assert info.mr_aggregated == sha256(boot, replay(EVENTS, "sha384"))
    assert info.device_id == sha256(b"i-0123456789abcdef0")
    assert app_info(evidence, boot_time=True).mr_system == sha256(boot, bytes(32))


def test_an_empty_key_provider_is_zeros_and_not_the_hash_of_nothing(tpm_guest: TpmGuest) -> None:
    evidence = tpm_guest.checked(events=BOOT_EVENTS)
    pcrs = evidence.evidence.document.pcrs  # type: ignore[union-attr] # this evidence is AWS's
    assert app_info(evidence).mr_system == sha256(*(pcrs[index] for index in (4, 7, 12)), bytes(32))


def test_boot_time_values_do_not_change_with_what_comes_later(tdx_guest: TdxGuest) -> None:
    before, after = tdx_guest.checked(events=BOOT_EVENTS), tdx_guest.checked(events=EVENTS)
    assert app_info(before, boot_time=True) == app_info(after, boot_time=True)
    assert app_info(before) != app_info(after)


def test_boot_info_is_app_info_and_the_vendors_words(tdx_guest: TdxGuest) -> None:
    evidence = tdx_guest.checked()
    info, wire = app_info(evidence), boot_info(evidence).to_wire()
    assert wire["teeVariant"] == "dstack-tdx"
    assert wire["mrSystem"] == info.mr_system.hex()
    assert wire["mrAggregated"] == info.mr_aggregated.hex()
    assert wire["deviceId"] == info.device_id.hex()
    assert wire["keyProviderInfo"] == PROVIDER.hex()
    assert (wire["tcbStatus"], wire["advisoryIds"]) == ("UpToDate", [])
    assert boot_info(evidence, boot_time=True).key_provider_info == b""


def test_device_id_is_of_the_platforms_own_name(tdx_guest: TdxGuest, gcp_guest: GcpGuest) -> None:
    for evidence in (tdx_guest.verify(), gcp_guest.verify()):
        tdx = getattr(evidence.evidence, "tdx", evidence.evidence)
        assert len(tdx.ppid) == 16
        assert app_info(evidence).device_id == sha256(tdx.ppid)


# --- N-36: what an enclave claims ---


def test_n36_every_claim_of_an_enclave_is_labelled(forge: Forge) -> None:
    events = (
        RuntimeEvent("app-id", APP_ID),
        RuntimeEvent("compose-hash", COMPOSE),
        RuntimeEvent("init-script-hash", SCRIPT),
        RuntimeEvent("instance-id", INSTANCE),
        RuntimeEvent("key-provider", PROVIDER),
    )
    evidence = verify_attestation(forge.envelope(events), now=AT, anchors=forge.anchors)
    lanes = check_image(evidence).verdict.to_json()["lanes"]
    for name in ("runtime_events", "app_id", "instance_id", "key_provider", "init_scripts"):
        assert lanes[name]["status"] == "self_asserted", name
    # the hash of the image stands for it, whatever the event says
    assert lanes["compose_hash"]["status"] == "verified"
    info = app_info(evidence)
    assert info.compose_hash == info.os_image_hash != COMPOSE
    assert (info.instance_id, info.key_provider_info, info.init_script_hashes) == (b"", b"", ())
    assert info.self_asserted == ("app_id",)


def test_n36_a_claimed_compose_hash_never_becomes_the_measured_one(forge: Forge) -> None:
    evidence = verify_attestation(
        forge.envelope((RuntimeEvent("compose-hash", COMPOSE),)), now=AT, anchors=forge.anchors
    )
    assert evidence.verdict.lanes.compose_hash.status.value == "skipped"
    assert boot_info(evidence).compose_hash == boot_info(evidence).os_image_hash


def test_an_unverified_image_is_among_the_self_asserted(tdx_guest: TdxGuest) -> None:
    shown = app_info(tdx_guest.checked(UNVERIFIED, config='{"os_image_hash":"' + "ab" * 32 + '"}')).to_json()
    assert shown["os_image_hash"] == "ab" * 32
    assert shown["self_asserted"] == ["os_image_hash"]
    assert "device_id_pcr4" not in shown


def test_no_events_are_no_system_events() -> None:
    assert system_events(()) == SystemEvents()
