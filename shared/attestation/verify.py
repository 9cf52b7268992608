"""The one entrance: evidence in, a verdict out (spec attestation sections 3 to 6).

Everything that decides on evidence (KMS, verify function, command line, deploy engine) comes through here.
"""

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from shared.attestation import lanes
from shared.attestation.anchor import TrustAnchor
from shared.attestation.chain import ChainCache
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    TdxQuote,
    check_pod_payload,
    decode_envelope,
)
from shared.attestation.event_log import SystemEvents, check_event_lists, system_events
from shared.attestation.nitro import VerifiedNitroDocument, verify_document
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.registers import check_boot_log, check_rtmr3
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Lane, Lanes, Verdict
from shared.errors import InvalidEvidence

if TYPE_CHECKING:  # each platform's module is loaded with its first evidence: dcap-qvl is heavy
    from shared.attestation.gcp import VerifiedGcp
    from shared.attestation.nitro_tpm import VerifiedNitroTpm
    from shared.attestation.tdx import CollateralCache, VerifiedTdx
    from shared.measurement.vm_config import VmConfig

    Evidence: TypeAlias = VerifiedNitroDocument | VerifiedTdx | VerifiedGcp | VerifiedNitroTpm


class VerifierCache:
    """What one verifier remembers between calls: verified chains and parsed collateral, never a verdict."""

    def __init__(self, collateral: "CollateralCache | None" = None) -> None:
        self.chains = ChainCache()
        self._collateral = collateral

    @property
    def collateral(self) -> "CollateralCache":
        """The parsed collateral, made with the first TDX evidence."""
        if self._collateral is None:
            from shared.attestation.tdx import CollateralCache  # noqa: PLC0415 - see above

            self._collateral = CollateralCache()
        return self._collateral


class VerifiedAttestation(msgspec.Struct, frozen=True):
    """Evidence that was verified. Only this module makes one.

    `events` are the system events before `system-ready`; `verdict.lanes` says whether they are measured.
    `policy` is the one that it was verified under, `config` the one that `image.check_image` judged.
    """

    attestation: Attestation
    evidence: "Evidence"
    events: SystemEvents
    policy: Policy
    verdict: Verdict
    config: "VmConfig | None" = None

    @property
    def valid_until(self) -> int:
        """The unix second from which the same evidence would be refused, by age, chain or collateral."""
        return self.evidence.valid_until


def verify_attestation(
    envelope: bytes | Attestation,
    *,
    now: int,
    anchors: TrustAnchors,
    policy: Policy = DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
    report_data: bytes | None = None,
    cache: VerifierCache | None = None,
) -> VerifiedAttestation:
    """Verify an envelope at `now` (unix seconds).

    1. Decode the envelope, every byte accounted for.
    2. The envelope's report_data is `report_data`, where the caller expects one (a TLS key, a challenge), and
       a pod's payload hashes to it.
    3. The system events can be read one way only; a TDX event log tells the same story as they do.
    4. Verify the platform evidence, which must carry that same report_data: signatures, chains, collateral,
       revocation, platform state, debug, registers against logs.
    5. State what was established, lane by lane, and what the policy let pass.

    The caller still owes: an expected report_data unless it only reports, the image check
    (`identity.check_image`; `identity.boot_info` does it), and an authorisation that does not rest on a
    lane that is `self_asserted` or `skipped`.

    Raises `InvalidEvidence` and `PolicyDenied`: `envelope.*`, `scale.*`, `msgpack.*`, `event_log.*`,
    `attestation.platform.unsupported`, `attestation.report_data`, and the codes of `nitro.verify_document`,
    `nitro_tpm.verify_nitro_tpm`, `tdx.verify_tdx` and `gcp.verify_gcp`.
    """
    attestation = envelope if isinstance(envelope, Attestation) else decode_envelope(envelope)
    if report_data is not None and attestation.report_data != report_data:
        raise InvalidEvidence(
            "attestation.report_data",
            f"report data mismatch: begins {attestation.report_data[:16].hex()}, "
            f"expected {report_data[:16].hex()}",
        )
    check_pod_payload(attestation)
    events = system_events(attestation.runtime_events)
    expected = lanes.expectation(report_data)
    work = _Work(attestation, events, expected, now, anchors, policy, endorsements, cache)
    match attestation.quote:
        case NitroEnclaveQuote(nsm_quote):
            result = work.nitro(nsm_quote)
        case TdxQuote():
            result = work.tdx(attestation.quote)
        case GcpTdxQuote():
            result = work.gcp(attestation.quote)
        case NitroTpmQuote(attestation_doc):
            result = work.nitro_tpm(attestation_doc)
        case _:  # SEV-SNP
            raise InvalidEvidence(
                "attestation.platform.unsupported",
                f"evidence is of {attestation.tee_variant}, which is decoded and not verified here",
            )
    return result


