"""Options that the commands about deployments share, and what they choose."""

import os
from collections.abc import Callable
from typing import Any

import click
import msgspec

from cli.deployments import Deployments
from cli.plan import address_option
from shared.compose.project import GlobalConfig

Command = Callable[..., None]


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which deployments are meant, and which chain is asked about them."""

    api: str = ""
    rpc_urls: tuple[str, ...] = ()
    kms_contract: str = ""
    chain_id: int | None = None

    @property
    def contract(self) -> bytes | None:
        """The address of the KMS contract, raw. Raises `ConfigError("plan.option")`."""
        return address_option(self.kms_contract or None, "--kms-contract")


def api_options(command: Command) -> Command:
    """Give a command `--api`."""
    return click.option(
        "--api",
        envvar="DSTACK_CLOUD_API",
        default="",
        metavar="URL",
        help="Ask this deploy function; without it the clouds are called from here.",
    )(command)


def chain_options(command: Command) -> Command:
    """Give a command the options of a chain."""
    for option in (
        click.option(
            "--chain-id",
            type=click.IntRange(min=1),
            envvar="DSTACK_CHAIN_ID",
            help="Refuse the answers of another chain.",
        ),
        click.option(
            "--kms-contract",
            envvar="DSTACK_KMS_CONTRACT",
            default="",
            metavar="ADDR",
            help="Address of the DstackKms contract.",
        ),
        click.option(
            "--rpc",
            "rpc_urls",
            envvar="DSTACK_RPC_URL",
            multiple=True,
            metavar="URL",
            help="Ask this chain what it allows; of several, on different hosts, most must say the same. "
            "Two pin a KMS by its contract.",
        ),
    ):
        command = option(command)
    return command


def take_chosen(given: dict[str, Any]) -> Chosen:
    """Take the shared options out of a command's."""
    names = [name for name in Chosen.__struct_fields__ if name in given]
    return Chosen(**{name: given.pop(name) for name in names})


def deployments_of(chosen: Chosen, config: GlobalConfig) -> Deployments:
    """Return the deployments that a command works on."""
    from cli.runtime import chain_of, here, remote  # noqa: PLC0415 - heavy, and `--help` needs none of it

    if chosen.api:
        return remote(chosen.api, os.environ)
    return here(config, os.environ, chain_of(chosen.rpc_urls, chosen.contract, chosen.chain_id))
