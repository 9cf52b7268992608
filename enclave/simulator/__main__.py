"""`python -m enclave.simulator`: what clouds and hypervisors do, without either.

`authority DIR` makes throw-away attestation roots; `measure` prints what an image measures; `pccs DIR`
publishes what a simulated Intel and Google do; `evidence DIR` writes sample evidence; `run` starts a daemon
as a guest whose evidence is signed under those roots. Nothing made here passes a verifier that was not told
to trust the roots, and everything made from it is reported as simulated.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from enclave.log import write_error
from enclave.platform import Platform
from shared.errors import ConfigError, DstackError
from shared.hex import decode_hex

_Daemon = Callable[[list[str] | None, Platform | None], int]


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "pccs":
            from enclave.simulator.gcp_commands import serve_collateral  # noqa: PLC0415 - see _daemon

            return serve_collateral(arguments.directory)
        if arguments.command == "evidence":
            from enclave.simulator.evidence import main as evidence  # noqa: PLC0415 - see _daemon

            return evidence(arguments)
        return {"gcp": _gcp, "tdx": _tdx, "nitro": _nitro}[arguments.platform](arguments)
    except DstackError as error:
        write_error(f"simulator: {error} [{error.code}]")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m enclave.simulator", description="simulated guests")
    commands = parser.add_subparsers(dest="command", required=True)
    authority = commands.add_parser("authority", help="make throw-away attestation roots")
    authority.add_argument("directory", type=Path)
    authority.add_argument(
        "--url", default="", help="gcp, tdx: where `pccs` will answer, http://127.0.0.1:PORT"
    )
    measure = commands.add_parser("measure", help="print what an image measures")
    pccs = commands.add_parser("pccs", help="gcp, tdx: publish collateral, issuers and revocation lists")
    pccs.add_argument("directory", type=Path, help="the roots' directory, made when absent")
    evidence = commands.add_parser("evidence", help="write sample evidence and what verifies it")
    evidence.add_argument("directory", type=Path)
    evidence.add_argument("--platform", choices=("nitro", "nitro-tpm", "tdx", "gcp"), required=True)
    evidence.add_argument("--report-data", metavar="HEX", help="64 bytes; a random challenge without it")
    run = commands.add_parser("run", help="run a daemon as a guest")
    run.add_argument("--writable", type=Path, required=True, help="where the guest's own disk is kept")
    run.add_argument("--authority", type=Path, required=True, help="the roots' directory")
    run.add_argument(
        "--vsock", type=Path, help="nitro, tdx: the directory of sockets that is the host's vsock"
    )
    run.add_argument("--cid", type=int, help="nitro, tdx: the guest's context id, 4 or more")
    run.add_argument("--tpm", choices=("auto", "swtpm", "software"), default="auto", help="gcp: which vTPM")
    run.add_argument("--config-disk", type=Path, help="gcp: a raw config disk, in place of --app-compose")
    run.add_argument("--boot-disk", type=Path, help="gcp: a raw boot disk, in place of --image")
    run.add_argument("--address", default="", help="gcp: the guest's own address, one of 127.0.0.0/8")
    for command in (authority, measure, run):
        command.add_argument("--platform", choices=("nitro", "gcp", "tdx"), default="nitro")
    for command in (measure, run):
        command.add_argument("--eif", type=Path, help="nitro: the enclave image")
        command.add_argument("--image", type=Path, help="gcp, tdx: the OS image's directory")
        command.add_argument("--app-compose", type=Path, help="gcp, tdx: the measured app-compose.json")
        command.add_argument("--app-id", help="gcp, tdx: 40 hex digits")
    run.add_argument("daemon", choices=("kms", "agent", "dstack-util", "responder", "init"))
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _nitro(arguments: argparse.Namespace) -> int:
    # PLC0415: each kind of guest brings its own modules, and only what is asked for is loaded
    from enclave.simulator import nitro_commands as nitro  # noqa: PLC0415

    if arguments.command == "authority":
        nitro.create_authority(arguments.directory)
        return 0
    if arguments.eif is None:
        raise ConfigError("simulator.arguments", "a nitro enclave needs --eif")
    if arguments.command == "measure":
        nitro.print_measurement(arguments.eif)
        return 0
    if arguments.vsock is None or arguments.cid is None:
        raise ConfigError("simulator.arguments", "a nitro enclave needs --vsock and --cid")
    return nitro.run(arguments, _daemon(arguments.daemon))


def _gcp(arguments: argparse.Namespace) -> int:
    from enclave.simulator import gcp_commands as gcp  # noqa: PLC0415 - as above

    if arguments.command == "authority":
        gcp.print_report(gcp.create_authority(arguments.directory, arguments.url))
        return 0
    if arguments.command == "measure":
        if arguments.image is None:
            raise ConfigError("simulator.arguments", "an image to be measured needs --image")
        app_id = decode_hex(arguments.app_id, what="--app-id", length=20) if arguments.app_id else bytes(20)
        gcp.print_report(gcp.measure(arguments.image, arguments.app_compose, app_id))
        return 0
    return gcp.run(arguments, _daemon(arguments.daemon))


def _tdx(arguments: argparse.Namespace) -> int:
    from enclave.simulator import gcp_commands as gcp  # noqa: PLC0415 - as above
    from enclave.simulator import tdx_commands as tdx  # noqa: PLC0415 - as above

    if arguments.command == "authority":  # one machine's roots, of which a guest here uses Intel's alone
        gcp.print_report(gcp.create_authority(arguments.directory, arguments.url))
        return 0
    if arguments.image is None:
        raise ConfigError("simulator.arguments", "a tdx guest needs --image")
    if arguments.command == "measure":
        gcp.print_report(tdx.measure(arguments.image))
        return 0
    return tdx.run(arguments, _daemon(arguments.daemon))


def _daemon(name: str) -> _Daemon:
    # PLC0415: each daemon brings its own dependencies, and only the one that is asked for is loaded
    if name == "kms":
        from enclave.kms.daemon import main as daemon  # noqa: PLC0415
    elif name == "agent":
        from enclave.agent.daemon import main as daemon  # noqa: PLC0415
    elif name == "responder":
        from enclave.simulator.responder import main as daemon  # noqa: PLC0415
    elif name == "init":
        from enclave.simulator.enclave_boot import main as daemon  # noqa: PLC0415
    else:
        from enclave.dstack_util.main import main as daemon  # noqa: PLC0415
    return daemon


if __name__ == "__main__":
    sys.exit(main())
