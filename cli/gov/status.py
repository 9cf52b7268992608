"""`gov status`: who may change what, whether the code is known, and what runs against the policy."""

import json
import os
import sys

import click

from cli.deploy_options import Chosen, api_options, deployments_of
from cli.gov.chain import Block, Contracts, Owner
from cli.gov.code import code_of
from cli.gov.listed import from_block_option, start_of
from cli.gov.listing import App, read_apps, read_kms_info
from cli.gov.options import Where, chain_config, contracts_of, where_options
from cli.gov.proposals import Proposals, read_proposals
from cli.gov.running import Held, held_to_policy
from cli.gov.safe_service import SafeService
from cli.gov.status_report import Status, print_status, status_json
from cli.gov.waiting import Waiting, waiting_for_calls
from cli.places import config_path
from functions.deploy.record import Goal
from functions.deploy.views import read_whole
from functions.plan.project_files import read_config
from shared.chain import abi
from shared.chain.abi import checksum_address
from shared.errors import DstackError, ExitCode

_OF_THE_CHAIN = ("rpc.", "abi.", "quorum.")
_UNASKED = "--safe-service names who keeps them"
MAX_SAFES = 20
API_KEY = "DSTACK_SAFE_API_KEY"


@click.command()
@click.option(
    "--safe-service",
    envvar="DSTACK_SAFE_SERVICE",
    default="",
    metavar="URL",
    help="Ask this Safe Transaction Service what waits for signatures; every word of it is checked.",
)
@from_block_option
@where_options
@api_options
def status(api: str, safe_service: str, from_block: int | None, where: Where) -> None:
    """Show who may change what, what waits for signatures, and what the policy no longer allows.

    Deployments are those of `dstack-cloud list`. What one endpoint alone says is believed.

    Exit codes: 0 as it should be, 1 failed, or deployments cannot be told of, or what waits for the KMS
    contract's owner was asked for and cannot be, 2 usage, 3 something runs that is not allowed.
    """
    contracts = contracts_of(where)
    service = _service(safe_service or chain_config().safe_service)
    at = contracts.pin()
    found = _read(contracts, at, from_block, api, service)
    is_untold = (service is not None and found.is_owner_untold) or found.is_unsure
    code = ExitCode.FAILED if is_untold else ExitCode.OK
    code = ExitCode.REFUSED if found.violations else code
    if where.as_json:
        click.echo(json.dumps({**status_json(found), "exit_code": int(code)}, indent=2))
    else:
        print_status(found)
    sys.exit(code)


def _service(url: str) -> SafeService | None:
    """Return the service to ask. Raises `ConfigError("gov.safe_service.url")`."""
    if not url:
        return None
    from shared.net.dialer import DirectDialer  # noqa: PLC0415 - the network loads where it is used
    from shared.net.fetch import HttpClient  # noqa: PLC0415 - as above

    return SafeService(url, HttpClient(DirectDialer()), os.environ.get(API_KEY, ""))


def _read(
    contracts: Contracts, at: Block, from_block: int | None, api: str, service: SafeService | None
) -> Status:
    first = start_of(contracts, contracts.kms, from_block, at)
    gateway, implementation = contracts.views(
        at,
        (contracts.kms, abi.call(abi.GATEWAY_APP_ID)),
        (contracts.kms, abi.call(abi.APP_IMPLEMENTATION)),
    )
    held: tuple[Held, ...] | None = None
    waiting: tuple[Waiting, ...] = ()
    unseen = ""
    try:
        deployments = deployments_of(Chosen(api=api), read_config(config_path(os.environ)))
        there = [one["name"] for one in deployments.list_all() if one["goal"] != Goal.REMOVED]
        records = [read_whole(deployments.get(name)) for name in there]
    except DstackError as error:
        unseen = f"{error} [{error.code}]"
    else:
        waiting = tuple(waiting_for_calls(contracts, records, at))
        held = tuple(held_to_policy(contracts, records, at))
    owner = contracts.owner(contracts.kms, at)
    apps = tuple(read_apps(contracts, first, at))
    proposals, untold = _proposals(contracts, service, owner, apps, at)
    return Status(
        at=at,
        finalized=_finalized(contracts),
        kms=contracts.kms,
        owner=owner,
        code=code_of(contracts, contracts.kms, at),
        info=read_kms_info(contracts, at),
        gateway=abi.decode_string(gateway),
        app_implementation=abi.decode_address(implementation),
        apps=apps,
        held=held,
        waiting=waiting,
        unseen=unseen,
        proposals=proposals,
        untold=untold,
    )


def _finalized(contracts: Contracts) -> int | None:
    """Return the newest final block's number, None where an endpoint does not know what that is."""
    try:
        return contracts.pin("finalized").number
    except DstackError as error:
        if error.code in {"rpc.error", "rpc.malformed"}:
            return None
        raise


def _proposals(
    contracts: Contracts, service: SafeService | None, owner: Owner, apps: tuple[App, ...], at: Block
) -> tuple[tuple[Proposals, ...], tuple[str, ...]]:
    """Return what waits for the Safes that own something, and of which Safes that cannot be told, and why.

    Anybody can register an app, with an owner that looks like a Safe: so not all of them are asked about, and
    the KMS contract's owner comes first.
    """
    owners = [owner, *(app.owner for app in apps if app.owner is not None)]
    safes = {one.address: one for one in owners if one.threshold}
    found: list[Proposals] = []
    untold: list[str] = []
    for address, safe in safes.items():
        try:
            if service is None:
                untold.append(f"{checksum_address(address)}: {_UNASKED}")
            elif len(found) + len(untold) >= MAX_SAFES:
                untold.append(f"{checksum_address(address)}: {MAX_SAFES} others were asked about")
            else:
                found.append(read_proposals(contracts, service, safe, {app.app_id for app in apps}, at))
        except DstackError as error:
            if address == owner.address and error.code.startswith(_OF_THE_CHAIN):
                raise
            untold.append(f"{checksum_address(address)}: {error} [{error.code}]")
    return tuple(found), tuple(untold)
