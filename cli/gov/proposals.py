"""What waits for a Safe's owners: told by a service, checked against the chain.

A proposal counts where the hash that owners sign is that of its fields, and a signature where a current owner
made it. Owners, threshold, nonce and domain are the chain's. What does not hold is dropped, and said to be.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from cli.gov.chain import Block, Contracts, Owner
from cli.gov.meaning import meaning_of
from cli.gov.safe_service import Pending, SafeService, Told
from cli.gov.safe_tx import domain_separators, signer_of
from shared.chain import abi, views
from shared.chain.abi import checksum_address
from shared.errors import ProtocolError
from shared.net.json_rpc import RevertedError


class SafeState(msgspec.Struct, frozen=True):
    """A Safe at one block: `threshold` of `signers` must sign, and their signatures are bound to `domain`."""

    address: bytes
    nonce: int
    threshold: int
    signers: tuple[bytes, ...]
    domain: bytes


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """One checked proposal. `signed` are the current owners that did, `unproven` counts other confirmations.

    `rivals` counts others with its nonce: of all of them one can be executed.
    """

    hash: bytes
    nonce: int
    signed: tuple[bytes, ...]
    unproven: int
    rivals: int
    calls: tuple[str, ...]
    dangers: tuple[str, ...]


class Proposals(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for one Safe. `dropped` says what the service told that cannot be so."""

    safe: SafeState
    host: str
    proposals: tuple[Proposal, ...]
    dropped: tuple[str, ...]


def read_safe(contracts: Contracts, owner: Owner, at: Block) -> SafeState:
    """Return a Safe's state. Raises `ProtocolError("gov.safe_domain")` where it signs other hashes."""
    try:
        nonce, domain = contracts.views(
            at,
            (owner.address, abi.call(views.SAFE_NONCE)),
            (owner.address, abi.call(views.SAFE_DOMAIN_SEPARATOR)),
        )
    except RevertedError:
        nonce, domain = b"", b""
    if domain not in domain_separators(owner.address, at.chain_id) or len(nonce) != 32:
        raise ProtocolError(
            "gov.safe_domain", f"{checksum_address(owner.address)} is no Safe whose proposals are known here"
        )
    return SafeState(owner.address, int.from_bytes(nonce, "big"), owner.threshold, owner.signers, domain)


def read_proposals(
    contracts: Contracts, service: SafeService, owner: Owner, apps: Collection[bytes], at: Block
) -> Proposals:
    """Return what waits for the Safe `owner`. Raises as `read_safe`, the service and the endpoint do."""
    safe = read_safe(contracts, owner, at)
    pending = service.pending(safe.address, safe.nonce)
    kept: dict[bytes, list[Told]] = {}
    forged, stale = 0, 0
    for told in pending.told:
        digest = told.transaction.hash(safe.domain)
        if digest != told.claimed:
            forged += 1
        elif told.transaction.nonce < safe.nonce:
            stale += 1
        else:
            kept.setdefault(digest, []).append(told)
    at_nonce = Counter(same[0].transaction.nonce for same in kept.values())
    found = [
        _proposal(contracts, safe, digest, same, at_nonce[same[0].transaction.nonce] - 1, apps, at)
        for digest, same in kept.items()
    ]
    return Proposals(
        safe=safe,
        host=service.host,
        proposals=tuple(sorted(found, key=lambda one: (one.nonce, -len(one.signed), one.hash))),
        dropped=tuple(_dropped(safe, pending, forged, stale)),
    )


def state_text(safe: SafeState, one: Proposal) -> str:
    """Return what a proposal still needs."""
    missing = max(0, safe.threshold - len(one.signed))
    needs = f"{missing} more must sign" if missing else "signed by enough"
    if one.nonce > safe.nonce:
        return f"{needs}, blocked until nonce {one.nonce - 1} is used"
    return needs if missing else "executable now, by anyone"


