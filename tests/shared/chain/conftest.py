"""Chains that mine on each transaction, and a governed contract on one of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.launcher import Chain, start_chain
from tests.conftest import CHAIN_ENGINE
from tests.shared.chain.world import World

DATA = Path(__file__).resolve().parents[2] / "data" / "contracts"


@pytest.fixture(scope="session")
def mining_chain() -> Iterator[Chain]:
    with start_chain(CHAIN_ENGINE, block_time=0) as chain:
        yield chain


@pytest.fixture(scope="module")
def world(mining_chain: Chain) -> World:
    """A world that tests only read."""
    return World(mining_chain)


@pytest.fixture
def own_world(mining_chain: Chain) -> World:
    """A world that its test may govern."""
    return World(mining_chain)


@pytest.fixture(scope="session")
def getproof() -> dict[str, Any]:
    """The recorded header and proofs of a chain with one app."""
    return dict(json.loads((DATA / "eth-getproof-fixture.json").read_text()))


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return dict(json.loads((DATA / "vectors.json").read_text()))
