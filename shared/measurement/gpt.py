"""GUID partition tables: written for our disks, read from others' (UEFI 2.10 section 5.3, spec 5.1)."""

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO, Final, NoReturn
from uuid import UUID

import msgspec

from shared.errors import ConfigError, InvalidEvidence
from shared.measurement.disk_image import MIB, SECTOR, Extent, FileRange, range_of

EFI_SYSTEM: Final = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_FILESYSTEM: Final = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

ENTRIES: Final = 128
ENTRY_BYTES: Final = 128
TABLE_SECTORS: Final = ENTRIES * ENTRY_BYTES // SECTOR
FIRST_USABLE: Final = 2 + TABLE_SECTORS
"""The first sector behind the primary table."""

MAX_NAME: Final = 36

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_SIGNATURE: Final = b"EFI PART"
_REVISION: Final = 0x10000


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition: `first` and `last` are sectors, both part of it."""

    type_guid: UUID
    guid: UUID
    first: int
    last: int
    name: str
    attributes: int = 0


class PartitionTable(msgspec.Struct, frozen=True, kw_only=True):
    """A disk's table; `partition_table` and `read_partition_table` check what they return.

    `sectors` is the size of the whole disk. Partitions lie from sector `first_usable` to `last_usable`.
    """

    guid: UUID
    sectors: int
    first_usable: int
    last_usable: int
    partitions: tuple[Partition, ...]

    def primary_header(self) -> bytes:
        """Return the 92 bytes of the header in sector 1."""
        return self._header(1, self.sectors - 1, 2)

    def entries(self) -> bytes:
        """Return the 16 KiB of partition entries."""
        listed = b"".join(_entry(partition) for partition in self.partitions)
        return listed.ljust(ENTRIES * ENTRY_BYTES, b"\0")

    def extents(self) -> list[Extent]:
        """Return the protective master boot record, and both copies of the table."""
        entries = self.entries()
        last = self.sectors - 1
        backup = self._header(last, 1, last - TABLE_SECTORS)
        return [
            Extent(0, _protective_mbr(self.sectors)),
            Extent(SECTOR, self.primary_header()),
            Extent(2 * SECTOR, entries),
            Extent((last - TABLE_SECTORS) * SECTOR, entries),
            Extent(last * SECTOR, backup),
        ]

    def boot_event(self) -> bytes:
        """Return what firmware measures of the disk that it boots from, on Google Cloud into PCR2.

        It is the primary header, a count, and the entries that are in use.
        """
        listed = [_entry(partition) for partition in self.partitions]
        return self.primary_header() + struct.pack("<Q", len(listed)) + b"".join(listed)

    def _header(self, own: int, other: int, entries_at: int) -> bytes:
        table = zlib.crc32(self.entries())
        fields = (
            own,
            other,
            self.first_usable,
            self.last_usable,
            self.guid.bytes_le,
            entries_at,
            ENTRIES,
            ENTRY_BYTES,
            table,
        )
        blank = _HEADER.pack(_SIGNATURE, _REVISION, _HEADER.size, 0, 0, *fields)
        return _HEADER.pack(_SIGNATURE, _REVISION, _HEADER.size, zlib.crc32(blank), 0, *fields)


def partition_table(guid: UUID, sectors: int, partitions: Sequence[Partition]) -> PartitionTable:
    """Return a table for a disk of `sectors` sectors.

    Raises `ConfigError("gpt.partitions")` for partitions that overlap, are empty, out of order, unaligned
    (to 1 MiB) or outside the usable sectors, for over 128 of them, and for names over 36 characters.
    """
    if len(partitions) > ENTRIES or any(_reason(partition, sectors) for partition in partitions):
        raise ConfigError("gpt.partitions", f"a partition does not fit a disk of {sectors} sectors")
    if any(before.last >= after.first for before, after in pairwise(partitions)):
        raise ConfigError("gpt.partitions", "partitions overlap, or are out of order")
    return PartitionTable(
        guid=guid,
        sectors=sectors,
        first_usable=FIRST_USABLE,
        last_usable=sectors - FIRST_USABLE,
        partitions=tuple(partitions),
    )


def read_partition_table(source: BinaryIO | FileRange) -> PartitionTable:
    """Read the table of a disk; both copies must be whole, equal, and in the form that this module writes.

    Raises `InvalidEvidence`: `gpt.size`, `gpt.header` (another revision, size or place, or a wrong CRC),
    `gpt.entries` (a wrong CRC, or a partition that overlaps or leaves the disk), `gpt.backup`,
    `file.truncated`.
    """
    disk = range_of(source)
    sectors = disk.length // SECTOR
    if disk.length % SECTOR or sectors < 2 * FIRST_USABLE:
        raise InvalidEvidence("gpt.size", f"disk has {disk.length} bytes, expected sectors, at least 68")
    raw = disk.read_at(SECTOR, SECTOR)
    (signature, *_, first_usable, last_usable, guid, _, _, _, crc) = _HEADER.unpack_from(raw)
    if signature != _SIGNATURE or not FIRST_USABLE <= first_usable <= last_usable <= sectors - FIRST_USABLE:
        raise InvalidEvidence("gpt.header", "disk has no partition table, or one of impossible bounds")
    entries = disk.read_at(2 * SECTOR, ENTRIES * ENTRY_BYTES)
    if zlib.crc32(entries) != crc:
        _refuse_entries("have another crc than the header says")
    partitions = []
    ended = False
    for at in range(0, len(entries), ENTRY_BYTES):
        record = entries[at : at + ENTRY_BYTES]
        if not any(record):
            ended = True
        elif ended:
            _refuse_entries("have a gap")
        else:
            partitions.append(_partition(record, first_usable, last_usable))
    # Firmware lists partitions by their entries, and takes any order of places.
    if any(a.last >= b.first for a, b in pairwise(sorted(partitions, key=lambda p: p.first))):
        _refuse_entries("overlap")
    table = PartitionTable(
        guid=UUID(bytes_le=guid),
        sectors=sectors,
        first_usable=first_usable,
        last_usable=last_usable,
        partitions=tuple(partitions),
    )
    for extent in table.extents()[1:]:
        written = disk.read_at(extent.offset, extent.end - extent.offset)
        if written != extent.data:
            is_primary = extent.offset < FIRST_USABLE * SECTOR
            raise InvalidEvidence(
                "gpt.header" if is_primary else "gpt.backup",
                f"the table at sector {extent.offset // SECTOR} is not what its partitions make",
            )
    return table


def _partition(record: bytes, first_usable: int, last_usable: int) -> Partition:
    kind, guid, first, last, attributes, name = _ENTRY.unpack(record)
    try:
        text, _, padding = name.decode("utf-16-le").partition("\0")
    except UnicodeDecodeError as error:
        raise InvalidEvidence("gpt.entries", "a partition's name is not utf-16") from error
    partition = Partition(
        type_guid=UUID(bytes_le=kind),
        guid=UUID(bytes_le=guid),
        first=first,
        last=last,
        name=text,
        attributes=attributes,
    )
    usable = first_usable <= first <= last <= last_usable
    if padding.strip("\0") or not usable or not any(kind):
        _refuse_entries(f"hold a partition of no type, place or name: {first} to {last}")
    return partition


def _entry(partition: Partition) -> bytes:
    return _ENTRY.pack(
        partition.type_guid.bytes_le,
        partition.guid.bytes_le,
        partition.first,
        partition.last,
        partition.attributes,
        partition.name.encode("utf-16-le"),
    )


def _protective_mbr(sectors: int) -> bytes:
    """Return a boot record that shows the whole disk as one partition to whoever knows no other table."""
    size = min(sectors - 1, 0xFFFF_FFFF)
    return struct.pack("<446xB3sB3sII48xH", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, size, 0xAA55)


def _reason(partition: Partition, sectors: int) -> bool:
    """Tell whether a partition is unfit for a new disk."""
    return (
        partition.first * SECTOR % MIB != 0
        or not FIRST_USABLE <= partition.first <= partition.last <= sectors - FIRST_USABLE
        or len(partition.name) > MAX_NAME
        or not partition.name.isascii()
    )


def _refuse_entries(what: str) -> NoReturn:
    raise InvalidEvidence("gpt.entries", f"partition entries {what}")
