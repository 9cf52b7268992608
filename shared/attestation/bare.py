"""Hardware evidence that came without an envelope: it has no identity beyond its registers."""

from typing import TYPE_CHECKING

import msgspec

from shared.attestation import lanes
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.nitro import VerifiedNitroDocument, verify_document
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Verdict
from shared.boot_info import NITRO_ENCLAVE, TDX

if TYPE_CHECKING:  # dcap-qvl is heavy
    from shared.attestation.tdx import VerifiedTdx


class VerifiedBareDocument(msgspec.Struct, frozen=True):
    """A Nitro document that was verified outside any envelope."""

    nitro: VerifiedNitroDocument
    verdict: Verdict


class VerifiedBareQuote(msgspec.Struct, frozen=True):
    """A TDX quote that was verified without its event log."""

    tdx: "VerifiedTdx"
    verdict: Verdict


def verify_bare_document(
    cose: bytes,
    *,
    now: int,
    anchors: TrustAnchors,
    policy: Policy = DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
    report_data: bytes | None = None,
) -> VerifiedBareDocument:
    """Verify a Nitro document at `now` (unix seconds). Raises what `nitro.verify_document` raises."""
    nitro = verify_document(
        cose,
        now=now,
        anchors=anchors,
        policy=policy.nitro,
        endorsements=endorsements,
        report_data=report_data,
    )
    verdict = Verdict(
        platform=NITRO_ENCLAVE,
        anchors=(nitro.anchor,),
        simulated=nitro.simulated,
        made_at=nitro.document.timestamp,
        verified_at=now,
        lanes=lanes.bare_nitro_lanes(nitro, lanes.expectation(report_data)),
        disabled_checks=policy.relaxations(NITRO_ENCLAVE),
    )
    return VerifiedBareDocument(nitro, verdict)


def verify_bare_quote(
    quote: bytes,
    *,
    now: int,
    anchors: TrustAnchors,
    policy: Policy = DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
    report_data: bytes | None = None,
) -> VerifiedBareQuote:
    """Verify a TDX quote at `now` (unix seconds). Raises what `tdx.verify_tdx` raises."""
    from shared.attestation.tdx import verify_tdx  # noqa: PLC0415 - as above

    tdx = verify_tdx(
        quote,
        now=now,
        anchors=anchors.tdx,
        policy=policy.tdx,
        endorsements=endorsements,
        report_data=report_data,
    )
    verdict = Verdict(
        platform=TDX,
        anchors=(tdx.anchor,),
        simulated=tdx.simulated,
        made_at=None,
        verified_at=now,
        lanes=lanes.bare_tdx_lanes(tdx, lanes.expectation(report_data)),
        tcb_status=tdx.status.value,
        advisory_ids=tdx.advisory_ids,
        disabled_checks=policy.relaxations(TDX),
    )
    return VerifiedBareQuote(tdx, verdict)
