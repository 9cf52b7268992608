"""`gov deploy`: implementations, and a proxy that nobody but its owner may change from its first block."""

import json
import sys
from typing import Any, Final

import click
import msgspec

from cli.devchain.artifacts import artifact
from cli.gov.acting import kind_text, outbox_place
from cli.gov.chain import ZERO_ADDRESS, Block, Contracts, as_hex
from cli.gov.code import code_of, implementation_code
from cli.gov.options import (
    Acting,
    Where,
    address,
    endpoint_of,
    sending_options,
)
from shared.chain.abi import checksum_address
from shared.chain.abi_values import encode_values
from shared.chain.calldata import INITIALIZE_KMS, encode_call
from shared.chain.code import APP, KMS, PROXY
from shared.errors import ConfigError, ExitCode, ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

_ONLY: Final = {"DstackKms": KMS, "DstackApp": APP}


class _Made(msgspec.Struct, frozen=True):
    name: str
    address: bytes
    block_number: int


@click.command()
@click.option("--owner", default="", metavar="ADDR", help="Who shall own the KMS contract: a Safe.")
@click.option("--owner-is-key", is_flag=True, help="Let a single key own it: whoever has the key decides.")
@click.option("--app-implementation", metavar="ADDR", help="Use this DstackApp, and deploy none.")
@click.option("--only", type=click.Choice(list(_ONLY)), help="Deploy this implementation alone.")
@sending_options
def deploy(
    owner: str,
    app_implementation: str | None,
    only: str | None,
    where: Where,
    acting: Acting,
    *,
    owner_is_key: bool,
) -> None:
    """Deploy the contracts: DstackApp, DstackKms, and the proxy whose address is the KMS contract's.

    Any account may pay, and owns nothing by it. Without --send it shows what would be created. Repeated after
    it was interrupted, it goes on with what was sent.

    Exit codes: 0 deployed, 2 usage, 3 refused, 4 nothing was sent, 6 timed out.
    """
    acting.check()
    contracts = Contracts(endpoint_of(where), ZERO_ADDRESS, where.chain_id)
    at = contracts.pin()
    wanted = ZERO_ADDRESS if only else _owner(contracts, owner, at, may_be_key=owner_is_key)
    app = address(app_implementation, "--app-implementation") if app_implementation else None
    if app is not None and implementation_code(contracts, app, at).contract != APP:
        raise ConfigError("gov.deploy.app", f"{checksum_address(app)} is no known build of {APP}")
    names = [_ONLY[only]] if only else [*([] if app else [APP]), KMS, PROXY]
    if not acting.send:
        _show(names, at, where)
    made = _create(contracts, acting, names, app, wanted, at)
    _report(contracts, made, where)


def _owner(contracts: Contracts, text: str, at: Block, *, may_be_key: bool) -> bytes:
    """Return who shall own the contract. Raises `ConfigError("gov.deploy.owner")`."""
    owner = address(text, "--owner")
    has_code = bool(contracts.code(owner, at))
    if owner == ZERO_ADDRESS or has_code == may_be_key:
        kind = "is a contract on this chain" if has_code else "is no contract on this chain, expected a Safe"
        advice = "leave --owner-is-key out" if has_code else "--owner-is-key takes a key's account"
        raise ConfigError("gov.deploy.owner", f"{checksum_address(owner)} {kind}: {advice}")
    return owner


def _show(names: list[str], at: Block, where: Where) -> None:
    shown = []
    for name in names:
        code = _bytecode(name)
        shown.append({"contract": name, "bytes": len(code), "creation_hash": as_hex(keccak256(code))})
    if where.as_json:
        told = {"chain_id": at.chain_id, "would_create": shown, "exit_code": int(ExitCode.CHANGES_PENDING)}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"chain {at.chain_id} at block {at.number}")
        for one in shown:
            click.echo(f"create {one['contract']:<12} {one['bytes']} bytes, hash {one['creation_hash']}")
        click.echo("CHANGES PENDING  nothing was sent: --send and --key-file name who pays")
    sys.exit(ExitCode.CHANGES_PENDING)


def _create(
    contracts: Contracts, acting: Acting, names: list[str], app: bytes | None, owner: bytes, at: Block
) -> list[_Made]:
    """Create contracts one after another; each needs the addresses of those before."""
    from cli.gov.key_file import read_key  # noqa: PLC0415 - signing needs more than showing
    from cli.gov.sending import GWEI, Outbox, Sender  # noqa: PLC0415 - as above

    if acting.key_file is None:
        raise ConfigError("gov.mode", "--send needs --key-file")
    sender = Sender(
        contracts,
        read_key(acting.key_file),
        Outbox(outbox_place()),
        timeout=acting.timeout,
        max_fee=acting.max_fee * GWEI,
    )
    made: list[_Made] = []
    places = {APP: app} if app else {}
    for name in names:
        code = _bytecode(name)
        if name == PROXY:
            initialization = encode_call(INITIALIZE_KMS, owner, places[APP])
            code += encode_values(("address", "bytes"), (places[KMS], initialization))
        receipt = sender.send(None, code, at, once=True)
        if receipt.contract is None:
            raise ProtocolError("rpc.malformed", "the receipt names no contract that was made")
        places[name] = receipt.contract
        made.append(_Made(name, receipt.contract, receipt.block_number))
    sender.done()
    return made


def _report(contracts: Contracts, made: list[_Made], where: Where) -> None:
    """Show what the chain says was deployed: not what was meant to be."""
    at = contracts.pin()
    told: dict[str, Any] = {"chain_id": at.chain_id, "block_number": made[-1].block_number}
    lines = []
    for one in made:
        label = "proxy" if one.name == PROXY else one.name
        is_known = (
            code_of(contracts, one.address, at).is_known
            if one.name == PROXY
            else bool(implementation_code(contracts, one.address, at).contract)
        )
        if not is_known:
            raise ProtocolError(
                "gov.deploy.code", f"{label} is of other code than was sent, says the endpoint"
            )
        told[label] = checksum_address(one.address)
        lines.append(f"{label:<10} {checksum_address(one.address)}")
    if made[-1].name == PROXY:
        owner = contracts.owner(made[-1].address, at)
        told["owner"] = checksum_address(owner.address)
        lines.append(f"owner      {checksum_address(owner.address)}, {kind_text(owner)}")
    lines.append(f"block      {made[-1].block_number}")
    click.echo(json.dumps(told, indent=2) if where.as_json else "\n".join(lines))


def _bytecode(name: str) -> bytes:
    return decode_hex(artifact(name).bytecode, what=f"the code of {name}")
