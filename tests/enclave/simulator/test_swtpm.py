"""The swtpm process: it ends with us, and says so when it is missing or gone."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from enclave.devices.tpm import Tpm
from enclave.devices.tpm_nv import ATTR_OWNER_READ, ATTR_OWNER_WRITE, NvStorage
from enclave.simulator.swtpm import Swtpm, swtpm_installed
from shared.errors import ProtocolError, UnavailableError

needs_swtpm = pytest.mark.skipif(not swtpm_installed(), reason="swtpm is not installed: install swtpm")


@needs_swtpm
def test_ends_with_its_block(tmp_path: Path) -> None:
    with Swtpm(tmp_path) as running:
        assert len(Tpm(running).get_random(8)) == 8
        pid = running._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    running.close()


@needs_swtpm
def test_ends_when_its_socket_closes(tmp_path: Path) -> None:
    """As it does when this process dies."""
    running = Swtpm(tmp_path)
    Tpm(running).get_random(8)
    running._socket.close()
    running._process.wait(10)
    running.close()


@needs_swtpm
def test_keeps_indexes_and_clears_registers(tmp_path: Path) -> None:
    with Swtpm(tmp_path) as first:
        tpm = Tpm(first)
        NvStorage(tpm).define(0x01C10002, 3, ATTR_OWNER_READ | ATTR_OWNER_WRITE)
        NvStorage(tpm).write(0x01C10002, b"abc")
        tpm.pcr_extend(14, {"sha256": bytes(32)})
    with Swtpm(tmp_path) as second:
        assert NvStorage(Tpm(second)).read(0x01C10002) == b"abc"
        assert Tpm(second).pcr_read("sha256", [14]) == {14: bytes(32)}


@needs_swtpm
def test_reports_a_process_that_is_gone(tmp_path: Path) -> None:
    with Swtpm(tmp_path) as running:
        os.kill(running._process.pid, signal.SIGKILL)
        running._process.wait(10)
        with pytest.raises(UnavailableError) as caught:
            Tpm(running).get_random(8)
        assert caught.value.code == "swtpm.ended"


def test_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert not swtpm_installed()
    with pytest.raises(UnavailableError) as caught:
        Swtpm(tmp_path)
    assert caught.value.code == "swtpm.absent"
    assert "install" in str(caught.value)


def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a shell script in swtpm's place; its socket is descriptor `$5`... of the command line."""
    program = tmp_path / "swtpm"
    program.write_text('#!/bin/bash\nfor i in "$@"; do [ "$last" = --fd ] && fd=$i; last=$i; done\n' + script)
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(program))
    return tmp_path / "state"


def test_refuses_an_impossible_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fake_program(
        tmp_path, monkeypatch, r"printf '\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00' >&$fd; read -N 1 -u $fd"
    )
    with Swtpm(state) as running, pytest.raises(ProtocolError) as caught:
        running.transact(b"x")
    assert caught.value.code == "tpm_device.response.size"


def test_reports_a_process_that_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fake_program(tmp_path, monkeypatch, "read -N 1 -u $fd; printf x >&$fd")
    with Swtpm(state) as running, pytest.raises(UnavailableError) as caught:
        running.transact(b"x")
    assert caught.value.code == "swtpm.ended"


def test_kills_a_process_that_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave.simulator.swtpm._STOP_TIMEOUT", 0.05)
    state = fake_program(
        tmp_path,
        monkeypatch,
        "trap '' TERM; printf '\\x80\\x01\\x00\\x00\\x00\\x0a\\x00\\x00\\x00\\x00' >&$fd\n"
        "while true; do sleep 0.1; done",
    )
    with Swtpm(state) as running:
        running.transact(b"x")
    assert running._process.returncode == -signal.SIGKILL


def test_gives_up_on_a_tpm_that_always_asks_for_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fake_program(
        tmp_path,
        monkeypatch,
        r"while read -N 1 -u $fd; do printf '\x80\x01\x00\x00\x00\x0a\x00\x00\x09\x22' >&$fd; done",
    )
    with Swtpm(state) as running:
        assert running.transact(b"x")[6:] == (0x922).to_bytes(4, "big")
