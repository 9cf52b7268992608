"""`dstack-cloud simulator`: a guest agent for an app's developer, on this machine and without hardware."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import click

from cli.devchain.child import with_parent
from shared.errors import ConfigError, DstackError, ExitCode, InvalidEvidence, UnavailableError

STOP_SECONDS: Final = 15.0
"""What is being answered when it is stopped is answered first, for ten of them."""

_MODULE: Final = "enclave.simulator.agent"
_MAX_WORDS: Final = 400
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The guest's directory, and its sockets'; an empty or a new one gets a new guest.",
)
@click.option(
    "--app-compose",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The app-compose.json that a new guest runs, for a small one.",
)
def simulator(directory: Path, app_compose: Path | None) -> None:
    """Run a guest agent that dstack's SDKs talk to, until Ctrl-C.

    It answers every call of the SDKs from DIR: keys, certificates, quotes. What it makes is simulated: the
    quotes verify only where DIR/root.pem is trusted, and the keys protect nothing. DIR may also be the
    fixture directory of upstream's simulator.

    Exit codes: 0 stopped, 1 it ended by itself, 2 usage, 3 the directory's evidence is none.
    """
    place = directory.resolve()
    command = [sys.executable, "-m", _MODULE, "--dir", str(place)]
    if app_compose is not None:
        command += ["--app-compose", str(app_compose.resolve())]
    with tempfile.TemporaryFile() as errors, _interrupted_once():
        child = subprocess.Popen(  # noqa: S603 - our own program
            with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the child
        )
        try:
            code = _follow(child, place)
        except KeyboardInterrupt:
            return
        finally:
            _stop(child)
        raise _ended(child, code, errors)


def _follow(child: "subprocess.Popen[bytes]", place: Path) -> dict[str, Any]:
    """Tell when it is ready; return its last word when it has ended."""
    failed: dict[str, Any] = {}
    for event in _events(child):
        if event.get("event") == "simulator.ready":
            _tell(event, place)
        if event.get("event") == "simulator.failed":
            failed = event
    child.wait()
    return failed


def _events(child: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    if child.stdout is None:
        raise TypeError("standard output is not a pipe")
    for line in child.stdout:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _tell(event: dict[str, Any], place: Path) -> None:
    made = "new guest" if event["made"] else "guest"
    click.echo(f"{made} of app 0x{event['app_id']} in {place}, simulated; Ctrl-C stops it", err=True)
    click.echo(f"export DSTACK_SIMULATOR_ENDPOINT={shlex.quote(event['dstack'])}")
    click.echo(f"export TAPPD_SIMULATOR_ENDPOINT={shlex.quote(event['tappd'])}")
    if event["signed"]:
        here = Path(os.path.relpath(place))
        root, collateral = (shlex.quote(str(here / name)) for name in ("root.pem", "collateral.json"))
        click.echo("its evidence verifies with:", err=True)
        click.echo(f"dstack-cloud verify --trust-anchor {root} --collateral {collateral} FILE", err=True)
    else:
        click.echo("its evidence is not signed anew for each call, and verifies nowhere", err=True)


def _ended(child: "subprocess.Popen[bytes]", failed: dict[str, Any], errors: IO[bytes]) -> DstackError:
    """Return why it is not running: its own refusal, or its last words."""
    if failed:
        kinds = {ExitCode.USAGE: ConfigError, ExitCode.REFUSED: InvalidEvidence}
        kind = kinds.get(ExitCode(child.returncode), UnavailableError)
        return kind(str(failed["code"]), str(failed["message"]))
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip().splitlines()
    last = words[-1][:_MAX_WORDS] if words else f"exit code {child.returncode}"
    return UnavailableError("simulator.ended", f"the simulator ended: {last}")


def _stop(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Have the first SIGINT or SIGTERM stop the command, and no further one disturb that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
