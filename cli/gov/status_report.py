"""What `gov status` found, and how it is told."""

from typing import Any

import click
import msgspec

from cli.compose import visible
from cli.gov.acting import kind_text, sender_text
from cli.gov.chain import Block, Owner, as_hex, head_json, head_text
from cli.gov.code import Code, code_json, code_text
from cli.gov.listing import App, KmsInfo, app_json, owner_json
from cli.gov.proposals import Proposals, proposal_lines, proposals_json
from cli.gov.running import Held
from cli.gov.waiting import Waiting
from shared.chain.abi import checksum_address

_UNSEEN = "deployments are not told: "


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown, of one block.

    `finalized` is None where the endpoint does not tell. `held` is None where no deployments could be read,
    for `unseen`. `untold` says of which Safes, if any, the proposals are not told, and why.
    """

    at: Block
    finalized: int | None
    kms: bytes
    owner: Owner
    code: Code
    info: KmsInfo
    gateway: str
    app_implementation: bytes
    apps: tuple[App, ...]
    held: tuple[Held, ...] | None
    waiting: tuple[Waiting, ...] = ()
    unseen: str = ""
    proposals: tuple[Proposals, ...] = ()
    untold: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What an operator should look into."""
        found = []
        if not self.code.is_known:
            found.append("the kms contract runs code that a KMS does not take, unless it is pinned")
        if not self.owner.has_code:
            found.append("a single key, or nobody, owns the kms contract")
        if any(self.owner.pending):
            found.append(
                f"a transfer of the kms contract to {checksum_address(self.owner.pending)} is pending"
            )
        for app in self.apps:
            name = checksum_address(app.app_id)
            if app.unread:
                found.append(f"app {name} could not be read: {app.unread}")
            if not app.code.is_known:
                found.append(f"app {name} runs code that a KMS does not take, unless it is pinned")
            if app.owner is not None and any(app.owner.pending):
                found.append(f"a transfer of app {name} to {checksum_address(app.owner.pending)} is pending")
        for one in self.proposals:
            found += [f"the safe service told what cannot be: {dropped}" for dropped in one.dropped]
        dangerous = sum(bool(one.dangers) for found_ones in self.proposals for one in found_ones.proposals)
        if dangerous:
            found.append(f"dangerous proposals wait for signatures: {dangerous}")
        return found

    @property
    def is_owner_untold(self) -> bool:
        """Whether a Safe owns the KMS contract, and what waits for it is not known."""
        told = {one.safe.address for one in self.proposals}
        return bool(self.owner.threshold) and self.owner.address not in told

    @property
    def is_unsure(self) -> bool:
        """Whether of something that runs, or waits, it is not known what the contracts say."""
        told: list[Held | Waiting] = [*(self.held or ()), *self.waiting]
        return self.held is None or any(one.unread for one in told)

    @property
    def violations(self) -> list[Held]:
        """What runs, and would get no keys now."""
        return [one for one in self.held or () if one.refused]


def status_json(found: Status) -> dict[str, Any]:
    """Return what JSON says of it."""
    return {
        **head_json(found.at),
        "finalized": found.finalized,
        "kms": {
            "contract": checksum_address(found.kms),
            **owner_json(found.owner),
            "code": code_json(found.code),
            "gateway_app_id": found.gateway,
            "app_implementation": checksum_address(found.app_implementation),
            "k256_pubkey": found.info.k256_pubkey.hex(),
            "ca_pubkey": found.info.ca_pubkey.hex(),
        },
        "apps": [app_json(one) for one in found.apps],
        "deployments": None if found.held is None else msgspec.to_builtins(found.held),
        "deployments_waiting": [_waiting_json(one) for one in found.waiting],
        "deployments_unseen": found.unseen,
        "proposals": [proposals_json(one) for one in found.proposals],
        "proposals_untold": list(found.untold),
        "warnings": found.warnings,
    }


def print_status(found: Status) -> None:
    """Print it for people."""
    at, owner = found.at, found.owner
    final = "what is final is not told" if found.finalized is None else f"final up to {found.finalized}"
    click.echo(f"{head_text(at)}, {final}")
    click.echo(f"kms contract {checksum_address(found.kms)}")
    click.echo(f"  owner    {checksum_address(owner.address)}, {kind_text(owner)}")
    for signer in owner.signers:
        click.echo(f"           signer {checksum_address(signer)}")
    if any(owner.pending):
        click.echo(f"  pending  offered to {checksum_address(owner.pending)}, who has not accepted")
    click.echo(f"  code     {code_text(found.code)}")
    keys = found.info.k256_pubkey
    click.echo(f"  keys     {'published, k256 ' + keys.hex() if keys else 'not published: gov kms set-info'}")
    click.echo(f"  gateway  {ascii(found.gateway) if found.gateway else 'none'}")
    click.echo(f"  factory  makes apps of {checksum_address(found.app_implementation)}")
    click.echo(f"apps: {len(found.apps)}")
    for app in found.apps:
        click.echo(f"  {checksum_address(app.app_id)}  {_app_text(app)}")
    _print_deployments(found)
    for proposals in found.proposals:
        click.echo("\n".join(proposal_lines(proposals)))
    for untold in found.untold:
        click.echo(f"proposals are not told of the Safe {untold}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    if found.violations:
        click.echo(f"NOT ALLOWED  {len(found.violations)} running: stop them, or have them allowed")


def _print_deployments(found: Status) -> None:
    if found.held is None:
        click.echo(_UNSEEN + found.unseen)
        return
    click.echo(f"running deployments: {len(found.held)}")
    for one in found.held:
        click.echo(f"  {one.name}  {visible('; '.join(one.refused or (one.unread,))) or 'allowed'}")
    if found.waiting:
        click.echo(f"deployments that wait for governance: {len(found.waiting)}")
    for waiting in found.waiting:
        _print_waiting(waiting)


def _print_waiting(one: Waiting) -> None:
    click.echo(f"  {one.name}  {one.unread or f'{len(one.calls)} calls are missing'}")
    for seen in one.calls:
        click.echo(f"    call    {seen.change.text}")
        click.echo(f"    to      {checksum_address(seen.change.to)}")
        click.echo(f"    sender  {sender_text(seen)}")
        click.echo(f"    data    {as_hex(seen.change.calldata)}")
    for why in one.blocked:
        click.echo(f"    blocked {why}")
    for note in one.notes:
        click.echo(f"    note    {note}")


def _waiting_json(one: Waiting) -> dict[str, Any]:
    return {
        "name": one.name,
        "calls": [
            {
                "function": seen.change.function.signature,
                "text": seen.change.text,
                "to": checksum_address(seen.change.to),
                "sender": seen.sender and checksum_address(seen.sender),
                "calldata": as_hex(seen.change.calldata),
            }
            for seen in one.calls
        ],
        "blocked": list(one.blocked),
        "notes": list(one.notes),
        "unread": one.unread,
    }


def _app_text(app: App) -> str:
    if app.owner is None:
        return code_text(app.code)
    fixed = ", upgrades disabled" if app.upgrades_disabled else ""
    device = ", any device" if app.allow_any_device else ""
    return (
        f"owner {checksum_address(app.owner.address)}, {kind_text(app.owner)}; "
        f"{code_text(app.code)}{fixed}{device}"
    )
