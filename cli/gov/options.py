"""Options that all of `gov`'s commands share: which contract on which chain, and what becomes of a call."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from cli.addresses import read_address
from shared.chain.agreement import majority
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

if TYPE_CHECKING:
    from cli.gov.chain import Contracts
    from shared.compose.project import ChainConfig

Command = Callable[..., None]
DEFAULT_MAX_FEE: Final = 500
DEFAULT_TIMEOUT: Final = 300


_SENDING: Final = (
    click.option("--send", is_flag=True, help="Send the calls, signed by the key of --key-file."),
    click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        help="64 hex digits, in a file that nobody else may read.",
    ),
    click.option(
        "--timeout",
        type=click.IntRange(min=1),
        default=DEFAULT_TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="Wait no longer for a block.",
    ),
    click.option(
        "--max-fee",
        type=click.IntRange(min=1),
        default=DEFAULT_MAX_FEE,
        show_default=True,
        metavar="GWEI",
        help="Offer no more for a unit of gas.",
    ),
)


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Which contract is meant, and which endpoints are asked: `rpc_quorum` of them must agree."""

    rpc_urls: tuple[str, ...] = ()
    rpc_quorum: int | None = None
    kms_contract: str = ""
    chain_id: int | None = None
    as_json: bool = False

    @property
    def kms(self) -> bytes:
        """The KMS contract's address, raw. Raises `ConfigError("gov.option")`."""
        return address(self.kms_contract, "--kms-contract")


class Acting(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of calls: shown alone, or one of `dry_run`, `safe` (a file's name or -) and `send`."""

    safe: str = ""
    append: bool = False
    dry_run: bool = False
    send: bool = False
    key_file: Path | None = None
    timeout: int = DEFAULT_TIMEOUT
    max_fee: int = DEFAULT_MAX_FEE

    def check(self, where: Where) -> None:
        """Raise `ConfigError("gov.mode")` where the options do not say one thing.

        Raise `ConfigError("gov.option")` where something is to be signed, and no chain is named: an endpoint
        that calls itself another one would choose for which chain that is.
        """
        if sum((bool(self.safe), self.dry_run, self.send)) > 1:
            raise ConfigError("gov.mode", "--safe, --send and --dry-run are three different things: give one")
        if self.send != (self.key_file is not None):
            raise ConfigError("gov.mode", "--send and --key-file belong together")
        if self.append and self.safe in {"", "-"}:
            raise ConfigError("gov.mode", "--append needs --safe and the name of a file")
        if (self.safe or self.send) and where.chain_id is None:
            raise ConfigError(
                "gov.option", "--chain-id is missing: --safe and --send want the chain that is meant"
            )


def where_options(command: Command) -> Command:
    """Give a command `where`: the contract and the chain."""
    return _gathered(
        command,
        "where",
        Where,
        click.option(
            "--rpc",
            "--rpc-url",
            "rpc_urls",
            envvar="DSTACK_RPC_URL",
            multiple=True,
            metavar="URL",
            help="Ask this chain; of several, on different hosts, most must say the same.",
        ),
        click.option(
            "--rpc-quorum",
            type=click.IntRange(min=1),
            envvar="DSTACK_RPC_QUORUM",
            metavar="K",
            help="How many endpoints must agree; by default more than half of them.",
        ),
        click.option(
            "--chain-id",
            type=click.IntRange(min=1),
            envvar="DSTACK_CHAIN_ID",
            help="Refuse the answers of another chain; --safe and --send want it.",
        ),
        click.option(
            "--kms-contract",
            envvar="DSTACK_KMS_CONTRACT",
            default="",
            metavar="ADDR",
            help="Address of the DstackKms contract.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )


def acting_options(command: Command) -> Command:
    """Give a command `acting`: what becomes of its calls; and `where`."""
    gathered = _gathered(
        command,
        "acting",
        Acting,
        click.option(
            "--safe",
            default="",
            metavar="FILE|-",
            help="Write the calls as a file for the Transaction Builder of a Safe.",
        ),
        click.option("--append", is_flag=True, help="Add to that file, so that one signature makes all."),
        click.option("--dry-run", is_flag=True, help="Carry the calls out on a copy of the chain's state."),
        *_SENDING,
    )
    return where_options(gathered)


def contracts_of(where: Where) -> "Contracts":
    """Return what is asked about the contracts. Raises `ConfigError("gov.option")` where one is not named."""
    from cli.gov.chain import Contracts  # noqa: PLC0415 - the network loads where it is used

    return Contracts(endpoint_of(where), where.kms, where.chain_id)


def endpoint_of(where: Where) -> Any:  # noqa: ANN401 - a type of what loads late
    """Return the endpoint to ask, or several as one. Raises `ConfigError`: `gov.option`, `gov.rpc`."""
    config = chain_config()
    urls = where.rpc_urls or config.rpc_urls
    if not urls:
        raise ConfigError("gov.option", "--rpc is missing: which endpoint shall be asked")
    from cli.gov.agreed import AgreedEndpoint  # noqa: PLC0415 - the network loads where it is used
    from shared.net.dialer import DirectDialer  # noqa: PLC0415 - as above
    from shared.net.fetch import HttpClient  # noqa: PLC0415
    from shared.net.json_rpc import JsonRpc  # noqa: PLC0415

    http = HttpClient(DirectDialer())
    endpoints = [JsonRpc(url, http) for url in urls]
    named = where.rpc_quorum or (None if where.rpc_urls else config.rpc_quorum)
    quorum = majority(len(endpoints)) if named is None else named
    if len(endpoints) == quorum == 1:
        return endpoints[0]
    return AgreedEndpoint(endpoints, quorum)


def chain_config() -> "ChainConfig":
    """Return what the operator's config says of chains; raises as `read_config` does."""
    from cli.places import config_path  # noqa: PLC0415 - `--help` needs none of it
    from functions.plan.project_files import read_config  # noqa: PLC0415 - as above

    return read_config(config_path(os.environ)).chain


def address(text: str, option: str) -> bytes:
    """Read an address, as `read_address` does. Raises `ConfigError("gov.option")`, also for an empty one."""
    if not text:
        raise ConfigError("gov.option", f"{option} is missing, expected an address")
    return read_address(text, option, code="gov.option")


def hash32(text: str, option: str) -> bytes:
    """Read 32 bytes in hex. Raises `ConfigError("gov.option")`."""
    return decode_hex_setting(text, what=option, length=32, code="gov.option")


def _gathered(
    command: Command, name: str, kind: type[Any], *options: Callable[[Command], Command]
) -> Command:
    """Give a command options, and hand them over as one struct named `name`."""

    def gathering(**given: Any) -> None:  # noqa: ANN401 - click passes options by name
        fields = {field: given.pop(field) for field in kind.__struct_fields__ if field in given}
        command(**given, **{name: kind(**fields)})

    gathering.__doc__ = command.__doc__
    gathering.__name__ = command.__name__
    gathering.__dict__.update(command.__dict__)
    for option in reversed(options):
        option(gathering)
    return gathering
