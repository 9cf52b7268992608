import json
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path
from struct import pack

import pytest

from shared.measurement.acpi_tables import (
    MAX_TABLES_BYTES,
    AcpiTableLengths,
    acpi_loader,
    acpi_rsdp,
    predict_acpi,
    table_lengths,
)
from tests.shared.refusal import refuses

# 2 vCPU on QEMU 8.2.2, and 16 vCPU with a GPU on QEMU 9.2.1: what two measured guests had (spec 4.5).
SMALL = AcpiTableLengths(8285, 244, 238, 60, 40, 52)
LARGE = AcpiTableLengths(9098, 244, 240, 60, 40, 52)
MEASURED = [
    (
        SMALL,
        "095d04cf26fe03aef6e3561fa24c1aa1cea93f4aeaf563b1f9f7616184c53454875925759434769cec2490acb563a337",
        "8d9a4d4777a1bc77ecd9d8d37a4628129a80052a510320159a20a923bd07a0e90d8d1f2e1ebf088992b25f0d0fa672ef",
    ),
    (
        LARGE,
        "2065dd48d647e4377db277ba203526901a17845e93e0df4c2dfc3ce136e0910324ead1e1c86b8d90c2acdf9c85ffac53",
        "772b0169c66b52e4453fff9e3c6257635ea950ebcc8edd7ef2e2f8241cf6a155f39df01a7c7a194b6bc0abe5de11861d",
    ),
]


def blob(lengths: AcpiTableLengths, signatures: str = "DSDT FACP APIC MCFG WAET RSDT") -> bytes:
    data = b"FACS".ljust(64, b"\0")
    for signature, name in zip(signatures.split(), AcpiTableLengths.__struct_fields__, strict=True):
        length = getattr(lengths, name)
        data += (signature.encode() + pack("<I", length)).ljust(length, b"\x11")
    return data


@pytest.mark.parametrize(("lengths", "loader", "rsdp"), MEASURED)
def test_predicts_what_two_guests_measured(lengths: AcpiTableLengths, loader: str, rsdp: str) -> None:
    digests = predict_acpi(lengths, b"tables")
    assert (digests.loader.hex(), digests.rsdp.hex(), digests.tables) == (loader, rsdp, b"tables")


def test_tables_follow_each_other() -> None:
    assert SMALL.offsets() == (64, 8349, 8593, 8831, 8891, 8931)


def test_reproduces_every_vector_of_the_data(shared_data: Callable[[str], Path]) -> None:
    for vector in json.loads(shared_data("measurement/vectors.json").read_text()):
        if vector["name"] == "acpi loader+rsdp sha384":
            given = {name: length for name, (_, length) in vector["input"].items()}
            lengths = AcpiTableLengths(**given)
            assert list(lengths.offsets()) == [offset for offset, _ in vector["input"].values()]
            assert sha384(acpi_loader(lengths)).hexdigest() == vector["output"]["loader"]
            assert sha384(acpi_rsdp(lengths)).hexdigest() == vector["output"]["rsdp"]


@pytest.mark.parametrize("lengths", [SMALL, LARGE])
def test_reads_the_lengths_from_the_tables(lengths: AcpiTableLengths) -> None:
    assert table_lengths(blob(lengths)) == lengths


@pytest.mark.parametrize(
    "data",
    [
        b"",
        blob(SMALL)[:-1],
        blob(SMALL) + b"\0",
        blob(SMALL, "DSDT FACP APIC SRAT WAET RSDT"),
        blob(AcpiTableLengths(8285, 244, 35, 60, 40, 52)),
        bytes(MAX_TABLES_BYTES + 1),
    ],
    ids=["empty", "cut", "tail", "another table", "too short a table", "large"],
)
def test_n03_refuses_other_tables(data: bytes) -> None:
    with refuses("acpi.tables"):
        table_lengths(data)
