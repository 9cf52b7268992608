"""How `dstack-cloud plan` shows a plan to a person: what runs, what changes, who must approve."""

from collections.abc import Iterator

import click

from cli.compose import change_line, print_findings, visible
from functions.plan.model import ApprovalPlan, DiskPlan, Plan

_OUTCOME = {
    "nothing": "NOTHING TO DO  what is deployed is what the project says",
    "changes": "CHANGES PENDING",
    "approval": "NEEDS APPROVAL  the contracts do not allow this yet",
    "refused": "REFUSED  errors must be mended first",
}


# A chain that makes blocks has one of the last minutes; an endpoint that lags shows what was allowed then.
_OLD_BLOCK = 15 * 60


def print_plan(plan: Plan, now: int) -> None:
    """Print a plan, its outcome last; `now` in unix seconds."""
    for line in _lines(plan):
        click.echo(line)
    print_findings(plan.findings)
    for line in _approval(plan, now):
        click.echo(line)
    click.echo(_OUTCOME[plan.outcome])


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{visible(plan.name)} on {plan.platform}, plan {plan.plan_id[:16]}"
    yield _fact("app_id", f"{plan.app.app_id or 'none yet'}  ({_SOURCES[plan.app.source]})")
    size = f", {plan.compose.size} bytes" if plan.compose.size else ""
    yield _fact("compose_hash", f"{plan.compose.compose_hash}  ({_FORMS[plan.compose.form]}{size})")
    yield _fact("os_image_hash", f"{plan.image.os_image_hash}  ({visible(plan.image.source)})")
    for name, value in plan.image.registers.items():
        yield _fact(f"  {name}", value)
    for name, value in plan.image.inputs.items():
        yield _fact(f"  {name}", visible(value))
    yield from _disk(plan.config_disk)
    if plan.deployed is None:
        yield "deployed: nothing, as far as state.json says"
        return
    yield f"deployed, by {visible(plan.deployed.source)}: {len(plan.changes)} changes"
    for change in plan.changes:
        yield change_line(change.path, change.kind, change.old, change.new, change.lines)


_SOURCES = {
    "option": "--app-id",
    "app.json": "app.json",
    "compose_hash": "derived from the compose hash",
    "none": "the app contract's address",
}
_FORMS = {"canonical": "canonical", "verbatim": "the project's bytes", "image": "the enclave image's hash"}


def _disk(disk: DiskPlan | None) -> Iterator[str]:
    if disk is None:
        return
    yield _fact("config disk", f"{disk.size} bytes, sha256 {disk.sha256 or 'not known yet'}")
    for file in disk.files:
        yield _fact("", f"{file.name}  {file.size} bytes, sha256 {file.sha256}")
    for reason in disk.pending:
        yield _fact("", f"pending: {reason}")


def _approval(plan: Plan, now: int) -> Iterator[str]:
    approval = plan.approval
    if plan.chain is not None:
        yield (
            f"chain {plan.chain.chain_id} at block {plan.chain.block_number}, "
            f"kms contract {plan.chain.kms_contract}: {_verdict(approval)}"
        )
        if (age := now - plan.chain.block_time) > _OLD_BLOCK:
            yield f"note: that block is {age // 60} minutes old: the chain stands still, or the endpoint lags"
    elif plan.outcome != "refused":
        yield "chain: not asked; a deployment needs these calls unless they were made before"
    for number, call in enumerate(approval.calls, 1):
        arguments = ", ".join(f"{item.name}={item.value}" for item in call.arguments)
        yield f"call {number}: {call.function.partition('(')[0]}({arguments})"
        yield _fact("  why", call.why)
        yield _fact("  to", call.to or "the contract's address, not known here")
        owner = f"{call.sender}, its owner" if call.sender else "its owner"
        yield _fact("  sender", owner if call.owner_only else "anyone")
        yield _fact("  data", call.calldata)
    for reason in approval.blocked:
        yield f"blocked: {visible(reason)}"
    if approval.new_app_id:
        yield _fact("new app id", approval.new_app_id)
    for note in approval.notes:
        yield f"note: {note}"


def _verdict(approval: ApprovalPlan) -> str:
    if not approval.calls and not approval.blocked:
        return "allows this deployment"
    return f"missing calls: {len(approval.calls)}"


def _fact(name: str, value: str) -> str:
    return f"  {name:<14} {value}"
