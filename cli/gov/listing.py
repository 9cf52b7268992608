"""What the contracts allow, at one block: events say what was ever allowed, the state what of it is now."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cli.gov.chain import Account, Block, Contracts, Owner, Proxy
from cli.gov.code import Code, code_json, codes_of
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
    return _read_each(contracts, [one.value for one in found if one.is_allowed], at)


def read_app(contracts: Contracts, app_id: bytes, at: Block) -> App:
    """Return an app contract's settings. Anybody may have written it: no answer of its views raises."""
    return _read_each(contracts, [app_id], at)[0]


def _read_each(contracts: Contracts, app_ids: Sequence[bytes], at: Block) -> list[App]:
    proxies = contracts.proxies(app_ids, at)
    owners: dict[bytes, Account] = {}
    found = []
    for app_id, proxy, code in zip(app_ids, proxies, codes_of(contracts, proxies, at), strict=True):
        try:
            found.append(_read_views(contracts, app_id, proxy, code, owners, at))
        except DstackError as error:
            unread = "" if error.code in _FOREIGN else f"{error.message} [{error.code}]"
            found.append(App(app_id=app_id, code=code, unread=unread))
    return found


def _read_views(
    contracts: Contracts, app_id: bytes, proxy: Proxy, code: Code, owners: dict[bytes, Account], at: Block
) -> App:
    """Read an app's views at once, and what kind of account its owner is, where no other app has that one."""
    asked = (views.ALLOW_ANY_DEVICE, views.REQUIRE_TCB_UP_TO_DATE, views.OWNER, views.PENDING_OWNER)
    any_device, tcb, owner_word, pending = contracts.views(at, *((app_id, abi.call(view)) for view in asked))
    owner = abi.decode_address(owner_word)
    if owner not in owners:
        owners[owner] = contracts.account(owner, at)
    kind = owners[owner]
    return App(
        app_id=app_id,
        code=code,
        owner=Owner(
            address=owner,
            pending=abi.decode_address(pending),
            has_code=kind.has_code,
            threshold=kind.threshold,
            signers=kind.signers,
        ),
        allow_any_device=abi.decode_bool(any_device),
        require_tcb_up_to_date=abi.decode_bool(tcb),
        upgrades_disabled=proxy.upgrades_disabled,
    )


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
