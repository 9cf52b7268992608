"""FAT32 volumes, written in one pass (spec measurement 5.1, deploy 4; Microsoft's specification 1.03).

The volume is a function of its arguments: the same files, label, serial and time give the same bytes.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from shared.errors import ConfigError
from shared.measurement.disk_image import MIB, SECTOR, DiskImage, Extent, FileRange, disk_image

# Fewer than 65525 clusters make a FAT16 volume by Microsoft's rule, which mtools follows, whatever its fields
# say. Linux goes by the fields; a volume that both read has 33 MiB.
MIN_VOLUME: Final = 33 * MIB
MAX_VOLUME: Final = 32 << 30  # the largest whose clusters are chosen below
MAX_FILES: Final = 512
MAX_NAME: Final = 255
MAX_LABEL: Final = 11
FIRST_TIME: Final = 315_532_800
"""1980-01-01 in unix seconds: no earlier time can be written."""

RESERVED_SECTORS: Final = 32
FAT_COUNT: Final = 2
FIRST_CLUSTER: Final = 2
BOOT_SECTOR: Final = struct.Struct("<3s8sHBHBHHBHHHIIIHHIHH12sBBBI11s8s420sH")
ENTRY_BYTES: Final = 32
ATTRIBUTE_LABEL: Final = 0x08
ATTRIBUTE_DIRECTORY: Final = 0x10
ATTRIBUTE_LONG_NAME: Final = 0x0F
END_OF_CHAIN: Final = 0x0FFF_FFFF
LONG_NAME_PART: Final = 13  # characters in each of a long name's entries

_ATTRIBUTE_ARCHIVE: Final = 0x20
_LAST_TIME: Final = 4_354_819_199  # 2107-12-31T23:59:59Z
_MAX_FILE: Final = (1 << 32) - 1
_MEDIA: Final = 0xF8
_FSINFO_SECTOR: Final = 1
_BACKUP_SECTOR: Final = 6
# Sectors of a cluster, by the largest volume in MiB that it is chosen for: what mkfs.fat chooses.
_CLUSTERS: Final = ((260, 1), (8192, 8), (16384, 16), (32768, 32))
_FORBIDDEN: Final = frozenset('"*/:<>?\\|')
_SHORT_EXTRA: Final = frozenset("!#$%&'()-@^_`{}~")


class FatFile(msgspec.Struct, frozen=True):
    """A file by its path from the root, with `/` between names; missing directories are made."""

    path: str
    data: bytes | FileRange

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.data.length if isinstance(self.data, FileRange) else len(self.data)


class _Geometry(msgspec.Struct, frozen=True):
    sectors: int
    cluster: int  # in bytes
    fat_sectors: int
    clusters: int

    def offset(self, cluster: int) -> int:
        data = (RESERVED_SECTORS + FAT_COUNT * self.fat_sectors) * SECTOR
        return data + (cluster - FIRST_CLUSTER) * self.cluster


class _Directory:
    """A directory while it is filled: names in order, with the short aliases that are taken."""

    def __init__(self) -> None:
        self.children: dict[str, _Directory | FatFile] = {}
        self.aliases: dict[str, bytes] = {}
        self._folded: set[str] = set()
        self._taken: set[bytes] = set()

    def add(self, name: str, child: "_Directory | FatFile", path: str) -> None:
        if name.upper() in self._folded:
            raise ConfigError("fat.duplicate", f"{path!r} occurs twice, but for upper and lower case")
        self._folded.add(name.upper())
        alias = _short_name(name)
        number = 0
        while alias is None or alias in self._taken:
            number += 1
            alias = _alias(name, number)
        self._taken.add(alias)
        self.aliases[name] = alias
        self.children[name] = child

    def has_long_name(self, name: str) -> bool:
        """Tell whether a name needs entries of its own beside its alias."""
        return self.aliases[name] != _short_name(name)

    def entries(self, *, is_root: bool) -> int:
        """Return how many 32-byte entries it fills: two or a label first, then one or more for each name."""
        return (1 if is_root else 2) + sum(
            1 + (_parts(name) if self.has_long_name(name) else 0) for name in self.children
        )


def fat32_volume(
    size: int, label: str, files: Sequence[FatFile], *, serial: int, timestamp: int
) -> DiskImage:
    """Return a FAT32 volume of `size` bytes without a partition table, whose files lie in the given order.

    `serial` is the volume's 32-bit number, `timestamp` that of every entry, in unix seconds, UTC; FAT keeps
    even seconds from 1980 on, and earlier ones become its first. Raises `ConfigError`: `fat.size`,
    `fat.label`, `fat.serial`, `fat.timestamp`, `fat.name` (not printable ASCII, or one that no FAT can hold),
    `fat.duplicate`, `fat.files` (over 512), `fat.file_size` (4 GiB or more), `fat.full`.
    """
    if not MIN_VOLUME <= size <= MAX_VOLUME or size % SECTOR:
        raise ConfigError("fat.size", f"volume has {size} bytes, expected sectors, 33 MiB to 32 GiB")
    if not 0 <= serial < 1 << 32:
        raise ConfigError("fat.serial", f"serial is {serial}, expected 32 bits")
    if timestamp > _LAST_TIME:
        raise ConfigError("fat.timestamp", f"timestamp is {timestamp}, expected one before 2108")
    stamp = _dos_time(max(timestamp, FIRST_TIME))
    label_field = _label(label)
    geometry = _geometry(size)
    nodes = list(_walk(_tree(files)))
    chains, used = _allocate(geometry, nodes)
    if used > geometry.clusters:
        raise ConfigError("fat.full", f"files need {used} clusters, the volume has {geometry.clusters}")
    boot = _boot_sector(geometry, label_field, serial)
    info = _info_sector(geometry.clusters - used, FIRST_CLUSTER + used)
    extents = [Extent(sector * SECTOR, boot + info) for sector in (0, _BACKUP_SECTOR)]
    table = _table(chains)
    extents += [
        Extent((RESERVED_SECTORS + number * geometry.fat_sectors) * SECTOR, table)
        for number in range(FAT_COUNT)
    ]
    firsts = {id(node): first for (node, _), (first, _) in zip(nodes, chains, strict=True)}
    for node, parent in nodes:
        if isinstance(node, _Directory):
            data: bytes | FileRange = _directory(node, parent, firsts, label_field, stamp)
        else:
            data = node.data
        extents.append(Extent(geometry.offset(firsts[id(node)]), data))
    return disk_image(size, extents)


def short_name_checksum(alias: bytes) -> int:
    """Return the checksum of an 11-byte short name that its long name's entries carry."""
    value = 0
    for byte in alias:
        value = (((value & 1) << 7) + (value >> 1) + byte) & 0xFF
    return value


