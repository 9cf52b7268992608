"""`gov deploy`: implementations, and a proxy that nobody but its owner may change from its first block."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import click
import msgspec

from cli.gov.acting import kind_text, outbox_place, write_batch
from cli.gov.batch_file import read_kept
from cli.gov.cautions import owner_to_be
from cli.gov.chain import ZERO_ADDRESS, Block, Contracts, Owner, head_json, head_text
from cli.gov.code import code_of, implementation_code
from cli.gov.creation import Creation, bytecode, creation, creation_json, creations
from cli.gov.options import Acting, Where, acting_options, address, endpoint_of, hash32
from cli.gov.simulation import Simulated, simulate_creation
from shared.chain import abi
from shared.chain.abi import checksum_address
from shared.chain.approval import create_address
from shared.chain.code import APP, KMS, PROXY
from shared.chain.create2 import DEPLOYER, DEPLOYER_CODE, SALT_BYTES
from shared.errors import ConfigError, ExitCode, ProtocolError
from shared.keccak import keccak256

_ONLY: Final = {"DstackKms": KMS, "DstackApp": APP}


class _Made(msgspec.Struct, frozen=True):
    """A contract on the chain; `block_number` is None where it was there before."""

    name: str
    address: bytes
    block_number: int | None


class _Plan(msgspec.Struct, frozen=True):
    """What shall be there: `salt` is None where each address follows from its sender's nonce."""

    names: tuple[str, ...]
    app: bytes | None
    owner: bytes
    salt: bytes | None

    def creations(self, sender: bytes, nonce: int) -> list[Creation]:
        """Return what is created; where that follows from a sender, as if `sender` were it."""
        if self.salt is not None:
            return creations(self.names, self.app, self.owner, self.salt)
        places = {APP: self.app} if self.app else {}
        places |= {name: create_address(sender, nonce + n) for n, name in enumerate(self.names)}
        return [creation(name, places, self.owner, None) for name in self.names]


@click.command()
@click.option("--owner", default="", metavar="ADDR", help="Who shall own the KMS contract: a Safe.")
@click.option("--owner-is-key", is_flag=True, help="Let a single key own it: whoever has the key decides.")
@click.option("--app-implementation", metavar="ADDR", help="Use this DstackApp, and deploy none.")
@click.option("--only", type=click.Choice(list(_ONLY)), help="Deploy this implementation alone.")
@click.option("--create2", is_flag=True, help="Give contracts addresses that follow from their code alone.")
@click.option("--salt", metavar="HEX", help="Of 32 bytes, for --create2: another one is another contract.")
@acting_options
def deploy(
    owner: str,
    app_implementation: str | None,
    only: str | None,
    salt: str | None,
    where: Where,
    acting: Acting,
    *,
    owner_is_key: bool,
    create2: bool,
) -> None:
    """Deploy the contracts: DstackApp, DstackKms, and the proxy whose address is the KMS contract's.

    Any account may pay, and owns nothing by it. Repeated after it was interrupted, it goes on with what was
    sent. --create2 has the deterministic deployment proxy create them, so that the addresses are known before
    and what is there already is not created again; --safe does that, as a Safe can create nothing itself.

    Exit codes: 0 deployed or so already, 2 usage, 3 refused, 4 nothing was sent, 5 a Safe must sign, 6 timed
    out.
    """
    acting.check(where)
    contracts = Contracts(endpoint_of(where), ZERO_ADDRESS, where.chain_id)
    at = contracts.pin()
    wanted = ZERO_ADDRESS
    if not only:
        wanted = owner_to_be(contracts, address(owner, "--owner"), at, may_be_key=owner_is_key)
    app = address(app_implementation, "--app-implementation") if app_implementation else None
    if app is not None and implementation_code(contracts, app, at).contract != APP:
        raise ConfigError("gov.deploy.app", f"{checksum_address(app)} is no known build of {APP}")
    names = (_ONLY[only],) if only else (*(() if app else (APP,)), KMS, PROXY)
    plan = _Plan(names, app, wanted, _salt(salt, is_wanted=create2 or bool(acting.safe)))
    if plan.salt is not None:
        _require_deployer(contracts, at)
    if acting.send:
        say = _Lines(quiet=where.as_json, err=False)
        made, done = _create(contracts, acting, plan, at, say)
        _report(contracts, made, plan, where)
        done()  # repeated before, it sends nothing again, and reports
    else:
        _show(contracts, acting, plan, at, where)


