"""NitroTPM evidence through the one entrance."""

import msgspec
import pytest

from enclave.devices.nsm import Nsm
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import (
    NitroEnclaveQuote,
    NitroTpmQuote,
    RuntimeEvent,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.identity import boot_info, info_of
from shared.attestation.image import check_image
from shared.attestation.policy import NitroPolicy, Policy
from shared.attestation.verdict import Status
from tests.shared.attestation.forgery import NOW, REPORT_DATA, refuses
from tests.shared.attestation.guest_forgery import APP_ID, COMPOSE, EVENTS, TpmGuest

TOLD = "tcb_status: nitrotpm evidence carries none, and policies are told UpToDate"


def test_an_envelope_and_its_bytes_give_one_verdict(tpm_guest: TpmGuest) -> None:
    attestation = tpm_guest.attestation()
    decoded = decode_envelope(encode_envelope(attestation))
    assert tpm_guest.verify(decoded) == tpm_guest.verify(attestation)


def test_every_lane_of_a_guest(tpm_guest: TpmGuest) -> None:
    lists = Endorsements(crls=tpm_guest.authority.crls(NOW - 60))
    verdict = check_image(tpm_guest.verify(report_data=REPORT_DATA, endorsements=lists)).verdict
    others = {name: lane.status for name, lane in verdict.lanes.items() if lane.status is not Status.VERIFIED}
    assert others == {
        "debug": Status.NOT_APPLICABLE,
        "tcb_status": Status.NOT_APPLICABLE,
        "boot_log": Status.NOT_APPLICABLE,
        "mr_config": Status.SKIPPED,
    }


def test_the_verdict_names_platform_anchor_and_time(tpm_guest: TpmGuest) -> None:
    verdict = tpm_guest.verify(now=NOW + 5).verdict
    assert verdict.platform == "dstack-aws-nitro-tpm"
    assert verdict.anchors == (tpm_guest.anchors.nitro[1].name,)
    assert verdict.simulated
    assert (verdict.made_at, verdict.verified_at) == (NOW, NOW + 5)


def test_n41_a_tcb_status_that_nobody_signed_shows_in_the_verdict(tpm_guest: TpmGuest) -> None:
    """Policies are told UpToDate as upstream tells them; the verdict says that the evidence has none."""
    evidence = tpm_guest.verify()
    assert boot_info(evidence).tcb_status == "UpToDate"
    assert evidence.verdict.tcb_status == ""
    assert evidence.verdict.lanes.tcb_status.status is Status.NOT_APPLICABLE
    assert evidence.verdict.disabled_checks == (TOLD,)


def test_n41_it_is_told_beside_what_the_policy_relaxes(tpm_guest: TpmGuest) -> None:
    lax = Policy(nitro=NitroPolicy(max_age=7200))
    assert tpm_guest.verify(policy=lax).verdict.disabled_checks == ("nitro.max_age is 7200 s", TOLD)


def test_identity_is_measured_here(tpm_guest: TpmGuest) -> None:
    lanes = tpm_guest.verify().verdict.lanes
    for lane in (lanes.app_id, lanes.compose_hash, lanes.instance_id, lanes.key_provider, lanes.init_scripts):
        assert lane.status is Status.VERIFIED
        assert "PCR14" in lane.reason
    info = boot_info(tpm_guest.verify())
    assert (info.app_id, info.compose_hash) == (APP_ID, COMPOSE)


def test_n17_the_documents_user_data_must_be_the_envelopes(tpm_guest: TpmGuest) -> None:
    with refuses("nitro.user_data"):
        tpm_guest.verify(tpm_guest.attestation(quoted=bytes(64)), report_data=REPORT_DATA)


def test_n18_evidence_over_an_old_challenge_is_refused(tpm_guest: TpmGuest) -> None:
    with refuses("attestation.report_data"):
        tpm_guest.verify(report_data=bytes([2]) * 64)


def test_n33_a_stale_document_is_refused(tpm_guest: TpmGuest) -> None:
    with refuses("nitro.stale"):
        tpm_guest.verify(now=NOW + 3601)


@pytest.mark.parametrize(
    "told", [EVENTS[:-1], (EVENTS[1], EVENTS[0], *EVENTS[2:]), (*EVENTS, RuntimeEvent("more", b""))]
)
def test_n09_events_that_were_not_measured_so_are_refused(
    told: tuple[RuntimeEvent, ...], tpm_guest: TpmGuest
) -> None:
    with refuses("nitro_tpm.pcr14"):
        tpm_guest.verify(tpm_guest.attestation(told=told))


def test_an_enclaves_document_is_none_of_a_tpm(tpm_guest: TpmGuest) -> None:
    """The two AWS documents differ in one field's name: neither passes for the other."""
    pcrs = {index: bytes([index + 1]) * 48 for index in range(15)}
    document = Nsm(SimulatedNsm(pcrs, tpm_guest.authority, lambda: NOW)).attestation(user_data=REPORT_DATA)
    attestation = tpm_guest.attestation()
    with refuses("nitro.field"):
        tpm_guest.verify(msgspec.structs.replace(attestation, quote=NitroTpmQuote(document)))
    assert isinstance(attestation.quote, NitroTpmQuote)
    swapped = NitroEnclaveQuote(attestation.quote.attestation_doc)
    with refuses("nitro.field"):
        tpm_guest.verify(msgspec.structs.replace(attestation, quote=swapped))


def test_a_guest_without_a_compose_hash_gets_nothing(tpm_guest: TpmGuest) -> None:
    evidence = tpm_guest.checked(events=())
    with refuses("identity.compose_hash.missing"):
        boot_info(evidence)


def test_app_info_of_an_image_that_nobody_judged_names_it_as_a_claim(tpm_guest: TpmGuest) -> None:
    evidence = tpm_guest.checked()
    assert info_of(evidence).self_asserted == ("os_image_hash",)
    assert info_of(check_image(evidence)).self_asserted == ()
