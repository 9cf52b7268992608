"""`gov status`: who may change what, whether the code is known, and what runs against the policy."""

import json
import os
import sys
from typing import Any

import click
import msgspec

from cli.deploy_options import Chosen, api_options, deployments_of
from cli.gov.acting import kind_text
from cli.gov.chain import Block, Contracts, Owner, head_json, head_text
from cli.gov.code import Code, code_json, code_of, code_text
from cli.gov.listed import from_block_option, start_of
from cli.gov.listing import App, KmsInfo, app_json, owner_json, read_apps, read_kms_info
from cli.gov.options import Where, contracts_of, where_options
from cli.gov.running import Held, held_to_policy
from cli.places import config_path
from functions.plan.project_files import read_config
from shared.chain import abi
from shared.chain.abi import checksum_address
from shared.errors import DstackError, ExitCode

_UNSEEN = "deployments are not told: "


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown, of one block. `held` is None where no deployments could be read, for `unseen`."""

    at: Block
    finalized: int
    kms: bytes
    owner: Owner
    code: Code
    info: KmsInfo
    gateway: str
    app_implementation: bytes
    apps: tuple[App, ...]
    held: tuple[Held, ...] | None
    unseen: str = ""

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
            if not app.code.is_known:
                found.append(f"app {name} runs code that a KMS does not take, unless it is pinned")
            if app.owner is not None and any(app.owner.pending):
                found.append(f"a transfer of app {name} to {checksum_address(app.owner.pending)} is pending")
        return found

    @property
    def violations(self) -> list[Held]:
        """What runs, and would get no keys now."""
        return [one for one in self.held or () if one.refused]


@click.command()
@from_block_option
@where_options
@api_options
def status(api: str, from_block: int | None, where: Where) -> None:
    """Show who may change what, pending transfers, and deployments that the policy no longer allows.

    Deployments are those of `dstack-cloud list`. What the endpoint says is believed.

    Exit codes: 0 as it should be, 1 failed, 2 usage, 3 something runs that is not allowed.
    """
    contracts = contracts_of(where)
    at = contracts.pin()
    found = _read(contracts, at, from_block, api)
    code = ExitCode.REFUSED if found.violations else ExitCode.OK
    if where.as_json:
        click.echo(json.dumps({**_json(found), "exit_code": int(code)}, indent=2))
    else:
        _print(found)
    sys.exit(code)


def _read(contracts: Contracts, at: Block, from_block: int | None, api: str) -> Status:
    first = start_of(contracts, contracts.kms, from_block, at)
    gateway, implementation = contracts.views(
        at,
        (contracts.kms, abi.call(abi.GATEWAY_APP_ID)),
        (contracts.kms, abi.call(abi.APP_IMPLEMENTATION)),
    )
    held: tuple[Held, ...] | None = None
    unseen = ""
    try:
        deployments = deployments_of(Chosen(api=api), read_config(config_path(os.environ)))
        whole = [deployments.get(one["name"]) for one in deployments.list_all() if one["step"] == "running"]
        held = tuple(held_to_policy(contracts, whole, at))
    except DstackError as error:
        if error.code.startswith(("rpc.", "abi.")):
            raise
        unseen = f"{error} [{error.code}]"
    return Status(
        at=at,
        finalized=contracts.pin("finalized").number,
        kms=contracts.kms,
        owner=contracts.owner(contracts.kms, at),
        code=code_of(contracts, contracts.kms, at),
        info=read_kms_info(contracts, at),
        gateway=abi.decode_string(gateway),
        app_implementation=abi.decode_address(implementation),
        apps=tuple(read_apps(contracts, first, at)),
        held=held,
        unseen=unseen,
    )


def _json(found: Status) -> dict[str, Any]:
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
        "deployments_unseen": found.unseen,
        "warnings": found.warnings,
    }


def _print(found: Status) -> None:
    at, owner = found.at, found.owner
    click.echo(f"{head_text(at)}, final up to {found.finalized}")
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
    if found.held is None:
        click.echo(_UNSEEN + found.unseen)
    else:
        click.echo(f"running deployments: {len(found.held)}")
        for one in found.held:
            click.echo(f"  {one.name}  {'; '.join(one.refused) if one.refused else 'allowed'}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    if found.violations:
        click.echo(f"NOT ALLOWED  {len(found.violations)} running: stop them, or allow them again")


def _app_text(app: App) -> str:
    if app.owner is None:
        return code_text(app.code)
    fixed = ", upgrades disabled" if app.upgrades_disabled else ""
    device = ", any device" if app.allow_any_device else ""
    return (
        f"owner {checksum_address(app.owner.address)}, {kind_text(app.owner)}; "
        f"{code_text(app.code)}{fixed}{device}"
    )
