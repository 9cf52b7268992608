"""The lanes of each platform's verdict: what its evidence proves, in the same words everywhere.

A function here is called after all that it calls verified was verified. Image and command line start as
skipped: `identity.check_image` compares them and replaces their lanes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from shared.attestation.app_id_register import APP_ID_PCR, is_app_id_bound
from shared.attestation.event_log import SystemEvents
from shared.attestation.verdict import Lane, Lanes, not_applicable, self_asserted, skipped, verified

if TYPE_CHECKING:  # these modules are loaded with their first evidence
    from shared.attestation.gcp import VerifiedGcp
    from shared.attestation.nitro import VerifiedNitroDocument
    from shared.attestation.nitro_tpm import VerifiedNitroTpm
    from shared.attestation.tdx import VerifiedTdx

_UNSIGNED = "a runtime event of the envelope: nothing of the hardware signs it"
_NO_IMAGE_CHECK = skipped("not compared with the registers")
_NO_ENVELOPE = skipped("bare evidence has no envelope to compare it with")
_NO_TIME = skipped("a tdx quote carries no time: only an expected report_data makes it fresh")


def expectation(report_data: bytes | None) -> Lane:
    """Return the lane of what the caller expected; called once evidence was found to carry it."""
    if report_data is None:
        return skipped("the caller expected nothing")
    return verified("equal to what the caller expected")


def nitro_lanes(document: "VerifiedNitroDocument", events: SystemEvents, expected: Lane) -> Lanes:
    """Return the lanes of a Nitro enclave: registers and key are signed, every runtime event is a claim.

    An app id that is in PCR16 too is more than a claim (`app_id_register`).
    """
    return Lanes(
        signature=verified("es384 under the document's leaf certificate"),
        chain=verified(f"leaf to {document.anchor}"),
        revocation=document.revocation.lane,
        freshness=verified("the document's age is within policy"),
        debug=verified("PCR0, PCR1 and PCR2 are measured"),
        tcb_status=not_applicable("nitro evidence carries no tcb status"),
        report_data=verified("user_data of the document"),
        report_data_expected=expected,
        firmware=not_applicable("an enclave has no firmware of its own"),
        os_image=_NO_IMAGE_CHECK,
        command_line=_NO_IMAGE_CHECK,
        boot_log=not_applicable("nitro registers come without a log"),
        mr_config=not_applicable("nitro evidence has no configuration id"),
        runtime_events=self_asserted(_UNSIGNED),
        app_id=_app_id_of_enclave(document.document.pcrs, events.app_id),
        compose_hash=_NO_IMAGE_CHECK,
        instance_id=_claimed(events.instance_id),
        key_provider=_claimed(events.key_provider),
        init_scripts=_claimed(events.init_script_hashes),
        device_id=verified("module_id and PCR4 of the document"),
    )


def bare_nitro_lanes(document: "VerifiedNitroDocument", expected: Lane) -> Lanes:
    """Return the lanes of a Nitro document without an envelope: there are not even claims."""
    return msgspec.structs.replace(
        nitro_lanes(document, SystemEvents(), expected),
        report_data=_NO_ENVELOPE,
        **_nothing_recorded(),
    )


def bare_tdx_lanes(tdx: "VerifiedTdx", expected: Lane) -> Lanes:
    """Return the lanes of a quote without its event log: signed registers whose meaning is not known."""
    lanes = tdx_lanes(tdx, SystemEvents(), expected, boot_log=_NO_ENVELOPE)
    return msgspec.structs.replace(lanes, report_data=_NO_ENVELOPE, **_nothing_recorded())


def tdx_lanes(tdx: "VerifiedTdx", events: SystemEvents, expected: Lane, *, boot_log: Lane) -> Lanes:
    """Return the lanes of a TDX guest: its runtime events are in RTMR3."""
    measured = "an event before system-ready, in RTMR3"
    return Lanes(
        signature=verified("quote signed by the quoting enclave's key, which the platform's key certifies"),
        chain=verified(f"platform certificate to {tdx.trust_anchor.name}"),
        revocation=verified("intel's root and platform lists, current"),
        freshness=_NO_TIME,
        debug=verified("td attributes exclude debug"),
        tcb_status=verified(tdx.tcb_reason),
        report_data=verified("report_data of the quote"),
        report_data_expected=expected,
        firmware=_NO_IMAGE_CHECK,
        os_image=_NO_IMAGE_CHECK,
        command_line=_NO_IMAGE_CHECK,
        boot_log=boot_log,
        mr_config=skipped("not compared with the runtime events"),
        runtime_events=verified("replayed to RTMR3"),
        device_id=verified("ppid of the platform's certificate"),
        **_measured(events, measured),
    )


def gcp_lanes(gcp: "VerifiedGcp", events: SystemEvents, expected: Lane, *, boot_log: Lane) -> Lanes:
    """Return the lanes of a GCP guest: a TDX quote and a vTPM quote that names it."""
    measured = "an event before system-ready, in RTMR3 and PCR14"
    return Lanes(
        signature=verified("tdx quote, and the vtpm's quote over its hash"),
        chain=verified(
            f"platform certificate to {gcp.tdx.trust_anchor.name}, vtpm key to {gcp.ak_anchor.name}"
        ),
        revocation=gcp.revocation.lane,
        freshness=_NO_TIME,
        debug=verified("td attributes exclude debug"),
        tcb_status=verified(gcp.tdx.tcb_reason),
        report_data=verified("report_data of the tdx quote"),
        report_data_expected=expected,
        firmware=verified(f"PCR0 is in the policy's list: {gcp.firmware.provenance}"),
        os_image=_NO_IMAGE_CHECK,
        command_line=(
            verified("RTMR2 is in the policy's list")
            if gcp.rtmr2_listed
            else skipped("what the host adds is in RTMR2, for which the policy lists no value")
        ),
        boot_log=boot_log,
        mr_config=skipped("not compared with the runtime events"),
        runtime_events=verified("replayed to RTMR3 and PCR14"),
        device_id=verified("ppid of the platform's certificate"),
        **_measured(events, measured),
    )


def nitro_tpm_lanes(tpm: "VerifiedNitroTpm", events: SystemEvents, expected: Lane) -> Lanes:
    """Return the lanes of an EC2 guest with a NitroTPM: its runtime events are in PCR14."""
    return Lanes(
        signature=verified("es384 under the document's leaf certificate"),
        chain=verified(f"leaf to {tpm.anchor}"),
        revocation=tpm.revocation.lane,
        freshness=verified("the document's age is within policy"),
        debug=not_applicable("an ec2 instance has no debug mode that its tpm measures"),
        tcb_status=not_applicable("nitrotpm evidence carries no tcb status; policies are told UpToDate"),
        report_data=verified("user_data of the document"),
        report_data_expected=expected,
        firmware=_NO_IMAGE_CHECK,
        os_image=_NO_IMAGE_CHECK,
        command_line=_NO_IMAGE_CHECK,
        boot_log=not_applicable("the document's registers come without a log"),
        mr_config=skipped("not compared with the runtime events"),
        runtime_events=verified("replayed to PCR14"),
        device_id=verified("module_id of the document"),
        **_measured(events, "an event before system-ready, in PCR14"),
    )


def _measured(events: SystemEvents, reason: str) -> dict[str, Lane]:
    """Return the lanes of the recorded identity: measured where there is an event, else absent."""
    recorded = {
        "app_id": events.app_id,
        "compose_hash": events.compose_hash,
        "instance_id": events.instance_id,
        "key_provider": events.key_provider,
        "init_scripts": events.init_script_hashes,
    }
    return {
        name: verified(reason) if value else not_applicable("the guest recorded none")
        for name, value in recorded.items()
    }


def _nothing_recorded() -> dict[str, Lane]:
    nothing = not_applicable("bare evidence has no envelope")
    names = ("runtime_events", "app_id", "instance_id", "key_provider", "init_scripts", "compose_hash")
    return dict.fromkeys(names, nothing)


def _app_id_of_enclave(pcrs: Mapping[int, bytes], app_id: bytes) -> Lane:
    if is_app_id_bound(pcrs, app_id):
        return verified("the app-id event is what PCR16 was extended with")
    if APP_ID_PCR in pcrs:
        return self_asserted(f"{_UNSIGNED}, and PCR16 holds something else")
    return self_asserted(_UNSIGNED)


def _claimed(value: object) -> Lane:
    return self_asserted(_UNSIGNED) if value else not_applicable("the enclave claims none")
