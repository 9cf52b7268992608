"""TDX evidence through the one entrance: what is bound to what, and what is refused."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from enclave.simulator.intel_documents import level, platform_tcb
from enclave.simulator.tdx import Domain, SimulatedTdx
from shared.attestation.collateral import parse_bundle
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import (
    Attestation,
    RuntimeEvent,
    TdxEvent,
    TdxQuote,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.image import check_image
from shared.attestation.legacy_request import attestation_of_quote
from shared.attestation.policy import DAY, Policy, TcbStatus, TdxPolicy
from shared.attestation.report_data import report_data
from shared.attestation.stripped import strip
from shared.attestation.tdx import CollateralCache
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifierCache, verify_attestation
from shared.errors import PolicyDenied
from tests.docs.references import REPOSITORY
from tests.shared.attestation.forgery import NOW, REPORT_DATA, refuses
from tests.shared.attestation.guest_forgery import (
    BOOT_EVENTS,
    COMPOSE,
    EVENTS,
    READY,
    UNVERIFIED,
    TdxGuest,
    boot_log,
    runtime_log,
)

SAMPLES = REPOSITORY / "tests" / "data" / "attestation" / "synthetic"
CONTENT = bytes(range(91))


def tdx_quote(attestation: Attestation) -> TdxQuote:
    assert isinstance(attestation.quote, TdxQuote)
    return attestation.quote


def with_log(attestation: Attestation, log: Sequence[TdxEvent]) -> Attestation:
    quote = msgspec.structs.replace(tdx_quote(attestation), event_log=tuple(log))
    return msgspec.structs.replace(attestation, quote=quote)


def test_an_envelope_and_its_bytes_give_one_verdict(tdx_guest: TdxGuest) -> None:
    attestation = tdx_guest.attestation()
    from_bytes = verify_attestation(
        encode_envelope(attestation),
        now=NOW,
        anchors=tdx_guest.anchors,
        endorsements=tdx_guest.endorsements,
    )
    assert from_bytes == tdx_guest.verify(attestation)


def test_the_verdict_names_platform_anchor_and_tcb(tdx_guest: TdxGuest) -> None:
    verdict = tdx_guest.verify(now=NOW + 5).verdict
    assert verdict.platform == "dstack-tdx"
    assert verdict.anchors == (tdx_guest.anchors.tdx[1].name,)
    assert verdict.simulated
    assert (verdict.made_at, verdict.verified_at) == (None, NOW + 5)
    assert (verdict.tcb_status, verdict.advisory_ids) == ("UpToDate", ())
    assert verdict.disabled_checks == ()


def test_evidence_is_valid_until_its_collateral_is_too_old(tdx_guest: TdxGuest) -> None:
    assert tdx_guest.verify().valid_until == NOW - 60 + 7 * DAY + 1


def test_every_lane_of_a_lite_guest(tdx_guest: TdxGuest) -> None:
    verdict = check_image(tdx_guest.verify(report_data=REPORT_DATA)).verdict
    others = {name: lane.status for name, lane in verdict.lanes.items() if lane.status is not Status.VERIFIED}
    assert others == {"freshness": Status.SKIPPED, "mr_config": Status.SKIPPED}


def test_image_lanes_are_skipped_until_the_image_is_checked(tdx_guest: TdxGuest) -> None:
    lanes = tdx_guest.verify().verdict.lanes
    for lane in (lanes.firmware, lanes.os_image, lanes.command_line, lanes.mr_config):
        assert lane.status is Status.SKIPPED


def test_what_the_guest_did_not_record_is_not_applicable(tdx_guest: TdxGuest) -> None:
    lanes = tdx_guest.checked(events=()).verdict.lanes
    for lane in (lanes.app_id, lanes.compose_hash, lanes.instance_id, lanes.key_provider, lanes.init_scripts):
        assert lane.status is Status.NOT_APPLICABLE
    assert lanes.runtime_events.status is Status.VERIFIED


def test_a_callers_collateral_cache_is_used(tdx_guest: TdxGuest) -> None:
    collateral = CollateralCache()
    cache = VerifierCache(collateral)
    verify_attestation(
        tdx_guest.attestation(),
        now=NOW,
        anchors=tdx_guest.anchors,
        endorsements=tdx_guest.endorsements,
        cache=cache,
    )
    assert len(collateral) == 1
    assert cache.collateral is collateral


def test_a_cache_makes_its_collateral_when_it_is_needed() -> None:
    cache = VerifierCache()
    assert cache.collateral is cache.collateral


def test_the_stripped_form_verifies_and_says_so(tdx_guest: TdxGuest) -> None:
    verdict = check_image(tdx_guest.verify(strip(tdx_guest.attestation()))).verdict
    assert verdict.lanes.boot_log.status is Status.SKIPPED
    assert "RTMR0, RTMR1, RTMR2" in verdict.lanes.boot_log.reason
    assert verdict.lanes.os_image.status is Status.VERIFIED


def test_events_of_version_two_are_verified_in_every_form(tdx_guest: TdxGuest) -> None:
    events = [msgspec.structs.replace(event, version=2) for event in EVENTS]
    attestation = tdx_guest.attestation(events=events)
    assert encode_envelope(attestation)[0] != 0
    found = tdx_guest.verify(decode_envelope(encode_envelope(attestation)))
    assert found.events.compose_hash == COMPOSE
    assert tdx_guest.verify(strip(attestation)).events.compose_hash == COMPOSE


def test_n31_simulated_evidence_is_refused_in_production(tdx_guest: TdxGuest) -> None:
    with refuses("tdx.anchor"):
        tdx_guest.verify(anchors=TrustAnchors.production())


def test_evidence_without_collateral_is_refused(tdx_guest: TdxGuest) -> None:
    with refuses("tdx.collateral.missing"):
        tdx_guest.verify(endorsements=NO_ENDORSEMENTS)


def test_n14_collateral_older_than_the_policy_allows_is_refused(tdx_guest: TdxGuest) -> None:
    with refuses("tdx.collateral.age"):
        tdx_guest.verify(now=NOW + 7 * DAY)
    week = Policy(tdx=TdxPolicy(max_collateral_age=14 * DAY))
    found = tdx_guest.verify(now=NOW + 7 * DAY, policy=week)
    assert found.verdict.disabled_checks == (f"tdx.max_collateral_age is {14 * DAY} s",)


def test_n15_a_weaker_tcb_status_needs_a_policy_and_shows(tdx_guest: TdxGuest) -> None:
    levels = [level(platform_tcb(), "SWHardeningNeeded")]
    weak = Endorsements(tdx=(tdx_guest.intel.collateral(NOW - 60, tcb_info={"tcbLevels": levels}),))
    with refuses("tdx.tcb.status", PolicyDenied):
        tdx_guest.verify(endorsements=weak)
    accepting = Policy(tdx=TdxPolicy(accept=(TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED)))
    verdict = tdx_guest.verify(endorsements=weak, policy=accepting).verdict
    assert verdict.tcb_status == "SWHardeningNeeded"
    assert verdict.disabled_checks == ("tdx.accept has SWHardeningNeeded",)


def test_n16_a_debug_domain_is_refused_also_where_its_image_is_not_checked(tdx_guest: TdxGuest) -> None:
    with refuses("tdx.attributes.debug"):
        tdx_guest.checked(UNVERIFIED, td_attributes=1 | 1 << 28)


# --- report_data ---


def test_expected_report_data_is_compared(tdx_guest: TdxGuest) -> None:
    found = tdx_guest.verify(report_data=REPORT_DATA)
    assert found.verdict.lanes.report_data_expected.status is Status.VERIFIED


@pytest.mark.parametrize(
    "carried",
    [
        report_data("app-data", CONTENT),
        report_data("ratls-cert", CONTENT, "sha256"),
        report_data("ratls-cert", CONTENT, "keccak512"),
        report_data("ratls-cert", CONTENT[:-1]),
        hashlib.sha512(b"ratls-cert" + CONTENT).digest(),
        bytes(64),
    ],
    ids=["tag", "sha256", "keccak", "content", "no colon", "zero"],
)
def test_n17_report_data_of_another_tag_hash_or_key_is_refused(carried: bytes, tdx_guest: TdxGuest) -> None:
    with refuses("attestation.report_data"):
        tdx_guest.verify(
            tdx_guest.attestation(report_data=carried), report_data=report_data("ratls-cert", CONTENT)
        )


def test_n17_the_quotes_report_data_must_be_the_envelopes(tdx_guest: TdxGuest) -> None:
    """An envelope that tells what the caller wants, around a quote over something else."""
    with refuses("tdx.report_data"):
        tdx_guest.verify(tdx_guest.attestation(quoted=bytes(64)), report_data=REPORT_DATA)


def test_n17_raw_bytes_that_equal_a_tagged_value_pass_as_it(tdx_guest: TdxGuest) -> None:
    """A tag is no boundary (upstream #1266): whoever chooses all 64 bytes can choose a tagged value.

    A guest must not sign bytes that its app chose where a tag's meaning matters to somebody; a verifier
    cannot tell the two.
    """
    tagged = report_data("ratls-cert", CONTENT)
    raw = report_data("app-data", tagged, "raw")
    assert tdx_guest.verify(tdx_guest.attestation(report_data=raw), report_data=tagged)


def test_n17_a_pods_payload_must_hash_to_its_report_data(tdx_guest: TdxGuest) -> None:
    payload = "what the pod says"
    pod = tdx_guest.attestation(report_data=report_data("app-data", payload.encode()))
    told = msgspec.structs.replace(pod, report_data_payload=payload)
    assert tdx_guest.verify(decode_envelope(encode_envelope(told)))
    with refuses("envelope.pod.report_data"):
        tdx_guest.verify(msgspec.structs.replace(pod, report_data_payload="something else"))


def test_n18_a_quote_over_an_old_challenge_is_refused(tdx_guest: TdxGuest) -> None:
    """A quote has no time of its own: the challenge alone makes it fresh."""
    old, new = bytes([1]) * 64, bytes([2]) * 64
    replayed = tdx_guest.attestation(report_data=old)
    assert tdx_guest.verify(replayed, report_data=old)
    with refuses("attestation.report_data"):
        tdx_guest.verify(replayed, report_data=new)


def test_n18_an_old_quote_in_an_envelope_for_the_new_challenge_is_refused(tdx_guest: TdxGuest) -> None:
    old, new = bytes([1]) * 64, bytes([2]) * 64
    forged = msgspec.structs.replace(tdx_guest.attestation(report_data=old), report_data=new)
    with refuses("tdx.report_data"):
        tdx_guest.verify(forged, report_data=new)


def test_n18_without_an_expectation_the_verdict_says_that_nothing_is_fresh(tdx_guest: TdxGuest) -> None:
    lanes = tdx_guest.verify().verdict.lanes
    assert lanes.freshness.status is lanes.report_data_expected.status is Status.SKIPPED


# --- the two event lists, and the registers ---


@pytest.mark.parametrize(
    "shown",
    [
        EVENTS[:-1],
        (*EVENTS, READY),
        (EVENTS[1], EVENTS[0], *EVENTS[2:]),
        (*EVENTS[:2], RuntimeEvent("compose-hash", b"\x99" * 32), *EVENTS[3:]),
        (*EVENTS[:2], RuntimeEvent("compose_hash", COMPOSE), *EVENTS[3:]),
        (),
    ],
    ids=["shorter", "longer", "reordered", "payload", "name", "empty"],
)
def test_n07_an_event_log_that_tells_another_story_is_refused(
    shown: tuple[RuntimeEvent, ...], tdx_guest: TdxGuest
) -> None:
    attestation = with_log(tdx_guest.attestation(), [*boot_log(), *runtime_log(shown)])
    with refuses("event_log.disagree"):
        tdx_guest.verify(attestation)


def test_n08_a_payload_that_was_altered_in_both_lists_is_refused(tdx_guest: TdxGuest) -> None:
    """The digest is the right one's: it is recomputed, and so it no longer fits."""
    told = (*EVENTS[:2], RuntimeEvent("compose-hash", b"\x99" * 32), *EVENTS[3:])
    log = [
        msgspec.structs.replace(shown, digest=real.digest)
        for shown, real in zip(runtime_log(told), runtime_log(EVENTS), strict=True)
    ]
    with refuses("event_log.digest"):
        tdx_guest.verify(tdx_guest.attestation(told=told, log=[*boot_log(), *log]))
    stripped = [msgspec.structs.replace(event, digest=b"") for event in log]
    with refuses("tdx.rtmr3"):
        tdx_guest.verify(tdx_guest.attestation(told=told, log=[*boot_log(), *stripped]))


def test_n08_a_right_payload_with_an_altered_digest_is_refused(tdx_guest: TdxGuest) -> None:
    log = runtime_log(EVENTS)
    log[2] = msgspec.structs.replace(log[2], digest=bytes(48))
    with refuses("event_log.digest"):
        tdx_guest.verify(tdx_guest.attestation(log=[*boot_log(), *log]))


@pytest.mark.parametrize("preimage", [None, b"", b"{}"])
def test_n08_a_version_two_event_needs_its_preimage(preimage: bytes | None, tdx_guest: TdxGuest) -> None:
    events = (msgspec.structs.replace(EVENTS[0], version=2), *EVENTS[1:])
    log = runtime_log(events)
    log[0] = msgspec.structs.replace(log[0], preimage=preimage)
    with refuses("event_log.preimage"):
        tdx_guest.verify(tdx_guest.attestation(events=events, log=[*boot_log(), *log]))


@pytest.mark.parametrize(
    "told",
    [
        (EVENTS[1], EVENTS[0], *EVENTS[2:]),
        (EVENTS[0], *EVENTS),
        EVENTS[:-1],
        (*EVENTS[:-1], RuntimeEvent("started", b"by nobody")),
    ],
    ids=["reordered", "duplicated", "missing", "altered"],
)
def test_n09_events_that_were_not_measured_so_are_refused(
    told: tuple[RuntimeEvent, ...], tdx_guest: TdxGuest
) -> None:
    if told[0] == told[1]:
        with refuses("event_log.duplicate"):
            tdx_guest.verify(tdx_guest.attestation(told=told))
        return
    with refuses("tdx.rtmr3"):
        tdx_guest.verify(tdx_guest.attestation(told=told))


def test_n09_two_measured_compose_hashes_are_refused(tdx_guest: TdxGuest) -> None:
    events = (*BOOT_EVENTS[:3], RuntimeEvent("compose-hash", b"\x99" * 32), *EVENTS[3:])
    with refuses("event_log.duplicate"):
        tdx_guest.checked(events=events)


def test_n09_a_compose_hash_of_the_app_does_not_count(tdx_guest: TdxGuest) -> None:
    """An app may emit any event, but only after system-ready."""
    events = (*EVENTS, RuntimeEvent("compose-hash", b"\x99" * 32), RuntimeEvent("app-id", b"\x98" * 20))
    assert tdx_guest.checked(events=events).events.compose_hash == COMPOSE
    late = tdx_guest.checked(events=(READY, RuntimeEvent("compose-hash", b"\x99" * 32)))
    assert late.events.compose_hash == b""
    assert late.verdict.lanes.compose_hash.status is Status.NOT_APPLICABLE


def test_n09_identity_behind_its_boundary_is_refused(tdx_guest: TdxGuest) -> None:
    moved = (*BOOT_EVENTS[:2], BOOT_EVENTS[5], BOOT_EVENTS[2], READY)
    with refuses("event_log.order"):
        tdx_guest.checked(events=moved)


def test_n22_a_boot_log_that_was_not_measured_is_refused(tdx_guest: TdxGuest) -> None:
    for index in (0, 9, 14, 19):
        log = boot_log()
        log[index] = msgspec.structs.replace(log[index], digest=bytes(48))
        with refuses("tdx.boot_log"):
            tdx_guest.verify(tdx_guest.attestation(log=[*log, *runtime_log(EVENTS)]))


def test_n22_a_boot_log_that_was_cut_is_refused(tdx_guest: TdxGuest) -> None:
    with refuses("tdx.boot_log"):
        tdx_guest.verify(tdx_guest.attestation(log=[*boot_log()[:-1], *runtime_log(EVENTS)]))


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (TdxEvent(4, 1, bytes(48), "", b""), "event_log.register"),
        (TdxEvent(2, 0x08000001, bytes(48), "app-id", bytes(20)), "event_log.type"),
        (TdxEvent(3, 1, bytes(48), "app-id", bytes(20)), "event_log.type"),
    ],
)
def test_n07_a_runtime_event_in_another_place_is_refused(
    event: TdxEvent, code: str, tdx_guest: TdxGuest
) -> None:
    with refuses(code):
        tdx_guest.verify(tdx_guest.attestation(log=[event, *boot_log(), *runtime_log(EVENTS)]))


