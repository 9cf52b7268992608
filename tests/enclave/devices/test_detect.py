"""Platforms by device nodes and DMI strings below a directory."""

from pathlib import Path

import pytest

from enclave.devices.detect import TeePlatform, detect_platform
from shared.errors import UnavailableError

GCE = "Google Compute Engine\n"


class Machine:
    """A root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def dmi(self, product: str, vendor: str = "") -> "Machine":
        directory = self.root / "sys/class/dmi/id"
        directory.mkdir(parents=True)
        (directory / "product_name").write_text(product)
        (directory / "sys_vendor").write_text(vendor)
        return self

    def device(self, *names: str) -> "Machine":
        for name in names:
            (self.root / "dev").mkdir(exist_ok=True)
            (self.root / "dev" / name).touch()
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("product", ["dstack\n", "qemu\n", "Standard PC (Q35 + ICH9, 2009)\n"])
def test_a_tdx_guest_is_dstack_unless_dmi_says_otherwise(machine: Machine, product: str) -> None:
    machine.dmi(product).device("tdx_guest")
    assert detect_platform(machine.root) is TeePlatform.TDX


def test_a_machine_without_dmi_is_dstack(machine: Machine) -> None:
    machine.device("tdx_guest")
    assert detect_platform(machine.root) is TeePlatform.TDX


@pytest.mark.parametrize("tpm", ["tpmrm0", "tpm0"])
def test_a_google_guest_has_tdx_and_a_tpm(machine: Machine, tpm: str) -> None:
    machine.dmi(GCE, "Google").device("tdx_guest", tpm)
    assert detect_platform(machine.root) is TeePlatform.GCP_TDX


def test_an_ec2_guest_has_a_tpm(machine: Machine) -> None:
    machine.dmi("m7i.large\n", "Amazon EC2\n").device("tpmrm0")
    assert detect_platform(machine.root) is TeePlatform.NITRO_TPM


@pytest.mark.parametrize("product", ["Nitro Enclave\n", GCE, ""])
def test_the_security_module_makes_a_nitro_enclave(machine: Machine, product: str) -> None:
    machine.dmi(product).device("nsm", "tdx_guest", "tpmrm0")
    assert detect_platform(machine.root) is TeePlatform.NITRO_ENCLAVE


def test_a_product_name_comes_before_a_vendor(machine: Machine) -> None:
    machine.dmi("dstack\n", "Amazon EC2\n").device("tdx_guest", "tpmrm0")
    assert detect_platform(machine.root) is TeePlatform.TDX


@pytest.mark.parametrize(
    ("product", "vendor", "devices", "missing"),
    [
        ("Nitro Enclave", "", ["tdx_guest", "tpmrm0"], "/dev/nsm"),
        (GCE, "Google", ["tpmrm0"], "tdx"),
        (GCE, "Google", ["tdx_guest"], "tpm"),
        ("m7i.large", "Amazon EC2", ["tdx_guest"], "tpm"),
        ("dstack", "", [], "tdx"),
        ("anything", "", [], "tdx"),
    ],
)
def test_names_the_device_that_is_missing(
    machine: Machine, product: str, vendor: str, devices: list[str], missing: str
) -> None:
    machine.dmi(product, vendor).device(*devices)
    with pytest.raises(UnavailableError) as caught:
        detect_platform(machine.root)
    assert caught.value.code == "platform.device"
    assert missing in str(caught.value)


def test_reads_dmi_text_that_is_no_text(machine: Machine) -> None:
    machine.dmi("x").device("tdx_guest")
    (machine.root / "sys/class/dmi/id/product_name").write_bytes(b"\xff" * 10000)
    assert detect_platform(machine.root) is TeePlatform.TDX
