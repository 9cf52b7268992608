"""A chain is started as one process and that process is stopped; what went wrong has a code."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.devchain import launcher
from cli.devchain.artifacts import artifact
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, find_anvil, start_chain
from shared.errors import ConfigError, StorageError, UnavailableError


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def chain_id(url: str) -> int:
    answer = httpx.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
    return int(answer.json()["result"], 16)


@pytest.mark.parametrize("engine", ["py-evm", "anvil"])
def test_chain_answers_inside_the_block_and_is_gone_after_it(engine: str) -> None:
    if engine == "anvil" and find_anvil() is None:
        pytest.skip("no anvil on this machine: install node and npm, then run make setup")
    with start_chain(engine) as chain:
        assert (chain.engine, chain_id(chain.url)) == (engine, chain.chain_id)
        assert alive(chain.pid)
    assert not alive(chain.pid)


def test_chain_is_stopped_when_the_block_fails() -> None:
    seen: list[Chain] = []

    def fail() -> None:
        with start_chain("auto") as chain:
            seen.append(chain)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not alive(seen[0].pid)


def test_auto_takes_py_evm_when_there_is_no_anvil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_anvil", lambda: None)
    with start_chain("auto") as chain:
        assert chain.engine == "py-evm"
        assert chain.fallback == "anvil is absent (install node and npm)"


def test_auto_takes_py_evm_when_anvil_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_anvil", lambda: Path("/bin/false"))
    with start_chain("auto") as chain:
        assert chain.engine == "py-evm"
        assert chain.fallback.startswith("anvil does not start (")


def test_binary_that_cannot_run_counts_as_no_anvil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "anvil"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    monkeypatch.setattr(launcher, "find_anvil", lambda: broken)
    with start_chain("auto") as chain:
        assert chain.engine == "py-evm"


def test_missing_anvil_is_an_error_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_anvil", lambda: None)
    with pytest.raises(UnavailableError) as caught, start_chain("anvil"):
        pass
    assert caught.value.code == "devchain.start"


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError) as caught, start_chain("geth"):
        pass
    assert caught.value.code == "devchain.engine"


def test_taken_port_is_an_error_that_names_the_cause() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(UnavailableError) as caught,
            start_chain("py-evm", port=taken.getsockname()[1]),
        ):
            pass
    assert caught.value.code == "devchain.start"
    assert "in use" in caught.value.message


def test_silent_process_is_given_up_and_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "anvil"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(launcher.subprocess, "Popen", Recorded)
    monkeypatch.setattr(launcher, "find_anvil", lambda: silent)
    monkeypatch.setattr(launcher, "START_TIMEOUT", 0.1)
    with pytest.raises(UnavailableError) as caught, start_chain("anvil"):
        pass
    assert caught.value.code == "devchain.start"
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize("engine", ["py-evm", "auto"])
def test_command_prints_one_json_line_and_stops_on_sigterm(engine: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.devchain", "--engine", engine], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"url", "engine", "chain_id"}
        assert chain_id(ready["url"]) == ready["chain_id"] == 31337
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
        process.wait()
    with pytest.raises(httpx.ConnectError):
        chain_id(ready["url"])


def test_import_of_the_package_is_light() -> None:
    heavy = ("web3", "eth", "eth_account", "starlette")
    code = f"import sys, cli.devchain.launcher; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_governance_of_a_dead_chain_is_an_error_of_ours(chain: Chain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(UnavailableError) as caught:
        Governance(url, chain.accounts[1])
    assert caught.value.code == "governance.unreachable"


def test_missing_artefact_is_an_error_of_ours() -> None:
    with pytest.raises(StorageError) as caught:
        artifact("Nothing")
    assert caught.value.code == "contracts.artifact"
