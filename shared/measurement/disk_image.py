"""Disks and files in parts: what is written, where it comes from, and holes between (spec measurement 5.1).

A disk of hundreds of megabytes is described, not held: its extents are bytes, or ranges of files that the
caller opened. It is then written sparsely, streamed into a tar.gz, or uploaded in the parts that are not
zero.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import BinaryIO, Final

import msgspec

from shared.errors import ConfigError, InvalidEvidence

SECTOR: Final = 512
MIB: Final = 1 << 20

_CHUNK: Final = MIB
_GZIP_LEVEL: Final = 6  # most of a disk is compressed already, or zero
_TAR_RECORD: Final = 10240
_RAW_NAME: Final = "disk.raw"  # Google Cloud imports no other member


class FileRange(msgspec.Struct, frozen=True):
    """`length` bytes of an open, seekable file from `start` on; `head` stands for the first of them."""

    file: BinaryIO
    start: int
    length: int
    head: bytes = b""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; `InvalidEvidence("file.truncated")` where the file has fewer.

        `offset` counts from the range's start. Raises `OSError` as the file does.
        """
        if offset + length > self.length:
            raise InvalidEvidence(
                "file.truncated", f"file has {self.length} bytes, expected {length} at offset {offset:#x}"
            )
        data = self.head[offset : offset + length]
        if left := length - len(data):
            self.file.seek(self.start + offset + len(data))
            rest = self.file.read(left)
            if len(rest) != left:
                raise InvalidEvidence(
                    "file.truncated", f"file ended {left - len(rest)} bytes early, while it was read"
                )
            data += rest
        return data

    def part(self, offset: int, length: int) -> "FileRange":
        """Return a range within this one; its caller has compared it with the length."""
        return FileRange(self.file, self.start + offset, length, self.head[offset : offset + length])

    def with_head(self, head: bytes) -> "FileRange":
        """Return the same range with other first bytes, at most as many as it has."""
        return FileRange(self.file, self.start, self.length, head)

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in order, in parts of at most 1 MiB."""
        for offset in range(0, self.length, _CHUNK):
            yield self.read_at(offset, min(_CHUNK, self.length - offset))


def range_of(source: BinaryIO | FileRange) -> FileRange:
    """Return the whole of an open, seekable file, or the range as it is."""
    if isinstance(source, FileRange):
        return source
    return FileRange(source, 0, source.seek(0, io.SEEK_END))


class Extent(msgspec.Struct, frozen=True):
    """What lies at a byte offset of a disk."""

    offset: int
    data: bytes | FileRange

    @property
    def end(self) -> int:
        """The offset of the first byte behind it."""
        return self.offset + (self.data.length if isinstance(self.data, FileRange) else len(self.data))


class DiskImage(msgspec.Struct, frozen=True):
    """A disk of `size` bytes; all that no extent covers is zero.

    Extents ascend and do not overlap: `disk_image` sees to it.
    """

    size: int
    extents: tuple[Extent, ...]

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the extents in order, in parts of at most 1 MiB."""
        for extent in self.extents:
            offset = extent.offset
            data = extent.data
            for part in data.chunks() if isinstance(data, FileRange) else _split(data):
                yield offset, part
                offset += len(part)

    def pieces(self) -> Iterator[bytes | int]:
        """Yield the whole disk in order: parts of at most 1 MiB, and the lengths of holes between them."""
        at = 0
        for offset, part in self.parts():
            if offset > at:
                yield offset - at
            yield part
            at = offset + len(part)
        if self.size > at:
            yield self.size - at

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole disk in order, holes as zeros, in parts of at most 1 MiB."""
        for piece in self.pieces():
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from _zeros(piece)

    def write_to(self, file: BinaryIO) -> None:
        """Write the disk into an empty seekable file, which keeps its holes where the file system can."""
        for offset, part in self.parts():
            file.seek(offset)
            file.write(part)
        file.truncate(self.size)


def disk_image(size: int, extents: list[Extent]) -> DiskImage:
    """Return a disk of these extents, in any order; empty ones are dropped.

    Raises `ConfigError("disk.extents")` for extents that overlap or do not fit into `size` bytes.
    """
    ordered = sorted((e for e in extents if e.end > e.offset), key=lambda extent: extent.offset)
    if any(before.end > after.offset for before, after in pairwise(ordered)):
        raise ConfigError("disk.extents", "two parts of a disk overlap")
    if ordered and ordered[-1].end > size:
        raise ConfigError(
            "disk.extents", f"a part of a disk ends at {ordered[-1].end}, beyond its {size} bytes"
        )
    return DiskImage(size, tuple(ordered))


def write_disk_archive(image: DiskImage, sink: Callable[[bytes], object], *, mtime: int = 0) -> None:
    """Stream a tar.gz that holds the disk as `disk.raw`, as Google Cloud imports it.

    `mtime` is in unix seconds and the only thing but the disk that the bytes depend on, except for the
    compressor: two builds of zlib may write two spellings of the same tar.
    """
    import tarfile  # noqa: PLC0415 - heavy, and loaded by whoever writes an archive

    entry = tarfile.TarInfo(_RAW_NAME)
    entry.size, entry.mode, entry.mtime = image.size, 0o644, mtime
    header = entry.tobuf(tarfile.GNU_FORMAT)
    # Two blocks of zeros end an archive, and it fills whole records.
    padding = -(len(header) + image.size + 2 * SECTOR) % _TAR_RECORD + 2 * SECTOR
    stream = _GzipStream(sink)
    stream.write(header)
    for piece in image.pieces():
        if isinstance(piece, bytes):
            stream.write(piece)
        else:
            stream.write_zeros(piece)
    stream.write_zeros(padding)
    stream.finish()


class _GzipStream:
    """A gzip file that is written once, with holes at the cost of their checksum alone."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._deflate = _deflate()
        self._crc = self._total = 0
        sink(b"\x1f\x8b\x08\0" + bytes(4) + b"\0\xff")  # no name, no time, no operating system

    def write(self, data: bytes) -> None:
        self._count(data)
        if packed := self._deflate.compress(data):
            self._sink(packed)

    def write_zeros(self, length: int) -> None:
        whole, rest = divmod(length, _CHUNK)
        if whole:
            # A full flush ends at a byte and forgets what was before, so what follows can be packed once.
            self._sink(self._deflate.flush(zlib.Z_FULL_FLUSH))
            zeros, other = bytes(_CHUNK), _deflate()
            packed = other.compress(zeros) + other.flush(zlib.Z_FULL_FLUSH)
            for _ in range(whole):
                self._count(zeros)
                self._sink(packed)
        self.write(bytes(rest))

    def finish(self) -> None:
        trailer = self._crc.to_bytes(4, "little") + (self._total & 0xFFFF_FFFF).to_bytes(4, "little")
        self._sink(self._deflate.flush() + trailer)

    def _count(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._total += len(data)


def _deflate() -> "zlib._Compress":
    return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


def _split(data: bytes) -> Iterator[bytes]:
    for offset in range(0, len(data), _CHUNK):
        yield data[offset : offset + _CHUNK]


def _zeros(length: int) -> Iterator[bytes]:
    block = bytes(min(length, _CHUNK))
    for offset in range(0, length, _CHUNK):
        yield block[: length - offset]
