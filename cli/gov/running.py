"""What runs that the contracts no longer allow: deployments, held to the state of one block."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from cli.gov.chain import Block, Contracts
from shared.chain import abi, views
from shared.errors import ProtocolError, UnavailableError
from shared.hex import decode_hex

_FOREIGN: Final = frozenset({"rpc.reverted", "abi.malformed"})
_STEPS: Final = frozenset({"running"})
_APP_ID_BYTES: Final = 20


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment that runs, and why a KMS would refuse it now: sentences, none where it would not.

    A device is looked at where the deployment's evidence named it.
    """

    name: str
    app_id: str
    compose_hash: str
    os_image_hash: str
    refused: tuple[str, ...]


def held_to_policy(contracts: Contracts, deployments: Iterable[dict[str, Any]], at: Block) -> list[Held]:
    """Return the deployments that run, each held to the contracts."""
    return [_held(contracts, one, at) for one in deployments if one["step"] in _STEPS and one.get("planned")]


def _held(contracts: Contracts, deployment: dict[str, Any], at: Block) -> Held:
    planned = deployment["planned"]
    verdict = (deployment.get("running") or {}).get("verdict") or {}
    return Held(
        name=deployment["name"],
        app_id=planned["app_id"],
        compose_hash=planned["compose_hash"],
        os_image_hash=planned["os_image_hash"],
        refused=tuple(_refusals(contracts, planned, str(verdict.get("device_id") or ""), at)),
    )


def _refusals(contracts: Contracts, planned: dict[str, Any], device: str, at: Block) -> list[str]:
    app_id, compose_hash, image = (
        decode_hex(planned[name], what=name) for name in ("app_id", "compose_hash", "os_image_hash")
    )
    image_allowed, registered = contracts.flags(
        at,
        (contracts.kms, abi.call(views.ALLOWED_OS_IMAGES, image)),
        (contracts.kms, abi.call(views.REGISTERED_APPS, app_id)),
    )
    found = [] if image_allowed else ["the os image is not allowed"]
    if not registered:
        return [*found, "the app is not registered"]
    try:
        compose_allowed, any_device = contracts.flags(
            at,
            (app_id, abi.call(views.ALLOWED_COMPOSE_HASHES, compose_hash)),
            (app_id, abi.call(views.ALLOW_ANY_DEVICE)),
        )
        if not compose_allowed:
            found.append("the compose hash is not allowed")
        if device and not any_device:
            call = abi.call(views.ALLOWED_DEVICE_IDS, decode_hex(device, what="device_id"))
            if contracts.flags(at, (app_id, call)) == [False]:
                found.append("the device is not allowed")
    except (UnavailableError, ProtocolError) as error:
        if error.code not in _FOREIGN:
            raise
        found.append("the app contract is of another kind, or reverts")
    return found
