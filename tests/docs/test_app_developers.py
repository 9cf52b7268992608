"""docs/app-developers.md: its app runs against the simulator that it starts, and is verified."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.console_page import Session, need_tools, table_codes, wrong
from tests.docs.references import REPOSITORY

PAGE = (REPOSITORY / "docs" / "app-developers.md").read_text()
HOME = "/home/me"
TOLD = 5  # lines of a simulator that is ready
SOURCES = (
    "enclave/simulator/agent.py",
    "enclave/simulator/agent_config.py",
    "enclave/simulator/fixture_set.py",
    "enclave/simulator/recorded_attestor.py",
    "cli/simulator.py",
)


class Terminals(Session):
    """Simulators stay in terminals of their own."""

    running: list["subprocess.Popen[str]"]

    def type(self, text: str) -> list[str]:
        if not text.startswith("dstack-cloud simulator"):
            return super().type(text)
        simulator = subprocess.Popen(
            [sys.executable, "-m", "cli", *shlex.split(text)[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(simulator)
        assert simulator.stdout is not None
        return [simulator.stdout.readline().strip().replace(str(self.place), HOME) for _ in range(TOLD)]


@pytest.fixture
def terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminals]:
    need_tools()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("DSTACK_SIMULATOR_ENDPOINT", "CHALLENGE"):
        monkeypatch.setenv(name, "")  # restored in the end, whatever the page exports
    session = Terminals(tmp_path, {HOME: str(tmp_path)})
    session.running = []
    yield session
    for simulator in session.running:
        simulator.terminate()
        simulator.communicate()


def test_from_an_empty_directory_to_a_verified_quote(terminals: Terminals) -> None:
    assert wrong(terminals.take(PAGE)) == []


def test_the_table_has_every_code_of_the_simulator() -> None:
    raised = {
        code
        for source in SOURCES
        for code in re.findall(r'"(simulator\.[a-z_.]+)"', (REPOSITORY / source).read_text())
    }
    others = {"simulator.ready", "simulator.failed", "simulator.shutdown"}  # two events, and a host's request
    assert set(table_codes(PAGE, "## When it does not start")) - {"agent.listen"} == raised - others
