"""`python -m enclave.vsock --config FILE.toml`: run the forwarder until SIGTERM or SIGINT.

The first line on standard output says `{"event": "ready", "listeners": {rule: address}}`; each connection
adds one line when it ends. Exit codes: 0 stopped, 1 could not listen, 2 the configuration is wrong.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from enclave.vsock.config import ForwarderConfig, load_config
from enclave.vsock.forwarder import Forwarder
from shared.errors import DstackError, ExitCode


async def run(config: ForwarderConfig) -> None:
    """Run until a signal asks to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    forwarder = Forwarder(config)
    await forwarder.start()
    sys.stdout.write(json.dumps({"event": "ready", "listeners": forwarder.listeners}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await forwarder.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m enclave.vsock", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.toml")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(run(load_config(options.config)))
    except DstackError as error:
        sys.stderr.write(json.dumps({"error": error.message, "code": error.code}) + "\n")
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
