"""What the contracts allow, at one block: events say what was ever allowed, the state what of it is now."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cli.gov.chain import Block, Contracts, Owner
from cli.gov.code import Code, code_json, code_of
from cli.gov.logs import Log, read_logs, require_canonical
from shared.chain import abi, events, views
from shared.chain.abi import checksum_address
from shared.chain.abi_values import decode_values
from shared.chain.events import Event
from shared.errors import DstackError, ProtocolError

# Views of so many values are asked for in one request: JSON-RPC endpoints bound a batch.
_BATCH = 100
_FOREIGN = frozenset({"rpc.reverted", "abi.malformed"})


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """One value that was allowed at some time, since block `since`, and whether it is now."""

    value: bytes
    is_allowed: bool
    since: int


class App(msgspec.Struct, frozen=True, kw_only=True):
    """A registered app. `owner` and what follows are None where the contract is of another kind than ours.

    `unread` says why they are None where its views could not be read at all.
    """

    app_id: bytes
    code: Code
    owner: Owner | None = None
    allow_any_device: bool | None = None
    require_tcb_up_to_date: bool | None = None
    upgrades_disabled: bool | None = None
    unread: str = ""


class KmsInfo(msgspec.Struct, frozen=True):
    """The keys that a KMS must have, as the contract publishes them; empty where it does not."""

    k256_pubkey: bytes
    ca_pubkey: bytes
    quote: bytes
    eventlog: bytes


def read_allowed(
    contracts: Contracts, contract: bytes, added: Event, view: bytes, first: int, at: Block
) -> list[Allowed]:
    """Return all values that a contract ever allowed with `added`, in order, and how `view` answers now.

    Raises `ProtocolError("gov.reorg")` where the block is replaced meanwhile, and as `read_logs`.
    """
    logs = read_logs(contracts, {contract}, [added], first, at.number)
    require_canonical(contracts, at)
    since: dict[bytes, int] = {}
    for log in logs:
        since[_value(log)] = log.block_number
    values = list(since)
    flags: list[bool] = []
    for start in range(0, len(values), _BATCH):
        part = values[start : start + _BATCH]
        flags += contracts.flags(at, *((contract, abi.call(view, value)) for value in part))
    return [
        Allowed(value=value, is_allowed=flag, since=since[value])
        for value, flag in zip(values, flags, strict=True)
    ]


def read_apps(contracts: Contracts, first: int, at: Block) -> list[App]:
    """Return the apps that the KMS contract knows; raises as `read_allowed`."""
    found = read_allowed(contracts, contracts.kms, events.APP_REGISTERED, views.REGISTERED_APPS, first, at)
    return [read_app(contracts, one.value, at) for one in found if one.is_allowed]


def read_app(contracts: Contracts, app_id: bytes, at: Block) -> App:
    """Return an app contract's settings. Anybody may have written it: no answer of its views raises."""
    code = code_of(contracts, app_id, at)
    try:
        any_device, tcb = contracts.flags(
            at,
            (app_id, abi.call(views.ALLOW_ANY_DEVICE)),
            (app_id, abi.call(views.REQUIRE_TCB_UP_TO_DATE)),
        )
        return App(
            app_id=app_id,
            code=code,
            owner=contracts.owner(app_id, at),
            allow_any_device=any_device,
            require_tcb_up_to_date=tcb,
            upgrades_disabled=contracts.upgrades_disabled(app_id, at),
        )
    except DstackError as error:
        unread = "" if error.code in _FOREIGN else f"{error.message} [{error.code}]"
        return App(app_id=app_id, code=code, unread=unread)


def read_kms_info(contracts: Contracts, at: Block) -> KmsInfo:
    """Return what the contract publishes of the KMS."""
    (raw,) = contracts.views(at, (contracts.kms, abi.call(views.KMS_INFO)))
    return KmsInfo(*(part for part in decode_values(("bytes",) * 4, raw) if isinstance(part, bytes)))


def owner_json(owner: Owner) -> dict[str, Any]:
    """Return what JSON says of an owner."""
    return {
        "owner": checksum_address(owner.address),
        "pending_owner": checksum_address(owner.pending) if any(owner.pending) else None,
        "safe": {
            "threshold": owner.threshold,
            "owners": [checksum_address(one) for one in owner.signers],
        }
        if owner.threshold
        else None,
        "is_contract": owner.has_code,
    }


def app_json(app: App) -> dict[str, Any]:
    """Return what JSON says of an app."""
    return {
        "app_id": checksum_address(app.app_id),
        "code": code_json(app.code),
        **({} if app.owner is None else owner_json(app.owner)),
        "allow_any_device": app.allow_any_device,
        "require_tcb_up_to_date": app.require_tcb_up_to_date,
        "upgrades_disabled": app.upgrades_disabled,
        "unread": app.unread,
    }


def allowed_json(found: Sequence[Allowed]) -> list[dict[str, Any]]:
    """Return what JSON says of values."""
    return [
        {"value": f"0x{one.value.hex()}", "allowed": one.is_allowed, "since_block": one.since}
        for one in found
    ]


def _value(log: Log) -> bytes:
    value = log.decoded.arguments[0]
    if not isinstance(value, bytes):
        raise ProtocolError("rpc.malformed", "a log names no hash and no address")
    return value