def _geometry(size: int) -> _Geometry:
    per_cluster = next(sectors for limit, sectors in _CLUSTERS if size <= limit * MIB)
    sectors = size // SECTOR
    # Each cluster costs its sectors, and four bytes in each table; two clusters have no data.
    room = (sectors - RESERVED_SECTORS) * SECTOR - FIRST_CLUSTER * 4 * FAT_COUNT
    clusters = room // (per_cluster * SECTOR + 4 * FAT_COUNT)
    fat_sectors = -(-(clusters + FIRST_CLUSTER) * 4 // SECTOR)
    clusters = (sectors - RESERVED_SECTORS - FAT_COUNT * fat_sectors) // per_cluster
    return _Geometry(sectors, per_cluster * SECTOR, fat_sectors, clusters)


def _tree(files: Sequence[FatFile]) -> _Directory:
    if len(files) > MAX_FILES:
        raise ConfigError("fat.files", f"volume has {len(files)} files, expected at most {MAX_FILES}")
    root = _Directory()
    for file in files:
        if file.size > _MAX_FILE:
            raise ConfigError("fat.file_size", f"{file.path!r} has {file.size} bytes, expected under 4 GiB")
        *parents, name = file.path.split("/")
        directory = root
        for parent in parents:
            _check_name(parent, file.path)
            if parent not in directory.children:
                directory.add(parent, _Directory(), file.path)
            child = directory.children[parent]
            if not isinstance(child, _Directory):
                raise ConfigError("fat.duplicate", f"{file.path!r} lies below a file")
            directory = child
        _check_name(name, file.path)
        directory.add(name, file, file.path)
    return root


def _walk(root: _Directory) -> Iterator[tuple[_Directory | FatFile, _Directory | None]]:
    """Yield each node with its parent, the root first, and every directory before what it holds."""
    waiting: list[tuple[_Directory | FatFile, _Directory | None]] = [(root, None)]
    while waiting:
        node, parent = waiting.pop(0)
        yield node, parent
        if isinstance(node, _Directory):
            waiting += [(child, node) for child in node.children.values()]


def _allocate(
    geometry: _Geometry, nodes: Iterable[tuple[_Directory | FatFile, _Directory | None]]
) -> tuple[list[tuple[int, int]], int]:
    """Return (first cluster, number of clusters) of each node, one after the other, and their sum."""
    chains: list[tuple[int, int]] = []
    used = 0
    for node, parent in nodes:
        if isinstance(node, _Directory):
            size = node.entries(is_root=parent is None) * ENTRY_BYTES
        else:
            size = node.size
        count = -(-size // geometry.cluster)
        chains.append((FIRST_CLUSTER + used if count else 0, count))
        used += count
    return chains, used


def _table(chains: Iterable[tuple[int, int]]) -> bytes:
    """Return the used part of a file allocation table; all that follows is free."""
    entries = array("I", [0x0FFF_FF00 | _MEDIA, END_OF_CHAIN])
    for first, count in chains:
        if count:
            entries.extend(range(first + 1, first + count))
            entries.append(END_OF_CHAIN)
    return struct.pack(f"<{len(entries)}I", *entries)


def _boot_sector(geometry: _Geometry, label: bytes, serial: int) -> bytes:
    return BOOT_SECTOR.pack(
        b"\xeb\x58\x90",
        b"MSWIN4.1",
        SECTOR,
        geometry.cluster // SECTOR,
        RESERVED_SECTORS,
        FAT_COUNT,
        0,  # entries of a root directory of fixed size, sectors of a small volume: of older FATs
        0,
        _MEDIA,
        0,  # sectors of an older table: zero says that this is FAT32
        32,  # a geometry whose cylinders have 1 MiB
        64,
        0,
        geometry.sectors,
        geometry.fat_sectors,
        0,
        0,
        FIRST_CLUSTER,
        _FSINFO_SECTOR,
        _BACKUP_SECTOR,
        bytes(12),
        0x80,
        0,
        0x29,
        serial,
        label,
        b"FAT32   ",
        bytes(420),
        0xAA55,
    )


def _info_sector(free: int, following: int) -> bytes:
    return struct.pack("<I480xIII12xI", 0x4161_5252, 0x6141_7272, free, following, 0xAA55_0000)


def _directory(
    directory: _Directory,
    parent: _Directory | None,
    firsts: dict[int, int],
    label: bytes,
    stamp: tuple[int, int],
) -> bytes:
    if parent is None:
        entries = [_entry(label, ATTRIBUTE_LABEL, 0, 0, stamp)]
    else:
        # A root above is named by zero, wherever it lies.
        above = firsts[id(parent)]
        above = 0 if above == FIRST_CLUSTER else above
        entries = [
            _entry(b".".ljust(11), ATTRIBUTE_DIRECTORY, firsts[id(directory)], 0, stamp),
            _entry(b"..".ljust(11), ATTRIBUTE_DIRECTORY, above, 0, stamp),
        ]
    for name, child in directory.children.items():
        alias = directory.aliases[name]
        if directory.has_long_name(name):
            entries += _long_name(name, short_name_checksum(alias))
        if isinstance(child, _Directory):
            entries.append(_entry(alias, ATTRIBUTE_DIRECTORY, firsts[id(child)], 0, stamp))
        else:
            entries.append(_entry(alias, _ATTRIBUTE_ARCHIVE, firsts[id(child)], child.size, stamp))
    return b"".join(entries)


def _entry(alias: bytes, attribute: int, cluster: int, size: int, stamp: tuple[int, int]) -> bytes:
    date, time = stamp
    return struct.pack(
        "<11sBBBHHHHHHHI",
        alias,
        attribute,
        0,
        0,
        time,
        date,
        date,
        cluster >> 16,
        time,
        date,
        cluster & 0xFFFF,
        size,
    )


def _long_name(name: str, checksum: int) -> list[bytes]:
    """Return the entries that precede a short name, the last part first."""
    units = name.encode("utf-16-le")
    count = _parts(name)
    if len(name) % LONG_NAME_PART:
        units += b"\0\0"
    units = units.ljust(count * LONG_NAME_PART * 2, b"\xff")
    entries = []
    for index in reversed(range(count)):
        part = units[index * 26 : index * 26 + 26]
        order = index + 1 | (0x40 if index == count - 1 else 0)
        entries.append(
            struct.pack(
                "<B10sBBB12sH4s",
                order,
                part[:10],
                ATTRIBUTE_LONG_NAME,
                0,
                checksum,
                part[10:22],
                0,
                part[22:],
            )
        )
    return entries


def _parts(name: str) -> int:
    return -(-len(name) // LONG_NAME_PART)


def _short_name(name: str) -> bytes | None:
    """Return the 11-byte form of a name that needs no other one."""
    base, _, extension = name.partition(".")
    plain = all(_is_short(character) for character in base + extension)
    if not (plain and 0 < len(base) <= 8 and len(extension) <= 3) or name.endswith("."):
        return None
    return base.encode().ljust(8) + extension.encode().ljust(3)


def _alias(name: str, number: int) -> bytes:
    """Return the short form `NAME~1.EXT` that stands in for a long name."""
    base, _, extension = name.lstrip(".").upper().rpartition(".")
    if not base:
        base, extension = extension, ""
    base, extension = (
        "".join(c if _is_short(c) else "_" for c in text if c not in " .") for text in (base, extension)
    )
    tail = f"~{number}"
    return (base[: 8 - len(tail)] + tail).encode().ljust(8) + extension[:3].encode().ljust(3)


def _is_short(character: str) -> bool:
    return "0" <= character <= "9" or "A" <= character <= "Z" or character in _SHORT_EXTRA


def _check_name(name: str, path: str) -> None:
    printable = name.isascii() and name.isprintable() and not _FORBIDDEN & set(name)
    if not printable or not 0 < len(name) <= MAX_NAME or name[-1] in ". " or name[0] == " ":
        raise ConfigError("fat.name", f"{path[:100]!r} has a name that no fat volume can hold")


def _label(label: str) -> bytes:
    text = label.upper() if label.isascii() else ""
    if not 0 < len(text) <= MAX_LABEL or not all(_is_short(c) or c == " " for c in text) or text[0] == " ":
        raise ConfigError("fat.label", f"label is {label!r:.40}, expected 1 to {MAX_LABEL} plain characters")
    return text.encode().ljust(MAX_LABEL)


def _dos_time(timestamp: int) -> tuple[int, int]:
    """Return FAT's date and time of day."""
    at = datetime.fromtimestamp(timestamp, tz=UTC)
    date = (at.year - 1980) << 9 | at.month << 5 | at.day
    return date, at.hour << 11 | at.minute << 5 | at.second // 2
