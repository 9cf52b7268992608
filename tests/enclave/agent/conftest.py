"""Agents of each kind of guest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.enclave.agent.agents import RunningAgent, app_compose, running, tdx_attestor
from tests.enclave.event_log import PATIENCE


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    """The agent of a TDX guest, which a module's tests share and leave as it is."""
    with _tdx_agent(tmp_path_factory.mktemp("agent")) as found:
        yield found


@pytest.fixture
def own_agent(tmp_path: Path) -> Iterator[RunningAgent]:
    """One that a test has for itself."""
    with _tdx_agent(tmp_path) as found:
        yield found


@contextmanager
def _tdx_agent(directory: Path) -> Iterator[RunningAgent]:
    compose = app_compose()
    with running(directory, tdx_attestor(directory, compose), compose) as found:
        found.issuer.first.wait(PATIENCE)
        yield found


@pytest.fixture
def enclave_agent(tmp_path: Path, app_enclave) -> Iterator[RunningAgent]:
    """The agent of a Nitro Enclave without an app-compose."""
    with running(tmp_path, app_enclave.attestor, b"", vm_config="") as found:
        yield found
