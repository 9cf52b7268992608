"""The `dstack-util` command: a table of subcommands.

Exit codes are upstream's, not those of our other commands: 0, 1 for whatever failed, 2 for wrong arguments,
and 3 from `gateway-checker` alone.
"""

import argparse

from enclave.dstack_util.commands import (
    boot,
    certificates,
    events,
    evidence,
    gateway,
    keys,
    octets,
    orphans,
    tpm,
)
from enclave.dstack_util.tools import Command, Tools
from enclave.log import write_error
from enclave.platform import Platform
from shared.errors import DstackError, ExitCode

GROUPS = (keys, evidence, events, octets, certificates, boot, gateway, orphans, tpm)


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run a subcommand and return its exit code. `platform` is the simulator's; None is a real guest."""
    return run(argv, Tools(platform))


def run(argv: list[str] | None, tools: Tools) -> int:
    """Run a subcommand with these tools."""
    parser = argparse.ArgumentParser(prog="dstack-util", description="tools of a dstack guest")
    commands = parser.add_subparsers(dest="command", required=True)
    for group in GROUPS:
        group.add(commands)
    arguments = parser.parse_args(argv)
    command: Command = arguments.run
    try:
        return command(arguments, tools) or ExitCode.OK
    except DstackError as error:
        write_error(f"dstack-util: {error} [{error.code}]")
        return ExitCode.FAILED
