"""Fixtures of the attestation tests."""

import hypothesis
import pytest

from tests.shared.attestation.forgery import Forge

# A loaded machine must not fail a property.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()
