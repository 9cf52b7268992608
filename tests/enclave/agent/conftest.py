"""Agents of each kind of guest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.enclave.agent.agents import RunningAgent, app_compose, running, tdx_attestor


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    """The agent of a TDX guest."""
    compose = app_compose()
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose) as found:
        yield found


@pytest.fixture
def enclave_agent(tmp_path: Path, app_enclave) -> Iterator[RunningAgent]:
    """The agent of a Nitro Enclave without an app-compose."""
    with running(tmp_path, app_enclave.attestor, b"", vm_config="") as found:
        yield found
