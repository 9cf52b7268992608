"""One change of the contracts: the call that makes it, who may make it, and whether it is made already."""

from collections.abc import Sequence
from typing import Final

import msgspec

from cli.gov.cautions import cautions
from cli.gov.chain import ZERO_ADDRESS, Block, Contracts, Owner
from shared.chain import abi, calldata, views
from shared.chain.abi_values import Kind, Value, decode_values
from shared.chain.calldata import Function
from shared.errors import ConfigError, PolicyDenied, ProtocolError, UnavailableError


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A call to the contract at `to` (20 bytes); `notes` are what whoever signs should know."""

    to: bytes
    function: Function
    arguments: tuple[Value, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def calldata(self) -> bytes:
        """The bytes to send."""
        return calldata.encode_call(self.function, *self.arguments)

    @property
    def sent(self) -> tuple[bytes, bytes]:
        """To whom, and the bytes."""
        return self.to, self.calldata

    @property
    def text(self) -> str:
        """The call as people write it; several arguments each on a line of its own."""
        named = [
            f"{name}={calldata.shown(value)}"
            for (name, _), value in zip(self.function.parameters, self.arguments, strict=True)
        ]
        if len(named) < 2:
            return f"{self.function.name}({''.join(named)})"
        return f"{self.function.name}(" + "".join(f"\n          {one}" for one in named) + ")"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A change as it stands at a block. `sender` is whose call the contract takes, None for anyone's.

    `is_made` says that the contract is so already, or will be by the file that waits (`is_in_file`).
    """

    change: Change
    owner: Owner
    sender: bytes | None
    is_made: bool
    is_in_file: bool = False


_ALLOWED: Final = {
    "addOsImageHash": (views.ALLOWED_OS_IMAGES, True),
    "removeOsImageHash": (views.ALLOWED_OS_IMAGES, False),
    "addKmsAggregatedMr": (views.KMS_ALLOWED_AGGREGATED_MRS, True),
    "removeKmsAggregatedMr": (views.KMS_ALLOWED_AGGREGATED_MRS, False),
    "addKmsDevice": (views.KMS_ALLOWED_DEVICE_IDS, True),
    "removeKmsDevice": (views.KMS_ALLOWED_DEVICE_IDS, False),
    "registerApp": (views.REGISTERED_APPS, True),
    "addComposeHash": (views.ALLOWED_COMPOSE_HASHES, True),
    "removeComposeHash": (views.ALLOWED_COMPOSE_HASHES, False),
    "addDevice": (views.ALLOWED_DEVICE_IDS, True),
    "removeDevice": (views.ALLOWED_DEVICE_IDS, False),
}
_SETTINGS: Final[dict[str, tuple[bytes, tuple[Kind, ...]]]] = {
    "setAllowAnyDevice": (views.ALLOW_ANY_DEVICE, ("bool",)),
    "setRequireTcbUpToDate": (views.REQUIRE_TCB_UP_TO_DATE, ("bool",)),
    "setGatewayAppId": (abi.GATEWAY_APP_ID, ("string",)),
    "setAppImplementation": (abi.APP_IMPLEMENTATION, ("address",)),
    "setKmsInfo": (views.KMS_INFO, ("bytes",) * 4),
}
_FOREIGN: Final = frozenset({"rpc.reverted", "abi.malformed"})
# a device or a compose hash may be added later, and a transfer to nobody takes one back
_MAY_BE_ZERO: Final = (calldata.DEPLOY_AND_REGISTER_APP, calldata.TRANSFER_OWNERSHIP)


def look(contracts: Contracts, change: Change, at: Block) -> Seen:
    """Return how a change stands at a block, with what there is to note of it.

    Raises `ConfigError`: `gov.contract` where no contract is, or one whose views do not answer, `gov.zero`
    for an all-zero hash, which is what an absent one becomes on chain, `gov.app.deploy` for an app that the
    KMS contract would own; and `PolicyDenied("gov.no_transfer")` where nobody was
    named who could accept.
    """
    _refuse_zero(change)
    if change.function == calldata.DEPLOY_AND_REGISTER_APP and change.arguments[0] == change.to:
        raise ConfigError("gov.app.deploy", "the KMS contract shall own the app: it calls nobody, ever")
    contracts.require_code(change.to, at)
    try:
        return _look(contracts, change, at)
    except (UnavailableError, ProtocolError) as error:
        if error.code in _FOREIGN:
            raise contracts.another_kind(change.to) from error
        raise


def _look(contracts: Contracts, change: Change, at: Block) -> Seen:
    owner = contracts.owner(change.to, at)
    sender = {"owner": owner.address, "pending owner": owner.pending, "anyone": None}[change.function.caller]
    if sender == ZERO_ADDRESS and change.function.caller == "pending owner":
        raise PolicyDenied(
            "gov.no_transfer", f"no transfer of {abi.checksum_address(change.to)} waits to be accepted"
        )
    notes = (*change.notes, *cautions(contracts, change.to, change.function, change.arguments, at))
    return Seen(
        change=msgspec.structs.replace(change, notes=notes),
        owner=owner,
        sender=sender,
        is_made=_is_made(contracts, change, owner, at),
    )


def after(seen: Seen, kept: Sequence[Change]) -> Seen:
    """Return how a change stands where others are made before it: the last one that sets the same counts."""
    place, wanted = _sets(seen.change)
    told = [value for at, value in map(_sets, kept) if at == place]
    if not told:
        return seen
    return msgspec.structs.replace(seen, is_made=told[-1] == wanted, is_in_file=told[-1] == wanted)


def _sets(change: Change) -> tuple[tuple[bytes, str, Value], object]:
    """Return what a change sets, and to which value. A call that sets nothing else is alike with itself."""
    name, arguments = change.function.name, change.arguments
    if name in _ALLOWED:
        selector, value = _ALLOWED[name]
        return (change.to, selector.hex(), arguments[0]), value
    if name in _SETTINGS or name in {"transferOwnership", "upgradeToAndCall"}:
        return (change.to, name, b""), arguments
    return (change.to, name, change.calldata), True


def _is_made(contracts: Contracts, change: Change, owner: Owner, at: Block) -> bool:
    name, arguments = change.function.name, change.arguments
    if name in _ALLOWED and isinstance(key := arguments[0], bytes):
        selector, wanted = _ALLOWED[name]
        return contracts.flags(at, (change.to, abi.call(selector, key))) == [wanted]
    if name in _SETTINGS:
        selector, kinds = _SETTINGS[name]
        (answer,) = contracts.views(at, (change.to, abi.call(selector)))
        values = decode_values(kinds, answer)
        return (values if name != "setKmsInfo" else (values,)) == arguments
    if name == "disableUpgrades":
        return contracts.upgrades_disabled(change.to, at)
    if name == "transferOwnership":
        is_owner = owner.pending == ZERO_ADDRESS and owner.address == arguments[0]
        return is_owner or owner.pending == arguments[0]
    is_upgrade = name == "upgradeToAndCall" and arguments[1] == b""
    return is_upgrade and contracts.implementation(change.to, at) == arguments[0]


def _refuse_zero(change: Change) -> None:
    # whoever allowed zeros by mistake must be able to take them back
    if change.function.name.startswith("remove") or change.function in _MAY_BE_ZERO:
        return
    for (name, kind), value in zip(change.function.parameters, change.arguments, strict=True):
        if kind in {"bytes32", "address"} and isinstance(value, bytes) and not any(value):
            raise ConfigError("gov.zero", f"{name} is all zeros: no contract should ever have it")
