"""Fixtures of the attestation tests."""

import pytest

from tests.shared.attestation.forgery import Forge


@pytest.fixture(scope="session")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()
