"""Reading a FAT32 volume that anybody may have made, in bounded time (spec measurement 5.1).

It reads what a writer of fresh volumes makes: sectors of 512 bytes, plain or long names, no leftovers of
deleted long names. The rest is refused, so that no two readers see two files.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.disk_image import SECTOR, FileRange, range_of
from shared.measurement.fat import (
    ATTRIBUTE_DIRECTORY,
    ATTRIBUTE_LABEL,
    ATTRIBUTE_LONG_NAME,
    BOOT_SECTOR,
    ENTRY_BYTES,
    FIRST_CLUSTER,
    LONG_NAME_PART,
    MAX_NAME,
    short_name_checksum,
)

MAX_DEPTH: Final = 8  # a boot volume has two levels
MAX_DIRECTORY_BYTES: Final = 1 << 20  # of all directories together; real ones have some kilobytes
MAX_CHAIN: Final = 1 << 21  # clusters of one file: 1 GiB in the smallest clusters

_LAST_CLUSTER: Final = 0x0FFF_FFF6
_END_OF_CHAIN: Final = 0x0FFF_FFF8
_DELETED: Final = 0xE5
_LAST_PART: Final = 0x40
_LOWER_BASE: Final = 0x08
_LOWER_EXTENSION: Final = 0x10


class FatEntry(msgspec.Struct, frozen=True):
    """A file or directory: its path, its size in bytes (0 of a directory), its first cluster (0 of none)."""

    path: str
    size: int
    cluster: int
    is_directory: bool


class FatVolume:
    """An open volume: `label` without its padding, `serial`, and `entries` of the whole tree by path."""

    def __init__(self, source: BinaryIO | FileRange) -> None:
        """Read the boot sector and all directories.

        Raises `InvalidEvidence`: `fat.boot_sector`, `fat.chain` (a loop, or a cluster outside the volume),
        `fat.directory` (too deep, too large, or an entry that is none), `fat.name`, `fat.duplicate`,
        `file.truncated`.
        """
        self._file = range_of(source)
        fields = BOOT_SECTOR.unpack(self._file.read_at(0, SECTOR))
        (_, _, sector, per_cluster, reserved, fats, root_entries, old_sectors, _, old_fat, *rest) = fields
        (_, _, _, sectors, fat_sectors, flags, version, root, *_) = rest
        data = reserved + fats * fat_sectors
        if (
            sector != SECTOR
            or per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128}
            or not reserved
            or fats not in {1, 2}
            or any((root_entries, old_sectors, old_fat, flags, version))
            or fields[-1] != 0xAA55
        ):
            _refuse_boot("is not that of a plain fat32 volume")
        if not data < sectors <= self._file.length // SECTOR:
            _refuse_boot(f"claims {sectors} sectors, the file has {self._file.length // SECTOR}")
        self._cluster: int = per_cluster * SECTOR
        self._data: int = data * SECTOR
        self._table = reserved * SECTOR
        self._limit = FIRST_CLUSTER + (sectors - data) // per_cluster
        if self._limit > min(fat_sectors * SECTOR // 4, _LAST_CLUSTER):
            _refuse_boot("has a table that is too small for its clusters")
        self.serial: int = fields[-5]
        self.label = ""
        self.entries: dict[str, FatEntry] = {}
        self._names: set[str] = set()
        self._budget = MAX_DIRECTORY_BYTES
        self._read_directory("", root, 0)

    def read(self, path: str, limit: int) -> bytes:
        """Return a file's content, of at most `limit` bytes.

        Raises `InvalidEvidence`: `fat.missing`, `fat.file_size`, `fat.chain`, `file.truncated`.
        """
        entry = self._entry(path)
        if entry.size > limit:
            raise InvalidEvidence("fat.file_size", f"{path} has {entry.size} bytes, expected at most {limit}")
        parts = [self._file.read_at(*run) for run in self._runs(entry)]
        return b"".join(parts)

    def file_range(self, path: str) -> FileRange:
        """Return where a file's content lies, for files too large to hold.

        Raises as `read` does, and `InvalidEvidence("fat.fragmented")` for a file in several pieces.
        """
        entry = self._entry(path)
        runs = list(self._runs(entry))
        if len(runs) != 1:
            raise InvalidEvidence("fat.fragmented", f"{path} lies in {len(runs)} pieces, expected one")
        return self._file.part(*runs[0])  # every cluster lies in the file

    def _entry(self, path: str) -> FatEntry:
        entry = self.entries.get(path)
        if entry is None or entry.is_directory:
            raise InvalidEvidence("fat.missing", f"volume has no file {path}")
        return entry

    def _runs(self, entry: FatEntry) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of a file's pieces that lie together."""
        count = -(-entry.size // self._cluster)
        clusters = list(self._chain(entry.cluster, count)) if count else []
        if len(clusters) != count or (not count and entry.cluster):
            raise InvalidEvidence(
                "fat.chain", f"{entry.path} has {len(clusters)} clusters, its size needs {count}"
            )
        left = entry.size
        at = 0
        while at < count:
            end = at + 1
            while end < count and clusters[end] == clusters[end - 1] + 1:
                end += 1
            length = min(left, (end - at) * self._cluster)
            yield self._offset(clusters[at]), length
            left -= length
            at = end

    def _offset(self, cluster: int) -> int:
        return self._data + (cluster - FIRST_CLUSTER) * self._cluster

    def _chain(self, cluster: int, limit: int) -> Iterator[int]:
        """Yield a chain's clusters; one that is longer than `limit`, or than any may be, is refused."""
        block, table = -1, b""
        for _ in range(min(limit, MAX_CHAIN)):
            if not FIRST_CLUSTER <= cluster < self._limit:
                raise InvalidEvidence("fat.chain", f"a chain goes to {cluster:#x}, outside the volume")
            yield cluster
            if cluster // 128 != block:
                block = cluster // 128
                table = self._file.read_at(self._table + block * SECTOR, SECTOR)
            (cluster,) = struct.unpack_from("<I", table, cluster % 128 * 4)
            cluster &= 0x0FFF_FFFF
            if cluster >= _END_OF_CHAIN:
                return
        raise InvalidEvidence("fat.chain", "a chain is longer than its file, or runs in a circle")

    def _read_directory(self, path: str, cluster: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            _refuse_directory(f"lies deeper than {MAX_DEPTH} levels")
        content = bytearray()
        for number in self._chain(cluster, self._budget // self._cluster):
            content += self._file.read_at(self._offset(number), self._cluster)
        self._budget -= len(content)
        children = list(self._children(path, bytes(content), is_root=not depth))
        for entry in children:
            if (folded := entry.path.upper()) in self._names:
                raise InvalidEvidence("fat.duplicate", f"volume has {entry.path[:100]} twice")
            self._names.add(folded)
            self.entries[entry.path] = entry
        for entry in children:
            if entry.is_directory:
                self._read_directory(entry.path + "/", entry.cluster, depth + 1)

    def _children(self, path: str, content: bytes, *, is_root: bool) -> Iterator[FatEntry]:
        long: list[bytes] = []
        for at in range(0, len(content), ENTRY_BYTES):
            raw = content[at : at + ENTRY_BYTES]
            if not raw[0]:
                break
            attribute = raw[11]
            if raw[0] == _DELETED:
                if long:
                    _refuse_name("ends with a deleted entry")
            elif attribute & 0x3F == ATTRIBUTE_LONG_NAME:
                long.append(raw)
            elif attribute & ATTRIBUTE_LABEL:
                if not is_root or long or self.label:
                    _refuse_directory("has a label where none belongs")
                self.label = _text(raw[:11])
            else:
                name = _long_name(long, raw[:11]) if long else _short_name(raw)
                long = []
                if name in {".", ".."} and not is_root and attribute & ATTRIBUTE_DIRECTORY:
                    continue
                yield _entry(path, name, raw)
        if long:
            _refuse_name("has no short name")


def _entry(path: str, name: str, raw: bytes) -> FatEntry:
    if not name.strip(".") or "/" in name:
        _refuse_name(f"is {name!r:.40}")
    high, low, size = struct.unpack("<20xH4xHI", raw)
    is_directory = bool(raw[11] & ATTRIBUTE_DIRECTORY)
    if is_directory and size:
        _refuse_directory("has a size")
    return FatEntry(path + name, size, high << 16 | low, is_directory)


def _short_name(raw: bytes) -> str:
    base, extension = _text(raw[:8]), _text(raw[8:11])
    if raw[12] & _LOWER_BASE:
        base = base.lower()
    if raw[12] & _LOWER_EXTENSION:
        extension = extension.lower()
    return f"{base}.{extension}" if extension else base


def _long_name(entries: list[bytes], alias: bytes) -> str:
    """Join a long name's parts, which come last first, and belong to the short name behind them."""
    checksum = short_name_checksum(alias)
    count = len(entries)
    units = b""
    for index, raw in enumerate(entries):
        order = count - index | (0 if index else _LAST_PART)
        if raw[0] != order or raw[13] != checksum or raw[12] or raw[26:28] != b"\0\0":
            _refuse_name("has parts out of order, or another name's")
        units = raw[1:11] + raw[14:26] + raw[28:32] + units
    try:
        text, _, padding = units.decode("utf-16-le").partition("\0")
    except UnicodeDecodeError as error:
        raise InvalidEvidence("fat.name", "a long name is not utf-16") from error
    if padding.strip("\uffff") or not (count - 1) * LONG_NAME_PART < len(text) <= MAX_NAME:
        _refuse_name("is not padded as it must be")
    if not (text.isascii() and text.isprintable()):
        _refuse_name("is not printable ascii")
    return text


def _text(field: bytes) -> str:
    text = field.decode("ascii", "replace").rstrip(" ")
    if not (text.isascii() and text.isprintable()):
        _refuse_name("is not printable ascii")
    return text


def _refuse_boot(what: str) -> NoReturn:
    raise InvalidEvidence("fat.boot_sector", f"boot sector {what}")


def _refuse_directory(what: str) -> NoReturn:
    raise InvalidEvidence("fat.directory", f"a directory {what}")


def _refuse_name(what: str) -> NoReturn:
    raise InvalidEvidence("fat.name", f"a name {what}")
