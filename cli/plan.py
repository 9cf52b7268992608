"""`dstack-cloud plan`: what a deployment would run, and what must be approved before it does."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cli.addresses import read_address
from cli.places import cache_path, config_path, project_option
from functions.plan.assembly import AskChain
from functions.plan.project_files import read_config
from functions.plan.service import AGAINST_STATE, PlanOptions, plan_deployment
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

if TYPE_CHECKING:
    from functions.plan.enclave_image import EnclaveBuilder


@click.command()
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, which --against reads.")
@click.option(
    "--rpc",
    "rpc_urls",
    envvar="DSTACK_RPC_URL",
    multiple=True,
    metavar="URL",
    help="Ask this chain what it allows now; of several, the first.",
)
@click.option(
    "--chain-id",
    type=click.IntRange(min=1),
    envvar="DSTACK_CHAIN_ID",
    help="Refuse the answers of another chain.",
)
@click.option(
    "--kms-contract",
    envvar="DSTACK_KMS_CONTRACT",
    metavar="ADDR",
    help="Address of the DstackKms contract.",
)
@click.option("--app-id", metavar="HEX", help="Plan for this app id instead of app.json's.")
@click.option("--app-owner", metavar="ADDR", help="Who shall own an app contract that has to be made.")
@click.option("--device-id", metavar="HEX", help="The device id that the app contract must allow.")
@click.option(
    "--against",
    metavar="state|FILE",
    default=AGAINST_STATE,
    show_default=True,
    help="Compare with state.json, or with the JSON of an earlier plan.",
)
@click.option(
    "--allow-drop",
    "may_drop",
    multiple=True,
    metavar="FIELD",
    help="Let this field of the app-compose go. May be repeated.",
)
def plan(  # noqa: PLR0913, PLR0917 - click passes each option by its name
    directory: Path,
    rpc_urls: tuple[str, ...],
    chain_id: int | None,
    kms_contract: str | None,
    app_id: str | None,
    app_owner: str | None,
    device_id: str | None,
    against: str,
    may_drop: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Show what deploying this project would run, under which hashes, and who must approve what.

    Changes nothing but the cache of built images. With --rpc and --kms-contract it lists only the calls that
    are missing on that chain; without them, all that a deployment can need.

    Exit codes: 0 nothing to do, 1 an endpoint failed, 2 usage, 3 refused, 4 changes pending, 5 needs
    approval on chain.
    """
    options = PlanOptions(
        app_id=_hex(app_id, "--app-id", 20) or b"",
        device_id=_hex(device_id, "--device-id", 32),
        app_owner=address_option(app_owner, "--app-owner"),
        kms_contract=address_option(kms_contract or None, "--kms-contract"),
        against=against,
        may_drop=may_drop,
    )
    made = plan_deployment(
        directory,
        read_config(config_path(os.environ)),
        options,
        build_enclave=_builder(),
        ask_chain=_chain(rpc_urls[0] if rpc_urls else None, options.kms_contract, chain_id),
    )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(made), indent=2))
    else:
        from cli.plan_output import print_plan  # noqa: PLC0415 - not needed for --json

        print_plan(made, int(time.time()))
    sys.exit(made.exit_code)


def _chain(rpc_url: str | None, kms_contract: bytes | None, chain_id: int | None) -> AskChain | None:
    if rpc_url is None:
        if chain_id is not None:
            raise ConfigError("plan.chain_id", "--chain-id needs --rpc: the endpoint to ask")
        return None
    if kms_contract is None:
        raise ConfigError("plan.kms_contract", "--rpc needs --kms-contract: the contract to ask")
    from shared.net.contract_reader import ContractReader  # noqa: PLC0415 - only where a chain is asked
    from shared.net.dialer import DirectDialer  # noqa: PLC0415
    from shared.net.fetch import HttpClient  # noqa: PLC0415
    from shared.net.json_rpc import JsonRpc  # noqa: PLC0415

    return ContractReader(JsonRpc(rpc_url, HttpClient(DirectDialer())), kms_contract, chain_id).read


def _builder() -> "EnclaveBuilder":
    from functions.plan.enclave_builder import CachedBuilder  # noqa: PLC0415 - loaded for enclaves alone

    return CachedBuilder(cache_path(os.environ))


def address_option(text: str | None, option: str) -> bytes | None:
    """Read an address that may be absent, as `read_address` does. Raises `ConfigError("plan.option")`."""
    return None if text is None else read_address(text, option, code="plan.option")


def _hex(text: str | None, option: str, length: int) -> bytes | None:
    if text is None:
        return None
    return decode_hex_setting(text, what=option, length=length, code="plan.option")
