"""`get-keys`."""

import argparse
from pathlib import Path
from typing import Any

from enclave.dstack_util.enclave_config import CONFIG_PATH, EnclaveConfig, kms_endpoint, load_enclave_config
from enclave.dstack_util.get_keys import get_keys
from enclave.dstack_util.tools import Tools
from enclave.platform import Platform
from shared.errors import ConfigError
from shared.hex import decode_hex

MAX_PEM = 256 * 1024


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    keys = commands.add_parser(
        "get-keys", help="attest to the KMS named by the measured image and print this app's keys"
    )
    keys.add_argument("-o", "--output", type=Path, help="write here, mode 0600, instead of standard output")
    keys.add_argument("-k", "--kms-url", action="append", default=[], help=f"must be what {CONFIG_PATH} says")
    keys.add_argument("--app-id", default="", help=f"must be what {CONFIG_PATH} says")
    keys.add_argument("--root-ca", type=Path, help="a pem; must be the certificate that the image pins")
    keys.set_defaults(run=_get_keys)


def _get_keys(arguments: argparse.Namespace, tools: Tools) -> None:
    if arguments.kms_url or arguments.app_id or arguments.root_ca:
        _check_options(arguments, tools, load_enclave_config(tools.platform))
    text = get_keys(tools.platform).to_file().to_json()
    tools.write(text if arguments.output else text + b"\n", arguments.output, private=True)


def _check_options(arguments: argparse.Namespace, tools: Tools, config: EnclaveConfig) -> None:
    """Refuse options that say other than the measured file: whoever types them decides nothing.

    Raises `ConfigError("get_keys.option")`.
    """
    asked = [kms_endpoint(url).url for url in arguments.kms_url]
    measured = [endpoint.url for endpoint in config.kms.endpoints()]
    if asked and asked != measured:
        raise _contradiction("--kms-url", ", ".join(measured))
    if arguments.app_id:
        app_id = decode_hex(arguments.app_id, what="--app-id", length=20)
        if app_id != config.app_id_bytes():
            raise _contradiction("--app-id", config.app_id)
    if arguments.root_ca is not None:
        given = tools.read_file(arguments.root_ca, MAX_PEM)
        if given.strip() != _pinned(tools.platform, config).strip():
            raise _contradiction("--root-ca", config.kms.root_ca or "none")


def _pinned(platform: Platform, config: EnclaveConfig) -> bytes:
    return platform.read_measured(config.kms.root_ca) if config.kms.root_ca else b""


def _contradiction(option: str, measured: str) -> ConfigError:
    return ConfigError(
        "get_keys.option", f"{option} is not what the measured image says, which is {measured[:200]}"
    )