def proposals_json(found: Proposals) -> dict[str, Any]:
    """Return what JSON says of a Safe's proposals."""
    safe = found.safe
    return {
        "safe": checksum_address(safe.address),
        "nonce": safe.nonce,
        "threshold": safe.threshold,
        "service": found.host,
        "proposals": [
            {
                "safe_tx_hash": f"0x{one.hash.hex()}",
                "nonce": one.nonce,
                "signed": [checksum_address(signer) for signer in one.signed],
                "unproven_confirmations": one.unproven,
                "executable": one.nonce == safe.nonce and len(one.signed) >= safe.threshold,
                "state": state_text(safe, one),
                "rivals": one.rivals,
                "calls": list(one.calls),
                "dangers": list(one.dangers),
            }
            for one in found.proposals
        ],
        "dropped": list(found.dropped),
    }


def proposal_lines(found: Proposals) -> list[str]:
    """Return what people read of a Safe's proposals."""
    safe = found.safe
    name = checksum_address(safe.address)
    told = f"{len(found.proposals)}, told by {found.host} and checked here"
    lines = [f"proposals of the Safe {name}, at nonce {safe.nonce}: {told}"]
    for one in found.proposals:
        lines.append(
            f"  nonce {one.nonce}  {len(one.signed)} of {safe.threshold} signed, {state_text(safe, one)}"
        )
        lines.append(f"    hash    0x{one.hash.hex()}")
        lines += [f"    signed  {checksum_address(signer)}" for signer in one.signed]
        lines += [f"    does    {call}" for call in one.calls]
        if one.rivals:
            lines.append(f"    rivals  {one.rivals} more with this nonce: one of them can be executed")
        if not one.signed:
            lines.append(
                "    note    no owner signed it: nothing but the service says that anybody proposed it"
            )
        if one.unproven:
            lines.append(
                f"    note    {one.unproven} confirmations that no current owner's key made do not count"
            )
        lines += [f"    DANGER  {danger}" for danger in one.dangers]
    return lines


def _proposal(
    contracts: Contracts,
    safe: SafeState,
    digest: bytes,
    same: Sequence[Told],
    rivals: int,
    apps: Collection[bytes],
    at: Block,
) -> Proposal:
    signatures = {signature for told in same for signature in told.signatures}
    signed, unproven = _signed(contracts, safe, digest, signatures, at)
    transaction = same[0].transaction
    meaning = meaning_of(contracts, safe.address, apps, transaction.call, at)
    refund = (
        (f"pays {checksum_address(transaction.refund_receiver)} or whoever executes it, at a price it names",)
        if transaction.gas_price
        else ()
    )
    return Proposal(
        hash=digest,
        nonce=transaction.nonce,
        signed=tuple(sorted(signed)),
        unproven=unproven,
        rivals=rivals,
        calls=meaning.calls,
        dangers=(*meaning.dangers, *refund),
    )


def _signed(
    contracts: Contracts, safe: SafeState, digest: bytes, signatures: Collection[bytes], at: Block
) -> tuple[set[bytes], int]:
    """Return the current owners who signed, and how many signatures are nobody's of them."""
    signed: set[bytes] = set()
    approvals: set[bytes] = set()
    unproven = 0
    for signature in signatures:
        found = signer_of(signature, digest)
        if found is None or found.owner not in safe.signers:
            unproven += 1
        elif found.is_approval:
            approvals.add(found.owner)
        else:
            signed.add(found.owner)
    asked = sorted(approvals - signed)
    words = contracts.views(
        at, *((safe.address, abi.call(views.SAFE_APPROVED_HASHES, owner, digest)) for owner in asked)
    )
    for owner, word in zip(asked, words, strict=True):
        if any(word):
            signed.add(owner)
        else:
            unproven += 1
    return signed, unproven


def _dropped(safe: SafeState, pending: Pending, forged: int, stale: int) -> list[str]:
    """Return what the service told that the chain does not bear out."""
    found = []
    if forged:
        found.append(
            f"{forged} proposals whose hash is not that of their fields: the service is wrong, or lies"
        )
    if stale:
        found.append(f"{stale} proposals whose nonce is used")
    if pending.unreadable:
        found.append(f"{pending.unreadable} entries that are no proposals")
    if pending.is_cut:
        found.append("proposals behind those: there are more than are read")
    info = pending.info
    if (info.nonce, info.threshold, info.owners) != (safe.nonce, safe.threshold, frozenset(safe.signers)):
        found.append(
            "the service's own picture of the Safe, which is another than the chain's: it lags, or lies"
        )
    return found
