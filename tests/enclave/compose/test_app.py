"""What the boot left: read within bounds, and compared with what was measured."""

import hashlib
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from enclave.compose.app import load_app
from enclave.compose.main import main
from enclave.compose.programs import GuestPrograms
from enclave.devices.detect import TeePlatform
from enclave.devices.runtime_events import RuntimeEventLog
from shared.errors import ConfigError, ExitCode, InvalidEvidence, UnavailableError
from tests.enclave.compose.conftest import Guest
from tests.enclave.hosts import Host
from tests.shared.refusal import refuses


def _recorded(guest: Guest, payload: bytes | None) -> RuntimeEventLog:
    log = RuntimeEventLog((), guest.directory / "events")
    log.set_version(1)
    if payload is not None:
        log.emit("compose-hash", payload)
    return log


def _hash(guest: Guest) -> bytes:
    return hashlib.sha256((guest.work / "app-compose.json").read_bytes()).digest()


def test_starts_the_document_that_the_guest_recorded(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", guest.environment["PATH"])
    guest.app(runner="bash", bash_script="true\n")
    log = _recorded(guest, _hash(guest))
    assert main(["start", "--work-dir", str(guest.work)], GuestPrograms(), guest, log) == ExitCode.OK
    assert guest.told[-1] == ("boot.progress", "done")
    for command in ("stop", "init-scripts"):
        assert main([command, "--work-dir", str(guest.work)], GuestPrograms(), guest, log) == ExitCode.OK


@pytest.mark.parametrize("recorded", [None, bytes(32)])
def test_refuses_another_document_than_the_guest_recorded(
    guest: Guest, recorded: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.app(runner="bash", bash_script="exit 99\n")
    log = _recorded(guest, recorded)
    arguments = ["start", "--work-dir", str(guest.work)]
    assert main(arguments, GuestPrograms(), guest, log) == ExitCode.REFUSED
    assert "[compose.hash]" in capsys.readouterr().err
    with refuses("compose.hash", InvalidEvidence):
        load_app(guest.work, recorded=recorded or b"")


def test_a_guest_without_a_document_runs_nothing(tmp_path: Path) -> None:
    with refuses("compose.file", ConfigError):
        load_app(tmp_path)


def test_a_document_that_cannot_be_read_is_told(guest: Guest) -> None:
    (guest.work / "app-compose.json").mkdir()
    with refuses("compose.file", ConfigError):
        load_app(guest.work)


@pytest.mark.parametrize("text", ["[]", "{", '{"A": 1}', "\xff"])
def test_n71_variables_that_cannot_be_read_start_nothing(guest: Guest, text: str) -> None:
    guest.app()
    (guest.work / ".host-shared/.decrypted-env.json").write_bytes(text.encode("latin-1"))
    with refuses("compose.environment", ConfigError):
        load_app(guest.work)


def test_a_boot_without_variables_has_none(guest: Guest) -> None:
    guest.app()
    (guest.work / ".host-shared/.decrypted-env.json").unlink()
    assert load_app(guest.work).environment == {}


@pytest.mark.parametrize(
    ("told", "exported"),
    [
        ("https://pccs.example.com", "https://pccs.example.com"),
        ("a\nb", None),
        ("\u00e9", None),
        ("a" * 3000, None),
        (5, None),
        ("", None),
    ],
)
def test_the_hosts_address_for_collateral_is_exported_where_it_is_one(
    guest: Guest, told: Any, exported: str | None
) -> None:
    lifecycle = guest.lifecycle()
    (guest.work / ".host-shared/.sys-config.json").write_text(json.dumps({"pccs_url": told}))
    lifecycle = guest.lifecycle()
    lifecycle.stop()
    assert guest.calls[0].environment.get("PCCS_URL") == exported


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_host_config_that_cannot_be_read_exports_nothing(guest: Guest, text: str) -> None:
    (guest.work / ".host-shared/.sys-config.json").write_text(text)
    assert guest.app().pccs_url == ""


def test_the_apps_own_variable_wins(guest: Guest) -> None:
    (guest.work / ".host-shared/.sys-config.json").write_text('{"pccs_url": "https://host.example"}')
    guest.lifecycle({"PCCS_URL": "https://mine.example"}).stop()
    assert guest.calls[0].environment["PCCS_URL"] == "https://mine.example"


def _start_with_host(guest: Guest) -> list[tuple[str, str]]:
    """Start an app whose host's files name a host, and return what that host was told."""
    with tempfile.TemporaryDirectory() as directory:  # a socket's path is short
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{directory}/host")
        listener.listen()
        host = Host(listener)
        guest.app(runner="bash", bash_script="true\n")
        (guest.work / ".host-shared/.sys-config.json").write_text(
            json.dumps({"host_api_url": f"unix:{directory}/host"})
        )
        log = _recorded(guest, _hash(guest))
        assert main(["start", "--work-dir", str(guest.work)], GuestPrograms(), None, log) == ExitCode.OK
        host.close()
    return host.told()


def test_the_host_of_a_tdx_guest_is_told_how_the_start_goes(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", guest.environment["PATH"])
    monkeypatch.setattr("enclave.dstack_util.host_api.detect_platform", lambda: TeePlatform.TDX)
    told = _start_with_host(guest)
    assert told == [("boot.progress", "running main script"), ("boot.progress", "done")]


@pytest.mark.parametrize("cloud", [TeePlatform.GCP_TDX, TeePlatform.NITRO_ENCLAVE, TeePlatform.NITRO_TPM])
def test_a_cloud_is_told_nothing(guest: Guest, monkeypatch: pytest.MonkeyPatch, cloud: TeePlatform) -> None:
    monkeypatch.setenv("PATH", guest.environment["PATH"])
    monkeypatch.setattr("enclave.dstack_util.host_api.detect_platform", lambda: cloud)
    assert _start_with_host(guest) == []


def test_an_app_starts_where_there_is_no_guest_and_nobody_is_told(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> TeePlatform:
        raise UnavailableError("platform.device", "there is no tdx")

    monkeypatch.setenv("PATH", guest.environment["PATH"])
    monkeypatch.setattr("enclave.dstack_util.host_api.detect_platform", nowhere)
    assert _start_with_host(guest) == []
    assert '"host.notice.nobody"' in capsys.readouterr().out
