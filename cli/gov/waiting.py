"""Deployments that wait for governance, and the calls that they still need.

What is missing is what the contracts say now, and not what was noted when the deployment was made.
"""

from collections.abc import Iterable

import msgspec

from cli.gov.chain import Block, Contracts, unread
from cli.gov.change import Change, Seen, look
from functions.deploy.record import Deployment, Planned, Step
from functions.plan.assembly import Asked, wanted_of
from functions.plan.model import AppIdentity
from shared.chain.approval import Approval, Call, needed_approval
from shared.chain.calldata import decode_call
from shared.chain.header import BlockRef
from shared.errors import DstackError
from shared.hex import decode_hex
from shared.net.contract_reader import ContractReader


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment that waits, and the calls that it still needs; `blocked` is what no call mends.

    `unread` says why all that is not known, where that is so.
    """

    name: str
    calls: tuple[Seen, ...] = ()
    blocked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unread: str = ""


def waiting_for_calls(contracts: Contracts, deployments: Iterable[Deployment], at: Block) -> list[Waiting]:
    """Return the deployments that wait, each with the calls that are missing at a block."""
    return [
        _waiting(contracts, one, one.planned, at)
        for one in deployments
        if one.step is Step.AWAIT_APPROVAL and one.planned is not None
    ]


def _waiting(contracts: Contracts, found: Deployment, planned: Planned, at: Block) -> Waiting:
    try:
        approval = _approval(contracts, found, planned, at)
        calls = tuple(look(contracts, _change(contracts, call), at) for call in approval.calls)
    except DstackError as error:
        return Waiting(name=found.name, unread=unread(error))
    return Waiting(name=found.name, calls=calls, blocked=approval.blocked, notes=approval.notes)


def _approval(contracts: Contracts, found: Deployment, planned: Planned, at: Block) -> Approval:
    """Return what is missing, by the rule that the deployment itself waits by."""
    wanted, boot_info = wanted_of(
        planned.platform,
        AppIdentity(planned.app_id, "app.json"),
        bytes.fromhex(planned.compose_hash),
        bytes.fromhex(planned.os_image_hash),
        Asked(_setting(found, "device_id"), _setting(found, "app_owner"), contracts.kms),
    )
    reader = ContractReader(contracts.endpoint, contracts.kms)
    state = reader.read_at(BlockRef(at.number, at.hash), boot_info, at.chain_id)
    return needed_approval(wanted, contracts.kms, state)


def _setting(found: Deployment, name: str) -> bytes | None:
    return decode_hex(found.settings.get(name, ""), what=name) or None


def _change(contracts: Contracts, call: Call) -> Change:
    function, arguments = decode_call(call.calldata)
    return Change(to=call.to or contracts.kms, function=function, arguments=arguments)
