"""`gov approve`: the calls of a plan, read from their calldata and not from what the plan says of them."""

from typing import BinaryIO, Final

import click
import msgspec

from cli.gov.acting import carry_out
from cli.gov.change import Change
from cli.gov.options import Acting, Where, acting_options, address
from shared.chain.approval import is_of_a_plan
from shared.chain.calldata import decode_call
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex

MAX_PLAN_BYTES: Final = 4 * 1024 * 1024


class _Call(msgspec.Struct):
    to: str | None
    calldata: str
    why: str = ""


class _Approval(msgspec.Struct):
    calls: list[_Call]


class _Plan(msgspec.Struct):
    approval: _Approval


@click.command()
@click.argument("plan", type=click.File("rb"))
@acting_options
def approve(plan: BinaryIO, where: Where, acting: Acting) -> None:
    """Make the calls that PLAN, of `dstack-cloud plan --json`, says are missing.

    A plan asks for hashes and devices to be allowed, for an app to be made or registered, and for no TCB
    status where the platform has none. Anything else is refused: it has a command of its own, with checks.
    """
    raw = plan.read(MAX_PLAN_BYTES + 1)
    try:
        read = msgspec.json.decode(raw, type=_Plan)
        changes = [_change(one, where) for one in read.approval.calls]
    except (msgspec.DecodeError, ProtocolError) as error:
        raise ConfigError("gov.plan", f"the plan holds no calls of ours: {error}") from error
    carry_out(where, acting, changes)


def _change(call: _Call, where: Where) -> Change:
    if call.to is None:
        raise ConfigError("gov.plan", "the plan does not know the app contract's address: plan with --rpc")
    function, arguments = decode_call(decode_hex(call.calldata, what="calldata"))
    to = address(call.to, "the plan's to")
    if (function.target == "kms") != (to == where.kms):
        raise ConfigError("gov.plan", f"{function.name} goes to another contract than it is of: {call.to}")
    change = Change(to=to, function=function, arguments=arguments)
    if not is_of_a_plan(function, arguments):
        raise ConfigError("gov.plan", f"no plan of ours asks for {change.text}")
    return change
