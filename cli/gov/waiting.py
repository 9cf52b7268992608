"""Deployments that wait for governance, and the calls that they still need.

What is missing is what the contracts say now, and not what was noted when the deployment was made.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from cli.gov.chain import Block, Contracts
from cli.gov.change import Change, Seen, look
from shared.chain.calldata import ADD_COMPOSE_HASH, ADD_OS_IMAGE_HASH, REGISTER_APP
from shared.errors import DstackError
from shared.hex import decode_hex

STEP: Final = "await_approval"


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment that waits, and the calls that it still needs; `blocked` is what no call here mends."""

    name: str
    calls: tuple[Seen, ...]
    blocked: tuple[str, ...]


def waiting_for_calls(
    contracts: Contracts, deployments: Iterable[dict[str, Any]], at: Block
) -> list[Waiting]:
    """Return the deployments that wait, each with the calls that are missing at a block."""
    return [
        _waiting(contracts, one["name"], one["planned"], at)
        for one in deployments
        if one["step"] == STEP and one.get("planned")
    ]


def _waiting(contracts: Contracts, name: str, planned: dict[str, Any], at: Block) -> Waiting:
    app_id, compose_hash, image = (
        decode_hex(planned[field], what=field) for field in ("app_id", "compose_hash", "os_image_hash")
    )
    calls: list[Seen] = []
    blocked: list[str] = []
    for change in _needed(contracts.kms, app_id, compose_hash, image):
        try:
            seen = look(contracts, change, at)
        except DstackError as error:
            if change.to != app_id:
                raise
            blocked.append(_blocked(error, has_code=bool(contracts.code(app_id, at))))
            continue
        if not seen.is_made:
            calls.append(seen)
    return Waiting(name=name, calls=tuple(calls), blocked=tuple(blocked))


def _blocked(error: DstackError, *, has_code: bool) -> str:
    if error.code == "gov.contract":
        found = "a contract of another kind" if has_code else "no contract"
        return f"{found} is at the app id: only the plan tells what makes one"
    return f"the app contract could not be read: {error.message} [{error.code}]"


def _needed(kms: bytes, app_id: bytes, compose_hash: bytes, image: bytes) -> Sequence[Change]:
    return (
        Change(to=kms, function=ADD_OS_IMAGE_HASH, arguments=(image,)),
        Change(to=kms, function=REGISTER_APP, arguments=(app_id,)),
        Change(to=app_id, function=ADD_COMPOSE_HASH, arguments=(compose_hash,)),
    )
