"""`gov app`: which apps exist, and what each may run, where."""

from typing import Final

import click
import msgspec

from cli.gov.acting import carry_out, kind_text
from cli.gov.batch_file import Kept, read_kept
from cli.gov.cautions import owner_to_be
from cli.gov.chain import ZERO_ADDRESS, Contracts
from cli.gov.change import Change
from cli.gov.code import code_text
from cli.gov.listed import (
    Asked,
    line_of,
    list_options,
    print_head,
    print_json,
    start_of,
)
from cli.gov.listing import App, allowed_json, app_json, read_allowed, read_app, read_apps
from cli.gov.options import Acting, Where, acting_options, address, contracts_of, hash32
from shared.chain import abi, calldata, events, views
from shared.chain.abi import checksum_address
from shared.chain.approval import create_address
from shared.chain.calldata import Function
from shared.errors import ConfigError

_LISTS: Final[tuple[Asked, ...]] = (
    ("compose_hashes", events.COMPOSE_HASH_ADDED, views.ALLOWED_COMPOSE_HASHES),
    ("devices", events.DEVICE_ADDED, views.ALLOWED_DEVICE_IDS),
)
_ZERO32: Final = bytes(32)


@click.group()
def app() -> None:
    """Register apps, and change what they may run, on which machines."""


@app.command("register")
@click.argument("app_id")
@acting_options
def register(app_id: str, where: Where, acting: Acting) -> None:
    """Register a contract that exists as an app.

    Anyone may: registration proves nothing. A contract of another kind than ours decides by its own rules.
    """
    contracts = contracts_of(where)
    at = contracts.pin()
    raw = address(app_id, "APP_ID")
    contracts.require_code(raw, at)
    notes = (f"of the app's code: {code_text(read_app(contracts, raw, at).code)}",)
    change = Change(to=where.kms, function=calldata.REGISTER_APP, arguments=(raw,), notes=notes)
    carry_out(where, acting, [change])


@app.command("deploy")
@click.option("--owner", required=True, metavar="ADDR", help="Who shall own the app.")
@click.option("--owner-is-key", is_flag=True, help="Let a single key own it: whoever has the key decides.")
@click.option("--compose-hash", metavar="HEX", help="Allow this app-compose at once.")
@click.option("--device-id", metavar="HEX", help="Allow this machine at once.")
@click.option("--allow-any-device", is_flag=True, help="Let every machine run it.")
@click.option("--require-tcb", is_flag=True, help="Want a TCB status of UpToDate, which Nitro has not.")
@click.option("--disable-upgrades", is_flag=True, help="Never let its code change: for good.")
@acting_options
def deploy(
    owner: str,
    compose_hash: str | None,
    device_id: str | None,
    where: Where,
    acting: Acting,
    *,
    owner_is_key: bool,
    **flags: bool,
) -> None:
    """Make an app contract with the factory, and register it. Its address is the app id.

    Exit codes: 0 sent, 2 usage, 3 refused, 4 changes pending, 5 a Safe must sign, 6 timed out.
    """
    if device_id and flags["allow_any_device"]:
        raise ConfigError("gov.option", "--device-id says nothing where --allow-any-device is given")
    raw = address(owner, "--owner")
    contracts = contracts_of(where)
    at = contracts.pin()
    contracts.require_kms(at)
    (implementation,) = contracts.views(at, (where.kms, abi.call(abi.APP_IMPLEMENTATION)))
    if raw == ZERO_ADDRESS or abi.decode_address(implementation) == ZERO_ADDRESS:
        raise ConfigError(
            "gov.app.deploy", "an owner is needed, and an implementation: see `gov set-app-implementation`"
        )
    owner_to_be(contracts, raw, at, may_be_key=owner_is_key)
    arguments = (
        raw,
        flags["disable_upgrades"],
        flags["require_tcb"],
        flags["allow_any_device"],
        hash32(device_id, "--device-id") if device_id else _ZERO32,
        hash32(compose_hash, "--compose-hash") if compose_hash else _ZERO32,
    )
    change = Change(to=where.kms, function=calldata.DEPLOY_AND_REGISTER_APP, arguments=arguments)
    kept = [one.sent for one in read_kept(acting, where.kms, at.chain_id) if _makes_app(one)]
    # the factory takes a nonce for each app: those that wait in the file come before, unless this is one
    before = kept.index(change.sent) if change.sent in kept else len(kept)
    made = create_address(where.kms, contracts.nonce(where.kms, at) + before)
    note = f"the app id will be {checksum_address(made)}, if nobody makes an app before"
    carry_out(where, acting, [msgspec.structs.replace(change, notes=(note,))])


def _makes_app(kept: Kept) -> bool:
    return kept.change is not None and kept.change.function == calldata.DEPLOY_AND_REGISTER_APP


