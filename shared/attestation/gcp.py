"""GCP guests: a TDX quote, and a vTPM quote that names it (spec attestation section 5.3).

The TDX half proves the domain and its runtime events, the vTPM half the firmware and the image: GCP's boot is
measured into the TPM. Neither half says anything about the other's machine but through the binding.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from shared.attestation.ak_chain import AkCache, VerifiedAkChain, read_ak, verify_ak_chain
from shared.attestation.anchor import TrustAnchor
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import GcpTdxQuote, RuntimeEvent
from shared.attestation.event_log import replay
from shared.attestation.policy import DEFAULT_POLICY, Firmware, GcpPolicy, Policy
from shared.attestation.registers import check_rtmr3
from shared.attestation.revocation import RevocationResult, check_revocation
from shared.attestation.tpm_quote import (
    check_log,
    check_registers,
    parse_attest,
    parse_signature,
    verify_quote,
)
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence, PolicyDenied

if TYPE_CHECKING:  # loaded with the first GCP evidence that is worth it
    from shared.attestation.tdx import VerifiedTdx
    from shared.attestation.verify import VerifierCache

FIRMWARE_PCR, IMAGE_PCR, RUNTIME_PCR = 0, 2, 14
"""What dstack quotes on GCP: firmware, boot applications, runtime events. Nothing else may be relied upon."""

QUOTED_PCRS = (FIRMWARE_PCR, IMAGE_PCR, RUNTIME_PCR)
_PLATFORM = "gcp"


class PrecheckedGcp(msgspec.Struct, frozen=True):
    """GCP evidence that holds together by itself, under a key that nobody has vouched for yet.

    `pcrs` are registers 0, 2 and 14 (32 bytes each), `pcr2_events` the digests that were extended into PCR2.
    """

    pcrs: dict[int, bytes]
    pcr2_events: tuple[bytes, ...]


class VerifiedGcp(msgspec.Struct, frozen=True, kw_only=True):
    """Verified GCP evidence. `pcrs` are SHA-256 registers 0, 2 and 14, `pcr2_events` what PCR2 was made from.

    `firmware` is the policy's entry for PCR0. `rtmr2_listed` tells whether RTMR2 was compared with the
    policy's list. `valid_until` is the unix second from which the same evidence would be refused with the
    same endorsements.
    """

    tdx: "VerifiedTdx"
    ak_chain: VerifiedAkChain
    pcrs: dict[int, bytes]
    pcr2_events: tuple[bytes, ...]
    firmware: Firmware
    revocation: RevocationResult
    rtmr2_listed: bool
    valid_until: int

    @property
    def ak_anchor(self) -> TrustAnchor:
        """The trust anchor of the vTPM half."""
        return self.ak_chain.anchor

    @property
    def simulated(self) -> bool:
        """Whether the anchors are others than the vendors' own."""
        return not self.ak_chain.anchor.production


def precheck_gcp(
    quote: GcpTdxQuote, runtime_events: Sequence[RuntimeEvent], *, cache: AkCache | None = None
) -> PrecheckedGcp:
    """Check all of GCP evidence that needs no endorsement, cheap steps first.

    1. Sizes and structures of quote and signature; the platform byte.
    2. The quote covers PCR 0, 2 and 14 of the SHA-256 bank, and the listed values are the quoted ones.
    3. Its qualifying data is the SHA-256 of the whole TDX quote, padding included.
    4. The runtime events replay to PCR14; the boot log replays to each quoted register that it names.
    5. The quote is signed by the key in the attestation key's certificate.

    The caller owes that certificate's chain (`verify_gcp`): until then anybody can have made all of it. It is
    what must hold before anything is fetched for such evidence.

    Raises `InvalidEvidence`: `gcp.platform`, `gcp.pcr.selection`, `gcp.binding`, `gcp.pcr14`, `tpm.attest.*`,
    `tpm.signature.*`, `tpm.pcr.*`, `tpm.log.*`, `event_log.*`, `gcp.chain.malformed`, `gcp.chain.algorithm`,
    `gcp.chain.key`.
    """
    tpm = quote.tpm
    if tpm.platform != _PLATFORM:
        raise InvalidEvidence("gcp.platform", f"tpm quote is of platform {tpm.platform!r}, expected 'gcp'")
    attest = parse_attest(tpm.message)
    signature = parse_signature(tpm.signature)
    pcrs = check_registers(attest, tpm.pcr_values)
    if tuple(pcrs) != QUOTED_PCRS:
        raise InvalidEvidence(
            "gcp.pcr.selection", f"quote covers the registers {tuple(pcrs)}, expected {QUOTED_PCRS}"
        )
    named = hashlib.sha256(quote.tdx.quote).digest()
    if attest.extra_data != named:
        raise InvalidEvidence(
            "gcp.binding",
            f"vtpm quote is over {attest.extra_data.hex()}, the sha256 of the tdx quote is {named.hex()}",
        )
    replayed = replay(runtime_events, "sha256")
    if replayed != pcrs[RUNTIME_PCR]:
        raise InvalidEvidence(
            "gcp.pcr14",
            f"runtime events replay to {replayed.hex()}, PCR14 is {pcrs[RUNTIME_PCR].hex()}",
        )
    log = check_log(pcrs, tpm.event_log)
    _, key = read_ak(tpm.ak_cert, cache)
    verify_quote(tpm.message, signature, key)
    return PrecheckedGcp(pcrs, log.get(IMAGE_PCR, ()))


