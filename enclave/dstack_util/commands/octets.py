"""`hex` and `rand`."""

import argparse
import secrets
from pathlib import Path
from typing import Any

from enclave.dstack_util.tools import Tools
from shared.errors import ConfigError

MAX_HEX = 256 * 1024 * 1024
MAX_RANDOM = 1024 * 1024
DEFAULT_RANDOM = 20


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    one = commands.add_parser("hex", help="print a file, or standard input, as hex")
    one.add_argument("file", nargs="?", type=Path)
    one.set_defaults(run=_hex)
    one = commands.add_parser("rand", help="random bytes")
    one.add_argument("-n", "--bytes", type=int, default=DEFAULT_RANDOM, metavar="N")
    one.add_argument("-o", "--output", type=Path, help="write here, mode 0600")
    one.add_argument("-x", "--hex", action="store_true")
    one.set_defaults(run=_rand)


def _hex(arguments: argparse.Namespace, tools: Tools) -> None:
    if arguments.file is not None:
        content = tools.read_file(arguments.file, MAX_HEX)
    elif len(content := tools.read_input(MAX_HEX)) > MAX_HEX:
        raise ConfigError("dstack_util.size", f"standard input has more than {MAX_HEX} bytes")
    tools.write(content.hex().encode())


def _rand(arguments: argparse.Namespace, tools: Tools) -> None:
    if not 0 < arguments.bytes <= MAX_RANDOM:
        raise ConfigError("rand.size", f"got {arguments.bytes} bytes to draw, expected 1 to {MAX_RANDOM}")
    drawn = secrets.token_bytes(arguments.bytes)
    tools.write(drawn.hex().encode() if arguments.hex else drawn, arguments.output, private=True)
