"""GCP evidence through the one entrance."""

import hashlib

import msgspec

from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import GcpTdxQuote, RuntimeEvent, TdxEvent, decode_envelope, encode_envelope
from shared.attestation.image import check_image
from shared.attestation.policy import Firmware, Revocation
from shared.attestation.stripped import strip
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifierCache, verify_attestation
from shared.errors import PolicyDenied
from tests.shared.attestation.forgery import NOW, REPORT_DATA, refuses
from tests.shared.attestation.guest_forgery import EVENTS, TABLE_EVENT, GcpGuest, gcp_policy
from tests.shared.measurement.made import h48


def test_an_envelope_and_its_bytes_give_one_verdict(gcp_guest: GcpGuest) -> None:
    attestation = gcp_guest.attestation()
    decoded = decode_envelope(encode_envelope(attestation))
    assert gcp_guest.verify(decoded) == gcp_guest.verify(attestation)


def test_every_lane_of_a_guest(gcp_guest: GcpGuest) -> None:
    """With the policy that pins all that a policy can pin."""
    policy = gcp_policy(rtmr2=(h48("rtmr2"),))
    verified = gcp_guest.verify(policy=policy, report_data=REPORT_DATA)
    verdict = check_image(verified).verdict
    others = {name: lane.status for name, lane in verdict.lanes.items() if lane.status is not Status.VERIFIED}
    skipped = Status.SKIPPED
    assert others == {"freshness": skipped, "boot_log": skipped, "mr_config": skipped}


def test_the_verdict_names_both_anchors(gcp_guest: GcpGuest) -> None:
    verdict = gcp_guest.verify().verdict
    assert verdict.platform == "dstack-gcp-tdx"
    assert verdict.anchors == (gcp_guest.anchors.tdx[1].name, gcp_guest.anchors.gcp_tpm[1].name)
    assert verdict.simulated
    assert (verdict.tcb_status, verdict.advisory_ids, verdict.disabled_checks) == ("UpToDate", (), ())


def test_a_complete_boot_log_is_replayed(gcp_guest: GcpGuest) -> None:
    log = [
        msgspec.structs.replace(TABLE_EVENT, imr=0, digest=h48("firmware")),
        TABLE_EVENT,
        msgspec.structs.replace(TABLE_EVENT, imr=2, digest=h48("cmdline")),
    ]
    rtmrs = tuple(hashlib.sha384(bytes(48) + event.digest).digest() for event in log)
    verdict = gcp_guest.checked(log=log, rtmrs=rtmrs).verdict
    assert verdict.lanes.boot_log.status is Status.VERIFIED
    with refuses("tdx.boot_log"):
        gcp_guest.checked(log=log)


def test_the_stripped_form_verifies(gcp_guest: GcpGuest) -> None:
    stripped = strip(gcp_guest.attestation(log=(TABLE_EVENT,)))
    assert gcp_guest.verify(stripped).verdict.lanes.boot_log.status is Status.SKIPPED


def test_a_callers_cache_is_used(gcp_guest: GcpGuest) -> None:
    cache = VerifierCache()
    verify_attestation(
        gcp_guest.attestation(),
        now=NOW,
        anchors=gcp_guest.anchors,
        endorsements=gcp_guest.endorsements,
        cache=cache,
    )
    assert len(cache.collateral) == 1


def test_a_host_that_adds_to_the_command_line_shows_where_nobody_judges_it(gcp_guest: GcpGuest) -> None:
    lane = gcp_guest.verify().verdict.lanes.command_line
    assert lane.status is Status.SKIPPED
    assert "RTMR2" in lane.reason


def test_n24_a_command_line_that_the_policy_does_not_list_is_refused(gcp_guest: GcpGuest) -> None:
    with refuses("gcp.rtmr2", PolicyDenied):
        gcp_guest.checked(
            gcp_policy(rtmr2=(h48("rtmr2"),)), rtmrs=(bytes(48), bytes(48), h48("with an addition"))
        )


