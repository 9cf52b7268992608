"""Vendors of simulated machines, made once for the tests of a process."""

from collections.abc import Iterator

import pytest

from tests.fakes.guests import Roots
from tests.packaging.conftest import artefacts

__all__ = ["artefacts"]


@pytest.fixture(scope="session")
def roots() -> Iterator[Roots]:
    with Roots() as made:
        yield made
