"""The report of an audit of a KMS: what was seen and found, in keys that stay."""

from typing import Any

import msgspec

from cli.kms_audit import Finding, Seen, Status, audit, caveats, outcome
from cli.kms_hints import hint_for_kms
from cli.kms_meta import Meta
from cli.kms_strictness import LaxSetting
from shared.attestation.identity import info_of
from shared.attestation.image import check_image
from shared.attestation.verdict import Verdict
from shared.attestation.verify import VerifiedAttestation
from shared.chain.decision import Decision
from shared.errors import DstackError, ExitCode


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The contract that was asked, and through whom. `finalized_block` is None where nothing was proven."""

    kms_contract: str
    chain_id: int
    hosts: tuple[str, ...]
    finalized_block: int | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the KMS says of itself, keys in hex. `other` holds what this program does not know."""

    ca_pubkey: str
    k256_pubkey: str
    ca_cert: str
    kms_contract: str | None
    chain_id: int | None
    app_implementation: str | None
    gateway_app_id: str | None
    policy: dict[str, Any] | None
    unreported: tuple[str, ...]
    other: dict[str, Any]


class KmsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found. Times are unix seconds; `exit_code` tells a refusal (3) from a failed network (1).

    `code`, `reason` and `hint` are of the first lane that was refused or failed, and `caveats` say what an
    audit without a fault did not look at. `simulated` is None until evidence was verified.
    """

    is_valid: bool
    exit_code: ExitCode
    url: str
    judged_at: int
    simulated: bool | None
    caveats: tuple[str, ...]
    code: str | None
    reason: str | None
    hint: str | None
    lanes: dict[str, Finding]
    lax: tuple[LaxSetting, ...]
    chain: Chain | None
    kms: Told | None
    app_info: dict[str, Any] | None
    verdict: Verdict | None
    bootstrap_verdict: Verdict | None


def report_on(seen: Seen, *, url: str, hostname: str, now: int) -> KmsReport:
    """Judge what one visit to `url` brought back, at `now` (unix seconds)."""
    lanes = audit(seen, hostname=hostname, now=now)
    with_contract = seen.contract is not None
    exit_code = outcome(lanes, with_contract=with_contract)
    fault = _first_fault(lanes, exit_code)
    server = _checked(seen.server)
    bootstrap = _checked(seen.record_evidence)
    found = [one.verdict.simulated for one in (server, bootstrap) if one is not None]
    return KmsReport(
        is_valid=exit_code is ExitCode.OK,
        exit_code=exit_code,
        url=url,
        judged_at=now,
        simulated=any(found) if found else None,
        caveats=caveats(lanes, with_contract=with_contract),
        code=None if fault is None else fault.code,
        reason=None if fault is None else fault.reason,
        hint=None if fault is None or fault.code is None else hint_for_kms(fault.code),
        lanes=lanes,
        lax=seen.meta.lax if isinstance(seen.meta, Meta) else (),
        chain=_chain(seen),
        kms=_told(seen.meta) if isinstance(seen.meta, Meta) else None,
        app_info=info_of(server).to_json() if server and lanes["image"].status is Status.VERIFIED else None,
        verdict=None if server is None else server.verdict,
        bootstrap_verdict=None if bootstrap is None else bootstrap.verdict,
    )


def _first_fault(lanes: dict[str, Finding], exit_code: ExitCode) -> Finding | None:
    if exit_code is ExitCode.OK:
        return None
    wanted = Status.FAILED if exit_code is ExitCode.FAILED else Status.REFUSED
    return next((finding for finding in lanes.values() if finding.status is wanted), None)


def _checked(found: VerifiedAttestation | DstackError | None) -> VerifiedAttestation | None:
    """Return verified evidence, with the lanes of its image where that is the measured one."""
    if not isinstance(found, VerifiedAttestation):
        return None
    try:
        return check_image(found)
    except DstackError:
        return found


def _chain(seen: Seen) -> Chain | None:
    if seen.contract is None:
        return None
    decision = None if seen.proven is None else seen.proven.decision
    return Chain(
        kms_contract=f"0x{seen.contract.address.hex()}",
        chain_id=seen.contract.chain_id,
        hosts=seen.contract.hosts,
        finalized_block=decision.finalized_number if isinstance(decision, Decision) else None,
    )


def _told(meta: Meta) -> Told:
    return Told(
        ca_pubkey=meta.ca_pubkey.hex(),
        k256_pubkey=meta.k256_pubkey.hex(),
        ca_cert=meta.ca_pem.decode(),
        kms_contract=None if meta.kms_contract is None else f"0x{meta.kms_contract.hex()}",
        chain_id=meta.chain_id,
        app_implementation=meta.app_implementation,
        gateway_app_id=meta.gateway_app_id,
        policy=meta.policy_told,
        unreported=() if meta.policy is None else meta.policy.unreported,
        other=meta.other,
    )