# --- samples ---


def test_a_sample_quote_with_its_event_log_verifies() -> None:
    """Evidence made by another program, and upstream's own form of it."""
    quote = (SAMPLES / "tdx" / "quote_v5_td15.bin").read_bytes()
    log = (SAMPLES / "tdx" / "event_log.json").read_text()
    anchors = TrustAnchors.production().with_extra((SAMPLES / "tdx" / "root-ca.pem").read_bytes())
    old = Policy(tdx=TdxPolicy(max_collateral_age=10 * 365 * DAY))
    found = verify_attestation(
        attestation_of_quote(quote, log, ""),
        now=NOW,
        anchors=anchors,
        policy=old,
        endorsements=parse_bundle((SAMPLES / "tdx" / "collateral.json").read_bytes()),
    )
    assert found.events.app_id == b"\x11" * 20


def test_a_real_quote_is_intels_and_wants_collateral(shared_data: Callable[[str], Path]) -> None:
    envelope = shared_data("attestation/upstream/tdx/v0_tdx_attestation.bin").read_bytes()
    with refuses("tdx.collateral.missing"):
        verify_attestation(envelope, now=NOW, anchors=TrustAnchors.production())


def test_an_old_layout_verifies_like_the_new(tdx_guest: TdxGuest) -> None:
    td = SimulatedTdx(tdx_guest.intel, Domain(), version=5)
    attestation = Attestation(TdxQuote(td.quote(REPORT_DATA), ()), (), REPORT_DATA, "")
    assert tdx_guest.verify(attestation).verdict.platform == "dstack-tdx"
