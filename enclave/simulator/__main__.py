"""`python -m enclave.simulator`: what nitro-cli and the hypervisor do, without either.

`authority DIR` makes a throw-away attestation root; `measure IMAGE` prints an image's registers; `run` starts
a daemon as an enclave whose NSM signs under that root. Nothing made here passes a verifier that was not told
to trust the root, and everything made from it is reported as simulated.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.image import measure_image
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.image import os_image_hash_of
from shared.errors import DstackError


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m enclave.simulator", description="simulated Nitro enclaves"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    authority = commands.add_parser("authority", help="make a throw-away attestation root")
    authority.add_argument("directory", type=Path)
    measure = commands.add_parser("measure", help="print the registers of an image directory")
    measure.add_argument("image", type=Path)
    run = commands.add_parser("run", help="run a daemon as an enclave")
    run.add_argument("--image", type=Path, required=True, help="the measured root file system")
    run.add_argument("--writable", type=Path, required=True, help="where the enclave's memory disk is kept")
    run.add_argument("--authority", type=Path, required=True, help="the root's directory")
    run.add_argument(
        "--vsock", type=Path, required=True, help="the directory of sockets that is this parent's vsock"
    )
    run.add_argument("--cid", type=int, required=True, help="the enclave's context id, 4 or more")
    run.add_argument("daemon", choices=("kms", "agent", "dstack-util"))
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "authority":
            SimulatedAuthority.create().save(arguments.directory)
            return 0
        if arguments.command == "measure":
            pcrs = measure_image(arguments.image)
            report = {f"PCR{index}": value.hex() for index, value in sorted(pcrs.items())}
            print(json.dumps({**report, "os_image_hash": os_image_hash_of(pcrs).hex()}))  # noqa: T201 - a command
            return 0
        return _run(arguments)
    except DstackError as error:
        sys.stderr.write(f"simulator: {error} [{error.code}]\n")
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    nsm = SimulatedNsm(measure_image(arguments.image), SimulatedAuthority.load(arguments.authority))
    tee = NitroTee(nsm, UnixStandIn(arguments.vsock, cid=arguments.cid))
    platform = Platform(image=arguments.image, writable=arguments.writable, tee=tee)
    return _daemon(arguments.daemon)(arguments.arguments, platform)


def _daemon(name: str) -> Callable[[list[str] | None, Platform | None], int]:
    # PLC0415: each daemon brings its own dependencies, and only the one that is asked for is loaded
    if name == "kms":
        from enclave.kms.daemon import main as daemon  # noqa: PLC0415
    elif name == "agent":
        from enclave.agent.daemon import main as daemon  # noqa: PLC0415
    else:
        from enclave.dstack_util.main import main as daemon  # noqa: PLC0415
    return daemon


if __name__ == "__main__":
    sys.exit(main())
