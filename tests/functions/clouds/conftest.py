"""Clouds on loopback, with a project that has nothing in it for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.nitro_aws import NitroAws
from tests.functions.clouds.gcp_world import Google, World, world
from tests.functions.clouds.nitro_world import World as NitroWorld
from tests.functions.clouds.nitro_world import world as nitro_world

NITRO = {"ports": ["8443:443"], "egress": ["kms.example.com:12001"]}


@pytest.fixture(scope="session")
def google() -> Iterator[Google]:
    with Google() as made:
        yield made


@pytest.fixture
def gcp(tmp_path: Path, google: Google) -> Iterator[World]:
    with world(tmp_path, google) as made:
        yield made


@pytest.fixture(scope="session")
def nitro_server() -> Iterator[NitroAws]:
    with NitroAws() as server:
        yield server


@pytest.fixture
def nitro(tmp_path: Path, nitro_server: NitroAws) -> Iterator[NitroWorld]:
    with nitro_world(tmp_path, nitro_server, quick=False, **NITRO) as made:
        yield made


@pytest.fixture
def quick_nitro(tmp_path: Path, nitro_server: NitroAws) -> Iterator[NitroWorld]:
    with nitro_world(tmp_path, nitro_server, **NITRO) as made:
        yield made