def test_n22_firmware_is_a_list_of_the_policy(gcp_guest: GcpGuest) -> None:
    other = (hashlib.sha256(b"another firmware").digest(),)
    attestation = gcp_guest.attestation(firmware=other)
    with refuses("gcp.firmware", PolicyDenied):
        gcp_guest.verify(attestation)
    pcr0 = hashlib.sha256(bytes(32) + other[0]).digest()
    found = gcp_guest.verify(
        attestation, policy=gcp_policy(firmware=(Firmware(pcr0, "measured by us"),))
    ).verdict
    assert found.lanes.firmware.reason == "PCR0 is in the policy's list: measured by us"
    assert found.disabled_checks == (f"gcp.firmware accepts {pcr0.hex()} (measured by us)",)


def test_n21_halves_of_two_machines_are_refused(gcp_guest: GcpGuest) -> None:
    one, other = gcp_guest.attestation(), gcp_guest.attestation()
    assert isinstance(one.quote, GcpTdxQuote)
    assert isinstance(other.quote, GcpTdxQuote)
    mixed = msgspec.structs.replace(one, quote=GcpTdxQuote(one.quote.tdx, other.quote.tpm))
    with refuses("gcp.binding"):
        gcp_guest.verify(mixed)


def test_n17_the_tdx_quotes_report_data_must_be_the_envelopes(gcp_guest: GcpGuest) -> None:
    with refuses("tdx.report_data"):
        gcp_guest.verify(gcp_guest.attestation(quoted=bytes(64)), report_data=REPORT_DATA)


def test_n18_evidence_over_an_old_challenge_is_refused(gcp_guest: GcpGuest) -> None:
    with refuses("attestation.report_data"):
        gcp_guest.verify(report_data=bytes([2]) * 64)


def test_n07_an_event_log_that_tells_another_story_is_refused(gcp_guest: GcpGuest) -> None:
    attestation = gcp_guest.attestation()
    told = (*EVENTS[:2], RuntimeEvent("compose-hash", b"\x99" * 32), *EVENTS[3:])
    with refuses("event_log.disagree"):
        gcp_guest.verify(msgspec.structs.replace(attestation, runtime_events=told))


def test_n09_events_that_were_not_measured_so_are_refused(gcp_guest: GcpGuest) -> None:
    attestation = gcp_guest.attestation(log=())
    told = (EVENTS[1], EVENTS[0], *EVENTS[2:])
    assert isinstance(attestation.quote, GcpTdxQuote)
    tdx = msgspec.structs.replace(
        attestation.quote.tdx,
        event_log=tuple(msgspec.structs.replace(e, digest=b"") for e in _swapped(attestation.quote)),
    )
    forged = msgspec.structs.replace(
        attestation, runtime_events=told, quote=msgspec.structs.replace(attestation.quote, tdx=tdx)
    )
    with refuses("gcp.pcr14"):
        gcp_guest.verify(forged)


def _swapped(quote: GcpTdxQuote) -> list[TdxEvent]:
    first, second, *rest = quote.tdx.event_log
    return [second, first, *rest]


def test_n23_evidence_without_revocation_lists_is_refused(gcp_guest: GcpGuest) -> None:
    without = msgspec.structs.replace(gcp_guest.endorsements, crls=())
    with refuses("crl.missing"):
        gcp_guest.verify(endorsements=without)
    lax = gcp_policy(revocation=Revocation.IF_AVAILABLE)
    verdict = gcp_guest.verify(endorsements=without, policy=lax).verdict
    assert verdict.lanes.revocation.status is Status.SKIPPED
    assert verdict.disabled_checks == ("gcp.revocation is if_available",)


def test_n23_evidence_without_issuers_is_refused(gcp_guest: GcpGuest) -> None:
    with refuses("gcp.chain.anchor"):
        gcp_guest.verify(endorsements=Endorsements(tdx=gcp_guest.endorsements.tdx))
