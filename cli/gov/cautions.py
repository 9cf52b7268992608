"""What of a change nobody should sign without a thought, and who may own what is made."""

from collections.abc import Mapping
from typing import Final

from cli.gov.chain import ZERO_ADDRESS, Block, Contracts
from cli.gov.listing import read_kms_info
from shared.chain import calldata
from shared.chain.abi import checksum_address
from shared.chain.abi_values import Value
from shared.chain.calldata import Function
from shared.errors import ConfigError

_ANY_DEVICE: Final = "lets the app run on any device"
_FIXED: Final = "takes away for ever that the app's code can be mended"
# Functions that weaken what holds now: with these arguments, None for any.
_WEAKENING: Final[Mapping[Function, tuple[tuple[Value, ...] | None, str]]] = {
    calldata.DISABLE_UPGRADES: (None, _FIXED),
    calldata.SET_ALLOW_ANY_DEVICE: ((True,), _ANY_DEVICE),
    calldata.SET_REQUIRE_TCB_UP_TO_DATE: ((False,), "lets the app run on platforms with known holes"),
}


def weakens(function: Function, arguments: tuple[Value, ...]) -> list[str]:
    """Return what a call weakens, whatever the contracts say now."""
    if function == calldata.DEPLOY_AND_REGISTER_APP:
        return [why for flag, why in ((arguments[3], _ANY_DEVICE), (arguments[1], _FIXED)) if flag]
    given, why = _WEAKENING.get(function, ((), ""))
    return [why] if why and given in {None, arguments} else []


def cautions(
    contracts: Contracts, to: bytes, function: Function, arguments: tuple[Value, ...], at: Block
) -> tuple[str, ...]:
    """Return what whoever signs a call to a contract should know. Raises what the endpoint raises."""
    found = weakens(function, arguments)
    if function == calldata.DEPLOY_AND_REGISTER_APP and isinstance(owner := arguments[0], bytes):
        if not contracts.code(owner, at):
            found.append(f"a single key will own the app: {checksum_address(owner)}")
    elif function == calldata.TRANSFER_OWNERSHIP and isinstance(owner := arguments[0], bytes):
        found += _who_would_accept(contracts, to, owner, at)
    elif function == calldata.SET_KMS_INFO and to == contracts.kms and isinstance(arguments[0], tuple):
        new, old = arguments[0][0], read_kms_info(contracts, at).k256_pubkey
        if old and old != new:
            found.append(
                f"replaces the published keys, k256 {old.hex()}: deployers will encrypt to k256 "
                f"{calldata.shown(new)[2:]}, and a KMS that has the old ones is refused"
            )
    return tuple(found)


def _who_would_accept(contracts: Contracts, to: bytes, owner: bytes, at: Block) -> list[str]:
    """Return what is wrong, or weak, with whom a contract is offered to. Raises what the endpoint raises."""
    name = checksum_address(owner)
    if owner == ZERO_ADDRESS:
        return []
    if owner in {to, contracts.kms}:
        which = "the contract itself" if owner == to else "the KMS contract"
        return [f"{name} is {which}, which calls nobody: it can never accept"]
    kind = contracts.account(owner, at)
    if kind.threshold:
        return []
    if kind.has_code:
        return [f"{name} is a contract, not a Safe: it must be one that can accept"]
    if contracts.nonce(owner, at):
        return [f"a single key will own the contract: {name}"]
    unused = f"{name} has no code, and never sent a transaction"
    return [f"{unused}: a single key will own the contract, or nobody has that key"]


def owner_to_be(contracts: Contracts, owner: bytes, at: Block, *, may_be_key: bool) -> bytes:
    """Return who shall own a contract: one on this chain, as a Safe is, or a key where that is said.

    Raises `ConfigError("gov.deploy.owner")`.
    """
    has_code = bool(contracts.code(owner, at))
    if owner == ZERO_ADDRESS or has_code == may_be_key:
        kind = "is a contract on this chain" if has_code else "is no contract on this chain, expected a Safe"
        advice = "leave --owner-is-key out" if has_code else "--owner-is-key takes a key's account"
        raise ConfigError("gov.deploy.owner", f"{checksum_address(owner)} {kind}: {advice}")
    return owner
