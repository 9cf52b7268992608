"""`dstack-cloud simulator`, as a developer starts and stops it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from cli.main import cli
from shared.errors import ConfigError
from tests.shared.refusal import refuses

ENDPOINTS = ("DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT")


@contextmanager
def started(directory: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Run the command until it has printed its variables; end it in the end."""
    command = subprocess.Popen(
        [sys.executable, "-m", "cli", "simulator", "--dir", str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    try:
        lines = [command.stdout.readline().strip() for _ in ENDPOINTS]
        yield command, dict(line.removeprefix("export ").split("=", 1) for line in lines)
    finally:
        command.kill()
        command.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_stopped_and_takes_its_sockets_away(tmp_path: Path, number: int) -> None:
    with started(tmp_path / "guest") as (command, variables):
        assert tuple(variables) == ENDPOINTS
        assert variables["DSTACK_SIMULATOR_ENDPOINT"] == str(tmp_path / "guest/dstack.sock")
        with httpx.Client(transport=httpx.HTTPTransport(uds=variables[ENDPOINTS[0]])) as client:
            assert client.post("http://agent/Info", json={}).json()["app_name"] == "simulated-app"
        command.send_signal(number)
        out, err = command.communicate()
        assert command.returncode == 0
        assert out == ""
        assert "Ctrl-C stops it" in err
        assert "dstack-cloud verify --trust-anchor" in err
    assert not [path for path in (tmp_path / "guest").iterdir() if path.is_socket()]


def test_keeps_the_guest_for_the_next_time(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with (
            started(tmp_path) as (_, variables),
            httpx.Client(transport=httpx.HTTPTransport(uds=variables[ENDPOINTS[0]])) as client,
        ):
            seen.append(client.post("http://agent/GetKey", json={"path": "wallet"}).json())
    assert seen[0] == seen[1]


def test_refuses_a_directory_with_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(cli, ["simulator", "--dir", str(tmp_path)], standalone_mode=False)
    with refuses("simulator.directory.foreign", ConfigError):
        assert result.exception is not None
        raise result.exception
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tells_the_last_words_of_a_daemon_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.simulator._MODULE", "enclave.simulator.nowhere")
    result = CliRunner().invoke(cli, ["simulator", "--dir", str(tmp_path)], standalone_mode=False)
    assert getattr(result.exception, "code", None) == "simulator.ended"
    assert "enclave.simulator.nowhere" in str(result.exception)
