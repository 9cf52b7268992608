"""Fixtures of the attestation tests."""

import pytest

from tests.shared.attestation.forgery import Forge
from tests.shared.attestation.guest_forgery import GcpGuest, TdxGuest, TpmGuest


@pytest.fixture(scope="session")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()


@pytest.fixture(scope="session")
def tdx_guest() -> TdxGuest:
    """A TDX guest of a lite image, without a fault."""
    return TdxGuest()


@pytest.fixture(scope="session")
def gcp_guest() -> GcpGuest:
    """A Google Cloud guest without a fault."""
    return GcpGuest()


@pytest.fixture(scope="session")
def tpm_guest() -> TpmGuest:
    """An EC2 guest with a NitroTPM, without a fault."""
    return TpmGuest()
