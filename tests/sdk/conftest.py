"""Guests that a released SDK talks to: one of our making, and upstream's recorded one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sdk.simulated_agent import copy_fixture, running


@dataclass(frozen=True)
class Agent:
    """A running agent: its directory, and the variables that name its sockets."""

    directory: Path
    variables: dict[str, str]

    @property
    def dstack(self) -> str:
        return self.variables["DSTACK_SIMULATOR_ENDPOINT"]

    @property
    def tappd(self) -> str:
        return self.variables["TAPPD_SIMULATOR_ENDPOINT"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("made")
    with running(directory) as variables:
        yield Agent(directory, variables)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path]) -> Iterator[Agent]:
    directory = copy_fixture(shared_data("guest-agent"), tmp_path_factory.mktemp("recorded"))
    with running(directory) as variables:
        yield Agent(directory, variables)
