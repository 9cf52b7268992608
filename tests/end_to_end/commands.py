"""Commands as a user types them, run in this process."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.deployments import HereDeployments
from cli.main import cli
from shared.errors import DstackError
from tests.end_to_end.fast_clock import FastClock


def become(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], place: Path) -> None:
    """Take a user's environment and directory, and a clock that jumps over pauses."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    clock = FastClock()
    monkeypatch.setattr("cli.runtime.now", clock)
    defaults = HereDeployments.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "sleep", clock.sleep)


def run(command: str, code: int = 0) -> str:
    """Run one command, and return what it printed."""
    words = shlex.split(command)
    assert words[0] == "dstack-cloud"
    ran = CliRunner().invoke(cli, words[1:])
    if isinstance(ran.exception, DstackError):
        raise ran.exception
    assert ran.exit_code == code, f"{command}: {ran.exit_code}\n{ran.output}"
    # the machines of the fake clouds live in this process, and log to what the command prints to
    return "".join(line for line in ran.stdout.splitlines(keepends=True) if not line.startswith('{"event"'))


def shown(command: str, code: int = 0) -> dict[str, Any]:
    """Run one command with --json, and return the object."""
    document = json.loads(run(f"{command} --json", code))
    assert isinstance(document, dict)
    return document
