"""What becomes of changes: they are shown, and then simulated, written for a Safe, or sent."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli.gov.batch_file import read_kept
from cli.gov.chain import Block, Contracts, Owner, as_hex, head_json, head_text
from cli.gov.change import Change, Seen, after, look
from cli.gov.options import Acting, Where, contracts_of
from cli.gov.reverts import revert_reason
from cli.gov.safe_batch import Sent, batch_text
from cli.places import state_path
from cli.whole_file import write_whole
from shared.chain.abi import checksum_address
from shared.chain.calldata import DEPLOY_AND_REGISTER_APP, shown
from shared.errors import ConfigError, ExitCode, PolicyDenied, StorageError
from shared.net.json_rpc import RevertedError

if TYPE_CHECKING:
    from cli.gov.sending import Receipt


def carry_out(where: Where, acting: Acting, changes: Sequence[Change]) -> NoReturn:
    """Show changes of the contracts as they are now, and do with them what the options say; then exit.

    What a file has to which they are added is shown with them. 0 where there is nothing to do or it was done,
    4 where it is still to be done, 5 where a Safe must sign. Raises what `look`, `read_kept`, `Sender.send`
    and the endpoint raise, `ConfigError`: `gov.mode`, `gov.safe_file`; `PolicyDenied`: `gov.not_owner`,
    `gov.would_revert`.
    """
    acting.check(where)
    contracts = contracts_of(where)
    at = contracts.pin()
    kept = read_kept(acting, contracts.kms, at.chain_id)
    waiting = [look(contracts, one.change, at) for one in kept if one.change is not None]
    seen = [look(contracts, change, at) for change in dict.fromkeys(changes)]
    seen = [after(one, [before.change for before in waiting]) for one in seen]
    told = Told(where, acting, at)
    told.kept([one.creates for one in kept if one.creates], waiting)
    for one in seen:
        told.change(one)
    missing = [one for one in seen if not one.is_made]
    if acting.safe:
        _require_one_safe(contracts, [*waiting, *missing], at)
    if not missing and any(one.is_in_file for one in seen):
        told.end(ExitCode.NEEDS_APPROVAL, "NEEDS APPROVAL  the file has it already, for the Safe to sign")
    if not missing:
        told.end(ExitCode.OK, "NOTHING TO DO  the contracts are so already")
    if acting.dry_run:
        _simulate(contracts, missing, at, told)
    if acting.safe:
        write_batch(acting, [one.sent for one in kept], [one.change.sent for one in missing], at)
        told.end(ExitCode.NEEDS_APPROVAL, f"NEEDS APPROVAL  {_calls(len(missing))} for the Safe to sign")
    if acting.send:
        _send(contracts, acting, missing, at, told)
    told.end(ExitCode.CHANGES_PENDING, f"CHANGES PENDING  {_calls(len(missing))}, nothing was sent")


class Told:
    """What was said: lines for people as they come, or one JSON object at the end.

    Lines go to standard error where the file for a Safe goes to standard output.
    """

    def __init__(self, where: Where, acting: Acting, at: Block) -> None:
        self._as_json = where.as_json
        self._err = acting.safe == "-"
        self._calls: list[dict[str, Any]] = []
        self._kept: list[dict[str, Any]] = []
        self._transactions: list[dict[str, Any]] = []
        self._at = at
        self.line(head_text(at))

    def line(self, text: str) -> None:
        """Say something to people."""
        if not self._as_json:
            click.echo(text, err=self._err)

    def kept(self, creations: Sequence[str], waiting: Sequence[Seen]) -> None:
        """Say what is in the file already."""
        for creates in creations:
            self._kept.append({"creates": creates})
            self.line(f"in the file: {creates}")
        for one in waiting:
            self._kept.append(_call_json(one))
            self._call(one, "in the file")

    def change(self, seen: Seen) -> None:
        """Say what a call does, to what, and who may make it."""
        self._calls.append(_call_json(seen))
        self._call(seen, f"call {len(self._calls)}")

    def _call(self, seen: Seen, label: str) -> None:
        change = seen.change
        self.line(f"{label}: {change.text}")
        self.line(f"  to      {checksum_address(change.to)}")
        self.line(f"  sender  {sender_text(seen)}")
        self.line(f"  data    {as_hex(change.calldata)}")
        for note in change.notes:
            self.line(f"  note    {note}")
        if seen.is_made:
            where = "by the file" if seen.is_in_file else "already"
            self.line(f"  so      {where}: this call would change nothing")

    def transaction(self, receipt: "Receipt") -> None:
        """Say where a transaction is, and which app it made."""
        app_id = receipt.app_id and checksum_address(receipt.app_id)
        self._transactions.append(
            {
                "hash": as_hex(receipt.hash),
                "block_number": receipt.block_number,
                "block_hash": as_hex(receipt.block_hash),
                "app_id": app_id,
            }
        )
        self.line(f"mined: transaction {as_hex(receipt.hash)} in block {receipt.block_number}")
        if app_id:
            self.line(f"app id: {app_id}")

    def end(self, code: ExitCode, text: str) -> NoReturn:
        """Say how it ended, and exit."""
        self.line(text)
        if self._as_json:
            told = {
                **head_json(self._at),
                "in_the_file": self._kept,
                "calls": self._calls,
                "transactions": self._transactions,
                "exit_code": int(code),
            }
            click.echo(json.dumps(told, indent=2), err=self._err)
        sys.exit(code)


def _call_json(seen: Seen) -> dict[str, Any]:
    change = seen.change
    return {
        "function": change.function.signature,
        "arguments": [
            {"name": name, "type": kind, "value": shown(value)}
            for (name, kind), value in zip(change.function.parameters, change.arguments, strict=True)
        ],
        "to": checksum_address(change.to),
        "caller": change.function.caller,
        "sender": seen.sender and checksum_address(seen.sender),
        "calldata": as_hex(change.calldata),
        "is_made": seen.is_made,
        "is_in_file": seen.is_in_file,
        "notes": list(change.notes),
    }


def sender_text(seen: Seen) -> str:
    """Return whose call the contract takes."""
    if seen.sender is None:
        return "anyone"
    named = f"{checksum_address(seen.sender)}, the contract's {seen.change.function.caller}"
    return named + (f": {kind_text(seen.owner)}" if seen.sender == seen.owner.address else "")


def kind_text(owner: Owner) -> str:
    """Return what kind of account an owner is."""
    if not any(owner.address):
        return "nobody, for ever"
    if owner.threshold:
        return f"a Safe, {owner.threshold} of {len(owner.signers)} must sign"
    return "a contract, not a Safe" if owner.has_code else "a single key"


def outbox_place() -> Path:
    """Return the directory of what was sent and not yet reported."""
    return state_path(os.environ) / "outbox"


def _simulate(contracts: Contracts, missing: Sequence[Seen], at: Block, told: Told) -> NoReturn:
    """Carry each call out on its own, from whoever may make it."""
    for number, one in enumerate(missing, 1):
        sender = one.owner.address if one.sender is None else one.sender
        try:
            contracts.simulate(sender, one.change.to, one.change.calldata, at)
        except RevertedError as error:
            raise PolicyDenied(
                "gov.would_revert",
                f"{one.change.function.name} from {checksum_address(sender)} reverts: "
                f"{revert_reason(error.data)}",
            ) from error
        told.line(f"simulated call {number} of {len(missing)} from {checksum_address(sender)}: it succeeds")
    told.end(ExitCode.CHANGES_PENDING, f"CHANGES PENDING  {_calls(len(missing))}, nothing was sent")


def _require_one_safe(contracts: Contracts, calls: Sequence[Seen], at: Block) -> None:
    """Refuse a file that no single Safe could carry out.

    Raises `PolicyDenied("gov.not_owner")` where a key's account must call, `ConfigError("gov.safe_file")`
    where several owners must.
    """
    senders = {one.sender: one for one in calls if one.sender is not None}
    for sender, one in senders.items():
        if not contracts.code(sender, at):
            raise PolicyDenied(
                "gov.not_owner",
                f"no Safe may call {one.change.function.name}, only {sender_text(one)}: use --send",
            )
    if len(senders) > 1:
        names = ", ".join(checksum_address(sender) for sender in senders)
        raise ConfigError("gov.safe_file", f"one file is for one Safe, and the calls are of several: {names}")


def write_batch(acting: Acting, before: Sequence[Sent], calls: Sequence[Sent], at: Block) -> None:
    """Write the file for a Safe: `calls` behind what it has.

    Raises `ConfigError("gov.safe_file")`, `StorageError("gov.safe_file.io")`.
    """
    text = batch_text(at.chain_id, [*before, *calls])
    if acting.safe == "-":
        click.echo(text, nl=False)
        return
    path = Path(acting.safe)
    try:
        if path.exists() and not acting.append:
            raise ConfigError("gov.safe_file", f"{path} exists: --append adds to it")
        write_whole(path, text.encode())
    except OSError as error:
        raise StorageError("gov.safe_file.io", f"{path} cannot be written: {error}") from error


def _send(contracts: Contracts, acting: Acting, missing: Sequence[Seen], at: Block, told: Told) -> NoReturn:
    from cli.gov.key_file import read_key  # noqa: PLC0415 - signing needs more than the other commands
    from cli.gov.sending import GWEI, Outbox, Sender  # noqa: PLC0415 - as above

    if acting.key_file is None:
        raise ConfigError("gov.mode", "--send needs --key-file")
    account = read_key(acting.key_file)
    for one in missing:
        if one.sender not in {None, account.address}:
            raise PolicyDenied(
                "gov.not_owner",
                f"the key's account {checksum_address(account.address)} may not call "
                f"{one.change.function.name}, only {sender_text(one)}",
            )
    sender = Sender(
        contracts,
        account,
        Outbox(outbox_place()),
        timeout=acting.timeout,
        max_fee=acting.max_fee * GWEI,
        say=told.line,
    )
    for one in missing:
        is_once = one.change.function == DEPLOY_AND_REGISTER_APP
        receipt = sender.send(one.change.to, one.change.calldata, at, once=is_once)
        told.transaction(receipt)
    sender.done()
    told.end(ExitCode.OK, "DONE  it counts when its block is final")


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
