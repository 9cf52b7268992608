"""`python -m enclave.compose`: what the units of a guest call around docker."""

import argparse
from pathlib import Path

from enclave.compose.app import WORK_DIRECTORY, load_app
from enclave.compose.lifecycle import Lifecycle
from enclave.compose.programs import GuestPrograms, Programs
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.dstack_util.host_api import host_of_this_machine
from enclave.dstack_util.host_notice import Host
from enclave.log import log_event, write_error
from shared.errors import DstackError, ExitCode


def main(
    argv: list[str] | None = None,
    programs: Programs | None = None,
    host: Host | None = None,
    events: RuntimeEventLog | None = None,
) -> int:
    """Run one subcommand and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m enclave.compose", description="an app's containers")
    parser.add_argument("command", choices=("init-scripts", "start", "stop"))
    parser.add_argument("--work-dir", type=Path, default=WORK_DIRECTORY)
    arguments = parser.parse_args(argv)
    try:
        app = load_app(arguments.work_dir, recorded=recorded_compose_hash(events or RuntimeEventLog(())))
        told = host or host_of_this_machine(app.host_api_url)
        lifecycle = Lifecycle(app, programs or GuestPrograms(str(arguments.work_dir)), told)
        match arguments.command:
            case "init-scripts":
                lifecycle.run_init_scripts()
            case "start":
                lifecycle.start()
            case _:
                lifecycle.stop()
    except DstackError as error:
        log_event("compose.failed", code=error.code, message=error.message)
        write_error(f"compose: {error} [{error.code}]")
        return error.exit_code
    return ExitCode.OK


def recorded_compose_hash(events: RuntimeEventLog) -> bytes:
    """Return the `compose-hash` of this boot; without one it is empty, which no document hashes to."""
    return next((event.payload for event in events.read() if event.event == "compose-hash"), b"")