class _Work(msgspec.Struct, frozen=True):
    """One verification under way: steps 4 and 5 of `verify_attestation`, by platform."""

    attestation: Attestation
    events: SystemEvents
    expected: Lane
    now: int
    anchors: TrustAnchors
    policy: Policy
    endorsements: Endorsements
    cache: VerifierCache | None

    def nitro(self, document: bytes) -> VerifiedAttestation:
        nitro = verify_document(
            document,
            now=self.now,
            anchors=self.anchors,
            policy=self.policy.nitro,
            endorsements=self.endorsements,
            chain_cache=None if self.cache is None else self.cache.chains,
            report_data=self.attestation.report_data,
        )
        return self._result(
            nitro,
            lanes.nitro_lanes(nitro, self.events, self.expected),
            (nitro.trust_anchor,),
            made_at=nitro.document.timestamp,
        )

    def nitro_tpm(self, document: bytes) -> VerifiedAttestation:
        from shared.attestation.nitro_tpm import verify_nitro_tpm  # noqa: PLC0415 - see above

        tpm = verify_nitro_tpm(
            document,
            self.attestation.runtime_events,
            now=self.now,
            anchors=self.anchors,
            policy=self.policy.nitro,
            endorsements=self.endorsements,
            chain_cache=None if self.cache is None else self.cache.chains,
            report_data=self.attestation.report_data,
        )
        result = self._result(
            tpm,
            lanes.nitro_tpm_lanes(tpm, self.events, self.expected),
            (tpm.trust_anchor,),
            made_at=tpm.document.timestamp,
        )
        told = "tcb_status: nitrotpm evidence carries none, and policies are told UpToDate"
        return msgspec.structs.replace(result, verdict=result.verdict.with_disabled(told))

    def tdx(self, quote: TdxQuote) -> VerifiedAttestation:
        from shared.attestation.tdx import verify_tdx  # noqa: PLC0415 - see above

        check_event_lists(quote.event_log, self.attestation.runtime_events)
        tdx = verify_tdx(
            quote.quote,
            now=self.now,
            anchors=self.anchors.tdx,
            policy=self.policy.tdx,
            endorsements=self.endorsements,
            report_data=self.attestation.report_data,
            cache=None if self.cache is None else self.cache.collateral,
        )
        report = tdx.quote.report
        check_rtmr3(report.rtmrs[3], self.attestation.runtime_events)
        boot_log = check_boot_log(report, quote.event_log)
        return self._result(
            tdx,
            lanes.tdx_lanes(tdx, self.events, self.expected, boot_log=boot_log),
            (tdx.trust_anchor,),
            tcb=tdx,
        )

    def gcp(self, quote: GcpTdxQuote) -> VerifiedAttestation:
        from shared.attestation.gcp import verify_gcp  # noqa: PLC0415 - see above

        check_event_lists(quote.tdx.event_log, self.attestation.runtime_events)
        gcp = verify_gcp(
            quote,
            self.attestation.runtime_events,
            now=self.now,
            anchors=self.anchors,
            policy=self.policy,
            endorsements=self.endorsements,
            report_data=self.attestation.report_data,
            cache=self.cache,
        )
        boot_log = check_boot_log(gcp.tdx.quote.report, quote.tdx.event_log)
        return self._result(
            gcp,
            lanes.gcp_lanes(gcp, self.events, self.expected, boot_log=boot_log),
            (gcp.tdx.trust_anchor, gcp.ak_anchor),
            tcb=gcp.tdx,
        )

    def _result(
        self,
        evidence: "Evidence",
        established: Lanes,
        anchors: tuple[TrustAnchor, ...],
        *,
        made_at: int | None = None,
        tcb: "VerifiedTdx | None" = None,
    ) -> VerifiedAttestation:
        variant = self.attestation.tee_variant
        verdict = Verdict(
            platform=variant,
            anchors=tuple(anchor.name for anchor in anchors),
            simulated=not all(anchor.production for anchor in anchors),
            made_at=made_at,
            verified_at=self.now,
            lanes=established,
            tcb_status="" if tcb is None else tcb.status.value,
            advisory_ids=() if tcb is None else tcb.advisory_ids,
            disabled_checks=self.policy.relaxations(variant),
        )
        return VerifiedAttestation(self.attestation, evidence, self.events, self.policy, verdict)