def _salt(text: str | None, *, is_wanted: bool) -> bytes | None:
    """Return the salt, None where addresses shall follow from nonces. Raises `ConfigError("gov.option")`."""
    if text is None:
        return bytes(SALT_BYTES) if is_wanted else None
    if not is_wanted:
        raise ConfigError("gov.option", "--salt belongs to --create2 or --safe")
    return hash32(text, "--salt")


def _require_deployer(contracts: Contracts, at: Block) -> None:
    """Raise `ConfigError("gov.deploy.create2")` where no deployment proxy is, or something else."""
    code = contracts.code(DEPLOYER, at)
    if code != DEPLOYER_CODE:
        found = "other code" if code else "no code"
        raise ConfigError(
            "gov.deploy.create2",
            f"chain {at.chain_id} has {found} at {checksum_address(DEPLOYER)}, expected the deterministic "
            "deployment proxy: without it --send creates the contracts by a key's nonce",
        )


def _show(contracts: Contracts, acting: Acting, plan: _Plan, at: Block, where: Where) -> NoReturn:
    """Show what would be created, simulate it, or write it for a Safe; then exit."""
    wanted = plan.creations(plan.owner, contracts.nonce(plan.owner, at))
    there = [_is_there(contracts, one, at) for one in wanted]
    missing = [one for one, is_there in zip(wanted, there, strict=True) if not is_there]
    told: dict[str, Any] = {
        **head_json(at),
        "would_create": [
            creation_json(one, is_there=is_there) for one, is_there in zip(wanted, there, strict=True)
        ],
    }
    say = _Lines(quiet=where.as_json, err=acting.safe == "-")
    say(head_text(at))
    for number, (one, is_there) in enumerate(zip(wanted, there, strict=True), 1):
        _say_creation(say, number, one, is_there=is_there)
    if acting.dry_run:
        simulated = [simulate_creation(contracts, one, plan.owner, at) for one in missing]
        told["simulated"] = [
            {"contract": one.name, "gas": found.gas, "why_not": found.why_not}
            for one, found in zip(missing, simulated, strict=True)
        ]
        for one, found in zip(missing, simulated, strict=True):
            say(_simulated_text(one, found, plan.owner))
    code, text = (
        ExitCode.CHANGES_PENDING,
        "CHANGES PENDING  nothing was sent: --send and --key-file name who pays",
    )
    if not missing:
        code, text = ExitCode.OK, "NOTHING TO DO  the contracts are there already"
        if wanted[-1].name == PROXY and (proxy := wanted[-1].address) is not None:
            owner = contracts.owner(proxy, at)
            told["owner"] = checksum_address(owner.address)
            say(f"owner      {checksum_address(owner.address)}, {kind_text(owner)}")
    elif acting.safe:
        kept = read_kept(acting, ZERO_ADDRESS, at.chain_id)
        told["in_the_file"] = [{"creates": one.creates} for one in kept]
        for before in kept:
            say(f"in the file: {before.creates}")
        sent = [one.sent for one in kept]
        new = [(DEPLOYER, one.calldata) for one in missing if (DEPLOYER, one.calldata) not in sent]
        write_batch(acting, sent, new, at)
        code, text = (
            ExitCode.NEEDS_APPROVAL,
            f"NEEDS APPROVAL  {len(missing)} to create, for the Safe to sign",
        )
    say(text)
    if where.as_json:
        click.echo(json.dumps({**told, "exit_code": int(code)}, indent=2), err=acting.safe == "-")
    sys.exit(code)


class _Lines:
    """Lines for people; to standard error where the file for a Safe goes to standard output."""

    def __init__(self, *, quiet: bool, err: bool) -> None:
        self._quiet = quiet
        self._err = err

    def __call__(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, err=self._err)


def _say_creation(say: _Lines, number: int, one: Creation, *, is_there: bool) -> None:
    code = bytecode(one.name)
    named = one.address is not None
    say(f"create {number}: {one.text if named or not one.named else _unplaced(one)}")
    say(f"  code    {len(code)} bytes, hash 0x{keccak256(code).hex()}")
    if one.arguments and named:
        say(f"  data    0x{one.arguments.hex()}")
    if one.address is not None:
        say(f"  address {checksum_address(one.address)}{', already there' if is_there else ''}")


def _unplaced(one: Creation) -> str:
    """Return a proxy's creation whose arguments follow from who pays."""
    _, (name, _, call) = one.named
    given, sign, _ = call.rpartition("=")
    return f"{one.name}(\n          implementation=the {KMS} above\n          {name}={given}{sign}…))"