def _hashes(name: str, function: Function, text: str) -> None:
    @app.command(name, help=text)
    @click.argument("app_id")
    @click.argument("values", nargs=-1, required=True, metavar="HASHES...")
    @acting_options
    def command(app_id: str, values: tuple[str, ...], where: Where, acting: Acting) -> None:
        to = _app_id(app_id)
        changes = [Change(to=to, function=function, arguments=(hash32(one, "HASHES"),)) for one in values]
        carry_out(where, acting, changes)


def _flag(name: str, function: Function, text: str) -> None:
    @app.command(name, help=text)
    @click.argument("app_id")
    @click.argument("value", type=click.Choice(["true", "false"]))
    @acting_options
    def command(app_id: str, value: str, where: Where, acting: Acting) -> None:
        carry_out(
            where,
            acting,
            [Change(to=_app_id(app_id), function=function, arguments=(value == "true",))],
        )


_hashes("add-hash", calldata.ADD_COMPOSE_HASH, "Allow app-compose documents of APP_ID by their hashes.")
_hashes("remove-hash", calldata.REMOVE_COMPOSE_HASH, "Revoke app-compose documents of APP_ID.")
_hashes("add-device", calldata.ADD_DEVICE, "Let machines run APP_ID.")
_hashes("remove-device", calldata.REMOVE_DEVICE, "Let machines run APP_ID no more.")
_flag("allow-any-device", calldata.SET_ALLOW_ANY_DEVICE, "Let every machine run APP_ID, or those listed.")
_flag("require-tcb", calldata.SET_REQUIRE_TCB_UP_TO_DATE, "Want a TCB status of UpToDate of APP_ID, or not.")


@app.command("disable-upgrades")
@click.argument("app_id")
@acting_options
def disable_upgrades(app_id: str, where: Where, acting: Acting) -> None:
    """Never let the code of APP_ID change again. Nobody can take it back."""
    carry_out(where, acting, [Change(to=_app_id(app_id), function=calldata.DISABLE_UPGRADES)])


@app.command("list")
@click.argument("app_id", required=False)
@list_options
def list_apps(app_id: str | None, where: Where, from_block: int | None, *, everything: bool) -> None:
    """List the apps that are registered; of APP_ID, what it may run and where.

    Exit codes: 0 listed, 1 an endpoint failed, 2 usage.
    """
    contracts = contracts_of(where)
    if app_id is not None:
        _list_one(contracts, _app_id(app_id), where, from_block, everything=everything)
        return
    at = contracts.pin()
    apps = read_apps(contracts, start_of(contracts, contracts.kms, from_block, at), at)
    if where.as_json:
        print_json(at, {"apps": [app_json(one) for one in apps]})
        return
    print_head(at)
    click.echo(f"apps: {len(apps)}")
    for one in apps:
        _print(one)


def _list_one(
    contracts: Contracts, app_id: bytes, where: Where, from_block: int | None, *, everything: bool
) -> None:
    at = contracts.pin()
    first = start_of(contracts, app_id, from_block, at)
    found = read_app(contracts, app_id, at)
    lists = {
        name: [
            one
            for one in read_allowed(contracts, app_id, added, view, first, at)
            if everything or one.is_allowed
        ]
        for name, added, view in _LISTS
    }
    registered = contracts.flags(at, (contracts.kms, abi.call(views.REGISTERED_APPS, app_id))) == [True]
    if where.as_json:
        told = {name: allowed_json(values) for name, values in lists.items()}
        print_json(at, {**app_json(found), "registered": registered, **told})
        return
    print_head(at)
    _print(found)
    if not registered:
        click.echo("  not registered: a KMS gives it no keys")
    for name, values in lists.items():
        click.echo(f"  {name}: {len(values)}")
        for one in values:
            click.echo(f"    {line_of(one)}")


def _print(one: App) -> None:
    click.echo(f"app {checksum_address(one.app_id)}")
    click.echo(f"  code    {code_text(one.code)}")
    if one.owner is None:
        why = (
            "its views could not be read: " + one.unread if one.unread else "it is of another kind than ours"
        )
        click.echo(f"  owner   not told: {why}")
        return
    click.echo(f"  owner   {checksum_address(one.owner.address)}, {kind_text(one.owner)}")
    if any(one.owner.pending):
        click.echo(f"  offered to {checksum_address(one.owner.pending)}, who has not accepted")
    click.echo(
        f"  allow-any-device {_word(one.allow_any_device)}, require-tcb {_word(one.require_tcb_up_to_date)}, "
        f"upgrades disabled {_word(one.upgrades_disabled)}"
    )


def _word(flag: bool | None) -> str:  # noqa: FBT001 - what is printed
    return "true" if flag else "false"


def _app_id(text: str) -> bytes:
    return address(text, "APP_ID")
