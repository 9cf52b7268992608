"""QEMU's ACPI loader script and root pointer, from the lengths of six tables (spec measurement 4.5).

Two of RTMR0's three ACPI events follow from them. The third is the digest of the tables' bytes, which need
QEMU itself: a caller brings them, or their digest.
"""

import struct
from hashlib import sha384
from typing import Final

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.tdx_registers import AcpiDigests

MAX_TABLES_BYTES: Final = 1 << 20  # real ones have about 10 KB

_FIRST: Final = 64  # the FACS lies before the DSDT
_HEADER: Final = 36
_SIGNATURES: Final = (b"DSDT", b"FACP", b"APIC", b"MCFG", b"WAET", b"RSDT")
_LOADER_BYTES: Final = 4096
_TABLES: Final = b"etc/acpi/tables"
_RSDP: Final = b"etc/acpi/rsdp"


class AcpiTableLengths(msgspec.Struct, frozen=True):
    """Lengths in bytes of the tables that QEMU lays out in this order, from offset 64 on."""

    dsdt: int
    facp: int
    apic: int
    mcfg: int
    waet: int
    rsdt: int

    def offsets(self) -> tuple[int, ...]:
        """Return where each of the six tables starts, in the declared order."""
        offsets = [_FIRST]
        for name in self.__struct_fields__[:-1]:
            offsets.append(offsets[-1] + getattr(self, name))
        return tuple(offsets)


def table_lengths(tables: bytes) -> AcpiTableLengths:
    """Read the six lengths from the bytes of `etc/acpi/tables`.

    Raises `InvalidEvidence("acpi.tables")` for anything but these six tables after each other, from offset 64
    to the end: other machines (huge pages, for one) have more tables, and another script.
    """
    if len(tables) > MAX_TABLES_BYTES:
        raise InvalidEvidence("acpi.tables", f"acpi tables have {len(tables)} bytes, over {MAX_TABLES_BYTES}")
    lengths = []
    at = _FIRST
    for signature in _SIGNATURES:
        length = int.from_bytes(tables[at + 4 : at + 8], "little")
        if tables[at : at + 4] != signature or length < _HEADER:
            raise InvalidEvidence("acpi.tables", f"there is no {signature.decode()} at offset {at}")
        lengths.append(length)
        at += length
    if at != len(tables):
        raise InvalidEvidence("acpi.tables", f"six tables end at {at}, the blob has {len(tables)} bytes")
    return AcpiTableLengths(*lengths)


def acpi_rsdp(lengths: AcpiTableLengths) -> bytes:
    """Return the 20-byte root pointer as QEMU hands it out: its checksum is still zero."""
    return b"RSD PTR \0BOCHS \0" + struct.pack("<I", lengths.offsets()[-1])


def acpi_loader(lengths: AcpiTableLengths) -> bytes:
    """Return the script of 4096 bytes that tells the firmware how to link the tables."""
    dsdt, facp, apic, mcfg, waet, rsdt = lengths.offsets()
    commands = [
        _allocate(_RSDP, 16, 2),
        _allocate(_TABLES, 64, 1),
        _checksum(_TABLES, dsdt, lengths.dsdt),
        *(_pointer(_TABLES, facp + offset, size) for offset, size in ((36, 4), (40, 4), (140, 8))),
        _checksum(_TABLES, facp, lengths.facp),
        _checksum(_TABLES, apic, lengths.apic),
        _checksum(_TABLES, mcfg, lengths.mcfg),
        _checksum(_TABLES, waet, lengths.waet),
        *(_pointer(_TABLES, rsdt + offset, 4) for offset in (36, 40, 44, 48)),
        _checksum(_TABLES, rsdt, lengths.rsdt),
        _pointer(_RSDP, 16, 4),
        struct.pack("<I56sIII", 3, _RSDP, 8, 0, 20),
    ]
    return b"".join(command.ljust(128, b"\0") for command in commands).ljust(_LOADER_BYTES, b"\0")


def predict_acpi(lengths: AcpiTableLengths, tables_sha384: bytes) -> AcpiDigests:
    """Return the three digests that a guest with these tables logs; `tables_sha384` is the blob's own."""
    return AcpiDigests(
        loader=sha384(acpi_loader(lengths)).digest(),
        rsdp=sha384(acpi_rsdp(lengths)).digest(),
        tables=tables_sha384,
    )


def _allocate(file: bytes, alignment: int, zone: int) -> bytes:
    return struct.pack("<I56sIB", 1, file, alignment, zone)


def _pointer(file: bytes, offset: int, size: int) -> bytes:
    return struct.pack("<I56s56sIB", 2, file, _TABLES, offset, size)


def _checksum(file: bytes, start: int, length: int) -> bytes:
    return struct.pack("<I56sIII", 3, file, start + 9, start, length)
