"""The one entrance: evidence in, a verdict out (spec attestation sections 4.4 and 7.1).

Everything that decides on evidence (KMS, verify function, command line, deploy engine) comes through here.
"""

import msgspec

from shared.attestation.chain import ChainCache
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, decode_envelope
from shared.attestation.nitro import NitroDocument, NitroPolicy, VerifiedNitroDocument, verify_document
from shared.attestation.trust import NitroAnchors
from shared.attestation.verdict import Lane, Status, Verdict
from shared.boot_info import NITRO_ENCLAVE
from shared.errors import InvalidEvidence

_DEFAULT_POLICY = NitroPolicy()
_NO_MEASURED_EVENTS = "a runtime event of the envelope: nothing of the hardware signs it"


class VerifiedAttestation(msgspec.Struct, frozen=True):
    """Evidence that was verified. Only this module makes one."""

    attestation: Attestation
    nitro: VerifiedNitroDocument
    verdict: Verdict

    @property
    def document(self) -> NitroDocument:
        """The verified Nitro document."""
        return self.nitro.document

    @property
    def valid_until(self) -> int:
        """The unix second from which the same evidence would be refused, by its age or by its chain."""
        return self.nitro.valid_until


class VerifiedBareDocument(msgspec.Struct, frozen=True):
    """A Nitro document that was verified outside any envelope."""

    nitro: VerifiedNitroDocument
    verdict: Verdict


def verify_attestation(
    envelope: bytes | Attestation,
    *,
    now: int,
    anchors: NitroAnchors,
    policy: NitroPolicy = _DEFAULT_POLICY,
    report_data: bytes | None = None,
    chain_cache: ChainCache | None = None,
) -> VerifiedAttestation:
    """Verify an envelope at `now` (unix seconds).

    1. Decode the envelope, every byte accounted for.
    2. Choose the platform; one that is not verified here is refused.
    3. The envelope's report_data is `report_data`, where the caller expects one (a TLS key, a challenge).
    4. Verify the platform evidence (`nitro.verify_document`), which must carry that same report_data.
    5. State what was established, lane by lane.

    The caller still owes: an expected report_data unless it only reports, the image check
    (`identity.check_image`; `identity.boot_info` does it), and an authorisation that does not rest on a
    lane that is `self_asserted`.

    Raises `InvalidEvidence`: `envelope.*`, `scale.*`, `attestation.platform.unsupported`,
    `attestation.report_data`, and those of `nitro.verify_document`.
    """
    attestation = envelope if isinstance(envelope, Attestation) else decode_envelope(envelope)
    if not isinstance(attestation.quote, NitroEnclaveQuote):
        raise InvalidEvidence(
            "attestation.platform.unsupported",
            f"evidence is of {attestation.tee_variant}, expected {NITRO_ENCLAVE}",
        )
    if report_data is not None and attestation.report_data != report_data:
        raise InvalidEvidence(
            "attestation.report_data",
            f"report_data begins {attestation.report_data[:16].hex()}, expected {report_data[:16].hex()}",
        )
    nitro = verify_document(
        attestation.quote.nsm_quote,
        now=now,
        anchors=anchors,
        policy=policy,
        chain_cache=chain_cache,
        report_data=attestation.report_data,
    )
    binding = (
        Lane("report_data_expected", Status.VERIFIED, "equal to what the caller expected")
        if report_data is not None
        else Lane("report_data_expected", Status.SKIPPED, "the caller expected nothing")
    )
    verdict = _nitro_verdict(
        nitro,
        now,
        Lane("report_data", Status.VERIFIED, "user_data of the document"),
        binding,
        Lane("app_id", Status.SELF_ASSERTED, _NO_MEASURED_EVENTS),
        Lane("runtime_events", Status.SELF_ASSERTED, _NO_MEASURED_EVENTS),
        Lane("os_image", Status.SKIPPED, "not compared with the registers"),
        Lane("compose_hash", Status.SKIPPED, "not compared with the registers"),
    )
    return VerifiedAttestation(attestation, nitro, verdict)


def verify_bare_document(
    cose: bytes,
    *,
    now: int,
    anchors: NitroAnchors,
    policy: NitroPolicy = _DEFAULT_POLICY,
    chain_cache: ChainCache | None = None,
) -> VerifiedBareDocument:
    """Verify a Nitro document that came without an envelope; it has no identity beyond its registers.

    Raises what `nitro.verify_document` raises.
    """
    nitro = verify_document(cose, now=now, anchors=anchors, policy=policy, chain_cache=chain_cache)
    unexpected = Lane("report_data", Status.SKIPPED, "the caller expected nothing")
    return VerifiedBareDocument(nitro, _nitro_verdict(nitro, now, unexpected))


def _nitro_verdict(nitro: VerifiedNitroDocument, now: int, *lanes: Lane) -> Verdict:
    return Verdict(
        platform=NITRO_ENCLAVE,
        anchors=(nitro.anchor,),
        simulated=nitro.simulated,
        made_at=nitro.document.timestamp,
        verified_at=now,
        lanes=(
            Lane("signature", Status.VERIFIED, "es384 under the document's leaf certificate"),
            Lane("chain", Status.VERIFIED, f"leaf to {nitro.anchor}"),
            Lane("freshness", Status.VERIFIED, "the document's age is within policy"),
            Lane("debug", Status.VERIFIED, "PCR0, PCR1 and PCR2 are measured"),
            Lane("measurements", Status.VERIFIED, "the document's registers"),
            *lanes,
            Lane("tcb_status", Status.NOT_APPLICABLE, "nitro evidence carries no tcb status"),
            Lane("instance_id", Status.NOT_APPLICABLE, "nitro evidence carries no dstack instance id"),
            Lane("revocation", Status.SKIPPED, "no revocation list was consulted"),
        ),
    )
