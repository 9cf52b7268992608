"""TPMs to test against: the one in this process, and swtpm where it is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.swtpm import Swtpm, swtpm_installed


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    """A real TPM 2.0 of its own for each test."""
    if not swtpm_installed():
        pytest.skip("swtpm is not installed: install the package swtpm")
    with Swtpm(tmp_path / "swtpm") as running:
        yield running


@pytest.fixture(params=["software", "swtpm"])
def tpm_device(request: pytest.FixtureRequest) -> TpmDevice:
    """Each TPM in turn."""
    if request.param == "software":
        return SoftwareTpm()
    device: TpmDevice = request.getfixturevalue("swtpm")
    return device


@pytest.fixture
def tpm(tpm_device: TpmDevice) -> Tpm:
    """Each TPM in turn, with types."""
    return Tpm(tpm_device)
