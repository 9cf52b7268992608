"""NitroTPM documents of EC2 instances: boot registers and runtime events (spec attestation section 5.5).

The document is a Nitro document whose registers are a TPM's, SHA-384. AWS signs it; nothing in it tells the
state of platform patches, so there is no TCB status, and whoever must name one says so.
"""

from collections.abc import Sequence

from shared.attestation.chain import ChainCache
from shared.attestation.cose import parse_sign1
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.event_log import replay
from shared.attestation.nitro_document import (
    DocumentKind,
    DocumentVerifier,
    Expectations,
    NitroDocument,
    VerifiedDocument,
    read_document,
)
from shared.attestation.policy import NitroPolicy
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence
from shared.measurement.images import AWS_BOOT_PCRS

TPM_PCR_COUNT = 24
RUNTIME_PCR = 14

# UEFI extends these on every boot, if only by a separator. PCR12 stays zero where nothing is added to the
# command line that is part of the image.
_ALWAYS_EXTENDED = (4, 7)
_TPM = DocumentKind("nitrotpm_pcrs", TPM_PCR_COUNT, (*AWS_BOOT_PCRS, RUNTIME_PCR))
_DEFAULT_POLICY = NitroPolicy()


class VerifiedNitroTpm(VerifiedDocument, frozen=True):
    """An instance's document that was verified, and whose PCR14 is the replay of the runtime events."""


def parse_tpm_document(cose: bytes) -> NitroDocument:
    """Parse a NitroTPM document without verifying it. Raises the codes of `nitro.parse_document`."""
    return read_document(parse_sign1(cose), _TPM)


def verify_nitro_tpm(  # noqa: PLR0913 - each is one thing that a verdict depends on
    document: bytes,
    runtime_events: Sequence[RuntimeEvent],
    *,
    now: int,
    anchors: TrustAnchors,
    policy: NitroPolicy = _DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
    report_data: bytes | None = None,
    nonce: bytes | None = None,
    chain_cache: ChainCache | None = None,
) -> VerifiedNitroTpm:
    """Verify a NitroTPM document at `now` (unix seconds).

    1. Steps 1 to 7 of `nitro.verify_document`, with the registers under `nitrotpm_pcrs`, PCR 4, 7, 12 and 14
       present, and `user_data` equal to `report_data`, where the caller expects one.
    2. Measured boot: a zero PCR4 or PCR7 is refused. EC2 has no debug mode as enclaves have; zeros here mean
       that no firmware measured, and then nothing is known of what runs.
    3. The runtime events replay to PCR14.

    The caller still owes: an expected report_data, and a decision on PCR 4, 7, 12 and, where it is used, 8.

    Raises `InvalidEvidence`: those of `nitro.verify_document` but `nitro.debug`, `event_log.*`,
    `nitro_tpm.unmeasured`, `nitro_tpm.pcr14`.
    """
    verifier = DocumentVerifier(
        now=now, anchors=anchors, policy=policy, endorsements=endorsements, chain_cache=chain_cache
    )
    expected = Expectations(report_data=report_data, nonce=nonce)
    verified = verifier.verify(document, _TPM, expected)
    pcrs = verified.document.pcrs
    if zero := [index for index in _ALWAYS_EXTENDED if not any(pcrs[index])]:
        raise InvalidEvidence(
            "nitro_tpm.unmeasured", f"PCR{zero[0]} is all zeros: the firmware measured nothing into it"
        )
    replayed = replay(runtime_events, "sha384")
    if replayed != pcrs[RUNTIME_PCR]:
        raise InvalidEvidence(
            "nitro_tpm.pcr14",
            f"runtime events replay to {replayed.hex()}, PCR14 is {pcrs[RUNTIME_PCR].hex()}",
        )
    return VerifiedNitroTpm(
        verified.document, verified.trust_anchor, verified.revocation, verified.valid_until
    )
