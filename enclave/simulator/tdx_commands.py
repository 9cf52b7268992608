"""The half of `python -m enclave.simulator` for TDX guests on a machine of one's own."""

import argparse
from collections.abc import Callable
from pathlib import Path

from enclave.platform import Platform
from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.image import serialised
from enclave.simulator.lite_guest import LiteImage
from enclave.simulator.tdx_guest import running_tdx_guest
from enclave.vsock.transport import UnixStandIn
from shared.errors import ConfigError
from shared.hex import decode_hex

Daemon = Callable[[list[str] | None, Platform | None], int]


def measure(image: Path) -> dict[str, str]:
    """Return what an image measures, before it runs."""
    found = LiteImage.of(b"".join(serialised(image)))
    registers = found.registers
    return {
        "mrtd": registers.mrtd.hex(),
        "rtmr0": registers.rtmr0.hex(),
        "rtmr1": registers.rtmr1.hex(),
        "rtmr2": registers.rtmr2.hex(),
        "os_image_hash": found.config.os_image_hash.hex(),
    }


def run(arguments: argparse.Namespace, daemon: Daemon) -> int:
    """Boot a guest and run a daemon in it."""
    if arguments.app_compose is None or arguments.app_id is None:
        raise ConfigError("simulator.arguments", "a tdx guest needs --app-compose and --app-id")
    if arguments.vsock is None or arguments.cid is None:
        raise ConfigError("simulator.arguments", "a tdx guest needs --vsock and --cid")
    files = GuestFiles(arguments.image, arguments.app_compose, arguments.writable)
    app_id = decode_hex(arguments.app_id, what="--app-id", length=20)
    intel = GcpAuthority.load(arguments.authority).intel
    vsock = UnixStandIn(arguments.vsock, cid=arguments.cid)
    with running_tdx_guest(files, intel, app_id, vsock=vsock) as platform:
        return daemon(arguments.arguments, platform)
