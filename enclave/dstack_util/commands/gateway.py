"""`gateway-refresh` and `gateway-checker`: a booted guest's way in, once and for as long as it runs."""

import argparse
import os
from pathlib import Path
from typing import Any, Final

from enclave.devices.host_shared import DIRECTORY_VARIABLE
from enclave.dstack_util.commands.boot import WORK
from enclave.dstack_util.gateway import Registrant, register
from enclave.dstack_util.gateway_checker import GatewayChecker, Pace
from enclave.dstack_util.guest import booting_tee
from enclave.dstack_util.host_share import DIRECTORY
from enclave.dstack_util.setup import APP_KEYS
from enclave.dstack_util.sys_config import parse_sys_config
from enclave.dstack_util.tools import Tools
from enclave.platform import Platform
from shared.compose.model import read_app_compose
from shared.compose.shared_files import APP_COMPOSE, SYS_CONFIG
from shared.errors import ConfigError
from shared.keys.app_keys_file import MAX_FILE, parse_app_keys
from shared.measurement.config_disk import MAX_BYTES

MISCONFIGURED: Final = 3
"""What `gateway-checker` ends with when starting it again would not help: its unit does not."""


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    refresh = commands.add_parser("gateway-refresh", help="register with the gateway again, once")
    refresh.add_argument("--work-dir", type=Path, default=WORK, help=f"that of setup; default {WORK}")
    refresh.add_argument("--force", action="store_true", help="make the tunnel's interface anew")
    refresh.set_defaults(run=_refresh)

    checker = commands.add_parser("gateway-checker", help="keep the guest registered until it is stopped")
    checker.add_argument("--work-dir", type=Path, default=WORK, help=f"that of setup; default {WORK}")
    checker.set_defaults(run=_check)


def _refresh(arguments: argparse.Namespace, tools: Tools) -> None:
    machine = tools.machine
    guest, platform = _registrant(arguments.work_dir.absolute(), tools)
    register(platform, machine, guest, force=arguments.force)


def _check(arguments: argparse.Namespace, tools: Tools, pace: Pace = Pace()) -> int:  # noqa: B008 - frozen
    machine = tools.machine
    guest, platform = _registrant(arguments.work_dir.absolute(), tools)
    try:
        guest.gateway()
    except ConfigError as error:
        tools.complain(f"dstack-util: {error} [{error.code}]\n")
        return MISCONFIGURED
    return GatewayChecker(machine, lambda force: register(platform, machine, guest, force=force), pace).run()


def _registrant(work: Path, tools: Tools) -> tuple[Registrant, Platform]:
    """Read what `setup` left, and who it recorded that this guest is.

    Raises `ConfigError`: `dstack_util.unreadable`, `dstack_util.size`, `gateway.identity`; and what the files
    are refused with.
    """
    directory = work / DIRECTORY
    # before the guest is looked for: it reads the copies from there
    os.environ[DIRECTORY_VARIABLE] = str(directory)
    compose = read_app_compose(tools.read_file(directory / APP_COMPOSE, MAX_BYTES[APP_COMPOSE]))
    sys_config = parse_sys_config(tools.read_file(directory / SYS_CONFIG, MAX_BYTES[SYS_CONFIG]))
    keys = parse_app_keys(tools.read_file(directory / APP_KEYS, MAX_FILE))
    recorded = {event.event: event.payload for event in booting_tee(tools.platform).event_log().read()}
    app_id = recorded.get("app-id")
    if app_id is None:
        raise ConfigError("gateway.identity", "this boot has recorded no app id: setup comes first")
    return Registrant(app_id=app_id, keys=keys, compose=compose, sys_config=sys_config), tools.platform
