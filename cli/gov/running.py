"""What runs that the contracts no longer allow: deployments, held to the state of one block."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from cli.gov.chain import Block, Contracts
from shared.chain import abi, rules, views
from shared.errors import DstackError
from shared.hex import decode_hex

_FOREIGN: Final = frozenset({"rpc.reverted", "abi.malformed"})
_STEPS: Final = frozenset({"running"})
_APP_ID_BYTES: Final = 20


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment that runs, and why a KMS would refuse it now: sentences, none where it would not.

    A device is looked at where the deployment's evidence named it. `unread` says why the app contract could
    not be read, where that is so: then it is not known.
    """

    name: str
    app_id: str
    compose_hash: str
    os_image_hash: str
    refused: tuple[str, ...]
    unread: str = ""


def held_to_policy(contracts: Contracts, deployments: Iterable[dict[str, Any]], at: Block) -> list[Held]:
    """Return the deployments that run, each held to the contracts."""
    return [_held(contracts, one, at) for one in deployments if one["step"] in _STEPS and one.get("planned")]


def _held(contracts: Contracts, deployment: dict[str, Any], at: Block) -> Held:
    planned = deployment["planned"]
    running = deployment.get("running") or {}
    app_id, compose_hash, image = (
        decode_hex(planned[name], what=name) for name in ("app_id", "compose_hash", "os_image_hash")
    )
    image_allowed, registered = contracts.flags(
        at,
        (contracts.kms, abi.call(views.ALLOWED_OS_IMAGES, image)),
        (contracts.kms, abi.call(views.REGISTERED_APPS, app_id)),
    )
    refused = [] if image_allowed else ["the os image is not allowed"]
    unread = ""
    if registered:
        try:
            refused += _app_refusals(contracts, app_id, compose_hash, planned, running, at)
        except DstackError as error:
            if error.code in _FOREIGN:
                refused.append("the app contract is of another kind, or reverts")
            else:
                unread = f"{error.message} [{error.code}]"
    else:
        refused.append("the app is not registered")
    return Held(
        name=deployment["name"],
        app_id=planned["app_id"],
        compose_hash=planned["compose_hash"],
        os_image_hash=planned["os_image_hash"],
        refused=tuple(refused),
        unread=unread,
    )


def _app_refusals(
    contracts: Contracts,
    app_id: bytes,
    compose_hash: bytes,
    planned: dict[str, Any],
    running: dict[str, Any],
    at: Block,
) -> list[str]:
    found = []
    compose_allowed, any_device = contracts.flags(
        at,
        (app_id, abi.call(views.ALLOWED_COMPOSE_HASHES, compose_hash)),
        (app_id, abi.call(views.ALLOW_ANY_DEVICE)),
    )
    if not compose_allowed:
        found.append("the compose hash is not allowed")
    device = str((running.get("proven") or {}).get("device_id") or "")
    if device and not any_device:
        call = abi.call(views.ALLOWED_DEVICE_IDS, decode_hex(device, what="device_id"))
        if contracts.flags(at, (app_id, call)) == [False]:
            found.append("the device is not allowed")
    if _tcb_status(planned, running) != rules.UP_TO_DATE and _wants_tcb(contracts, app_id, at):
        found.append("the app wants a tcb status of UpToDate")
    return found


def _tcb_status(planned: dict[str, Any], running: dict[str, Any]) -> str:
    """Return what the evidence said of the TCB; where none was seen, what the platform's says at best."""
    told = (running.get("verdict") or {}).get("tcb_status")
    if told is not None:
        return str(told)
    return "" if planned.get("platform") == "nitro" else rules.UP_TO_DATE


def _wants_tcb(contracts: Contracts, app_id: bytes, at: Block) -> bool:
    try:
        return contracts.flags(at, (app_id, abi.call(views.REQUIRE_TCB_UP_TO_DATE))) == [True]
    except DstackError as error:
        if error.code in _FOREIGN:
            return False  # an app contract of the first version, which wants nothing
        raise