def _simulated_text(one: Creation, found: Simulated, sender: bytes) -> str:
    if found.gas is None:
        return f"NOT simulated: {one.name}: {found.why_not}"
    return f"simulated {one.name} from {checksum_address(sender)}: it succeeds, with {found.gas} gas"


def _is_there(contracts: Contracts, one: Creation, at: Block) -> bool:
    """Tell whether a contract is there already. Raises `ProtocolError("gov.deploy.code")` for another one."""
    if one.address is None or not contracts.code(one.address, at):
        return False
    _require_known(contracts, one.name, one.address, at, is_new=False)
    return True


def _create(
    contracts: Contracts, acting: Acting, plan: _Plan, at: Block, say: "_Lines"
) -> tuple[list[_Made], Callable[[], None]]:
    """Create contracts one after another, each said as soon as it is there; those behind need its address.

    Return them, and what forgets that they were sent, to be called when all was told.
    """
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
        say=say,
    )
    made: list[_Made] = []
    places = {APP: plan.app} if plan.app else {}
    for name in plan.names:
        one = creation(name, places, plan.owner, plan.salt)
        block_number = None
        place = one.address
        if place is None or not _is_there(contracts, one, at):
            # the state tells of an address that is known, and of no other, whether it was created
            receipt = sender.send(one.to, one.calldata, at, once=place is None)
            block_number = receipt.block_number
            place = place or receipt.contract
        if place is None or place in places.values():
            raise ProtocolError("gov.deploy.code", f"{name} would be where another contract is, or nowhere")
        places[name] = place
        made.append(_Made(name, place, block_number))
        say(f"{_label(name):<10} {checksum_address(place)}")
    return made, sender.done


def _report(contracts: Contracts, made: Sequence[_Made], plan: _Plan, where: Where) -> None:
    """Show what the chain says was deployed: not what was meant to be, to which it is held.

    Raises `ProtocolError("gov.deploy.code")`.
    """
    at = contracts.pin()
    blocks = [one.block_number for one in made if one.block_number is not None]
    told: dict[str, Any] = {"chain_id": at.chain_id, "block_number": max(blocks, default=None)}
    lines = []
    for one in made:
        _require_known(contracts, one.name, one.address, at, is_new=one.block_number is not None)
        told[_label(one.name)] = checksum_address(one.address)
    if (proxy := made[-1]).name == PROXY:
        owner = contracts.owner(proxy.address, at)
        if proxy.block_number is not None:
            places = {APP: plan.app, **{one.name: one.address for one in made}}
            _require_meant(contracts, proxy.address, (places[KMS], places[APP], plan.owner), owner, at)
        told["owner"] = checksum_address(owner.address)
        lines.append(f"owner      {checksum_address(owner.address)}, {kind_text(owner)}")
    lines.append(f"block      {max(blocks)}" if blocks else "NOTHING TO DO  the contracts are there already")
    click.echo(json.dumps(told, indent=2) if where.as_json else "\n".join(lines))


def _require_meant(
    contracts: Contracts, proxy: bytes, meant: tuple[bytes | None, ...], owner: Owner, at: Block
) -> None:
    """Hold a new proxy to the implementation, the app implementation and the owner that were meant."""
    (app,) = contracts.views(at, (proxy, abi.call(abi.APP_IMPLEMENTATION)))
    found = (contracts.implementation(proxy, at), abi.decode_address(app), owner.address)
    for what, got, wanted in zip(
        ("implementation", "app implementation", "owner"), found, meant, strict=True
    ):
        if got != wanted:
            raise ProtocolError(
                "gov.deploy.code",
                f"the proxy has another {what} than was sent: {checksum_address(got)}",
            )


def _label(name: str) -> str:
    return "proxy" if name == PROXY else name


def _require_known(contracts: Contracts, name: str, place: bytes, at: Block, *, is_new: bool) -> None:
    """Raise `ProtocolError("gov.deploy.code")` where what is there is not of the code that was sent.

    What a proxy that was there before runs by now is its owner's business.
    """
    if name == PROXY:
        found = code_of(contracts, place, at)
        is_known = found.is_known_proxy and (found.contract == KMS or not is_new)
    else:
        is_known = implementation_code(contracts, place, at).contract == name
    if not is_known:
        raise ProtocolError(
            "gov.deploy.code", f"{_label(name)} is of other code than was sent, says the endpoint"
        )
