"""Google Cloud on loopback, a project with nothing in it for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functions.clouds.gcp_world import World, world


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made
