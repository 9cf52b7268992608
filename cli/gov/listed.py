"""How lists are printed, and where they begin."""

import json
from collections.abc import Sequence
from typing import Any

import click

from cli.gov.chain import Block, Contracts, head_json, head_text
from cli.gov.listing import Allowed, allowed_json, read_allowed
from cli.gov.logs import first_block
from cli.gov.options import Command, Where, contracts_of, where_options
from shared.chain.events import Event

Asked = tuple[str, Event, bytes]
"""One list: its name, the event that adds to it, the view that says what is so now."""


def list_options(command: Command) -> Command:
    """Give a command the options of a list."""
    return where_options(
        from_block_option(
            click.option("--all", "everything", is_flag=True, help="What was revoked, too.")(command)
        )
    )


def from_block_option(command: Command) -> Command:
    """Give a command `--from-block`."""
    return click.option(
        "--from-block",
        type=click.IntRange(min=0),
        metavar="NUMBER",
        help="Read events from here on; else from the contract's first block, which is looked for.",
    )(command)


def start_of(contracts: Contracts, contract: bytes, from_block: int | None, at: Block) -> int:
    """Return the block from which events are read. Raises `ConfigError("gov.contract")`."""
    if contract == contracts.kms:
        contracts.require_kms(at)
    else:
        contracts.require_code(contract, at)
    return first_block(contracts, contract, at) if from_block is None else from_block


def print_allowed(
    where: Where,
    from_block: int | None,
    asked: Sequence[Asked],
    *,
    everything: bool,
    contract: bytes | None = None,
) -> None:
    """Print what a contract allows, list by list; the KMS contract where no other is named."""
    contracts = contracts_of(where)
    at = contracts.pin()
    which = contracts.kms if contract is None else contract
    first = start_of(contracts, which, from_block, at)
    found = {
        name: [
            one
            for one in read_allowed(contracts, which, added, view, first, at)
            if everything or one.is_allowed
        ]
        for name, added, view in asked
    }
    if where.as_json:
        print_json(at, {name: allowed_json(values) for name, values in found.items()})
        return
    print_head(at)
    for name, values in found.items():
        click.echo(f"{name}: {len(values)}")
        for one in values:
            click.echo(f"  {line_of(one)}")


def line_of(one: Allowed) -> str:
    """Return the line of one value."""
    state = f"since block {one.since}" if one.is_allowed else "revoked"
    return f"0x{one.value.hex()}  {state}"


def print_head(at: Block) -> None:
    """Print what block the answers are about."""
    click.echo(head_text(at))


def print_json(at: Block, told: dict[str, Any]) -> None:
    """Print one JSON object, with the block that it is about."""
    click.echo(json.dumps({**head_json(at), **told}, indent=2))