def verify_gcp(
    quote: GcpTdxQuote,
    runtime_events: Sequence[RuntimeEvent],
    *,
    now: int,
    anchors: TrustAnchors,
    policy: Policy = DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
    report_data: bytes | None = None,
    cache: "VerifierCache | None" = None,
) -> VerifiedGcp:
    """Verify GCP evidence at `now` (unix seconds).

    1. Everything that needs no endorsement (`precheck_gcp`).
    2. Firmware: PCR0 is in the policy's list.
    3. Chain: the attestation key's certificate up to an anchor, every certificate valid at `now`.
    4. Revocation of that chain, as the policy wants it.
    5. The TDX half (`tdx.verify_tdx`), which must carry `report_data`.
    6. Both anchors are the vendors' own, or both are simulated: half a machine proves nothing.
    7. The runtime events replay to RTMR3, and RTMR2 is in the policy's list if it has one.

    The caller still owes: an expected report_data, and the image, which PCR2's events name
    (`shared.measurement`).

    Raises `InvalidEvidence`: those of `precheck_gcp`, `gcp.chain.*`, `crl.*`, those of `verify_tdx`,
    `gcp.anchor.mixed`, `tdx.rtmr3`; `PolicyDenied`: `gcp.firmware`, `gcp.rtmr2`.
    """
    from shared.attestation.tdx import verify_tdx  # noqa: PLC0415 - heavy, and most refusals come before it

    keys = None if cache is None else cache.chains.attestation_keys
    prechecked = precheck_gcp(quote, runtime_events, cache=keys)
    firmware = _known_firmware(prechecked.pcrs[FIRMWARE_PCR], policy.gcp)
    chain = verify_ak_chain(
        quote.tpm.ak_cert, endorsements.certificates, now=now, anchors=anchors.gcp_tpm, cache=keys
    )
    revocation = check_revocation(
        chain.links,
        endorsements.crls,
        now=now,
        mode=policy.gcp.revocation,
        cache=None if cache is None else cache.chains.revocation,
    )
    tdx = verify_tdx(
        quote.tdx.quote,
        now=now,
        anchors=anchors.tdx,
        policy=policy.tdx,
        endorsements=endorsements,
        report_data=report_data,
        cache=None if cache is None else cache.collateral,
    )
    if tdx.trust_anchor.production != chain.anchor.production:
        raise InvalidEvidence(
            "gcp.anchor.mixed",
            f"tdx quote is under {tdx.trust_anchor.name} and vtpm key under {chain.anchor.name}, "
            "expected two production or two simulated anchors",
        )
    report = tdx.quote.report
    check_rtmr3(report.rtmrs[3], runtime_events)
    _check_rtmr2(report.rtmrs[2], policy.gcp)
    ends = [tdx.valid_until, chain.not_after + 1]
    if revocation.valid_until is not None:
        ends.append(revocation.valid_until)
    return VerifiedGcp(
        tdx=tdx,
        ak_chain=chain,
        pcrs=prechecked.pcrs,
        pcr2_events=prechecked.pcr2_events,
        firmware=firmware,
        revocation=revocation,
        rtmr2_listed=bool(policy.gcp.rtmr2),
        valid_until=min(ends),
    )


def _known_firmware(pcr0: bytes, policy: GcpPolicy) -> Firmware:
    for firmware in policy.firmware:
        if firmware.pcr0 == pcr0:
            return firmware
    listed = ", ".join(firmware.pcr0.hex() for firmware in policy.firmware)
    raise PolicyDenied("gcp.firmware", f"PCR0 is {pcr0.hex()}, the policy lists {listed or 'none'}")


def _check_rtmr2(rtmr2: bytes, policy: GcpPolicy) -> None:
    if policy.rtmr2 and rtmr2 not in policy.rtmr2:
        listed = ", ".join(value.hex() for value in policy.rtmr2)
        raise PolicyDenied("gcp.rtmr2", f"RTMR2 is {rtmr2.hex()}, the policy lists {listed}")
