"""The "newc" cpio archive of a ramdisk: a writer to the byte, and a reader for archives of strangers.

Measurement spec 3.1. Paths are bytes, relative to the archive's root, as the kernel gets them. The reader
takes only archives that the kernel unpacks to what the entries say: the kernel silently skips, links or drops
the rest (over-long names, entries without a parent, files that share an inode number).
"""

import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn, Protocol

import msgspec

from shared.errors import InvalidEvidence

# The kernel skips an entry whose name, with its NUL, is longer (PATH_MAX); so also a symlink's target.
MAX_PATH: Final = 4095
# One component's limit in every Linux file system (NAME_MAX).
MAX_NAME: Final = 255
# A size is eight hex digits.
MAX_SIZE: Final = 0xFFFFFFFF
# What a reader remembers of one archive: the largest images have some 300,000 files of 80 bytes a path.
MAX_ENTRIES: Final = 1 << 20
MAX_PATHS_SIZE: Final = 64 << 20
# Archives end on a multiple of this, as linuxkit pads them: the next ramdisk must start aligned.
BLOCK: Final = 512

_MAGIC: Final = b"070701"
_HEADER_SIZE: Final = 110
_FIELDS: Final = re.compile(rb"[0-9a-fA-F]{104}")
_TRAILER: Final = b"TRAILER!!!"
_FIRST_INODE: Final = 721  # linuxkit's writer starts there
_DEVICE: Final = "0000000300000001"  # devmajor 3, devminor 1, as linuxkit writes
_CHUNK: Final = 1 << 20
_SHOWN: Final = 80
_FORMATS: Final = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}
_WITH_DATA: Final = {stat.S_IFREG, stat.S_IFLNK}


class Readable(Protocol):
    """A binary file, of which only this is used."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


class CpioEntry(msgspec.Struct, frozen=True):
    """One entry's header. `mode` has the type bits, `mtime` is unix seconds, `rdev` (major, minor).

    `path` is relative, its components separated by single slashes. `size` counts the data: a file's content,
    a symlink's target, nothing for all others.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: tuple[int, int] = (0, 0)
    size: int = 0


class CpioWriter:
    """Writes an archive to `sink`, a function that takes bytes, in constant memory.

    It does not remember paths: whoever calls it brings them in order, parents first, each once
    (`enclave_ramdisks` does).
    """

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._inode = _FIRST_INODE
        self.size = 0
        """Bytes written so far."""

    def add(self, entry: CpioEntry, data: Iterable[bytes] = ()) -> None:
        """Write one entry and its data.

        Raises `InvalidEvidence`: `cpio.path`, `cpio.mode`, `cpio.size`, `cpio.number` (a number that has no
        eight hex digits), `cpio.data` (the data is longer or shorter than the entry says).
        """
        check_path(entry.path)
        _check_mode(entry)
        numbers = (entry.uid, entry.gid, entry.mtime, entry.size, *entry.rdev)
        if not all(0 <= number <= MAX_SIZE for number in numbers):
            raise InvalidEvidence(
                "cpio.number",
                f"{show_path(entry.path)} has a uid, gid, mtime, size or device number outside 32 bits",
            )
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        self._header(entry, links)
        written = 0
        for chunk in data:
            written += len(chunk)
            if written > entry.size:
                break
            self._write(chunk)
        if written != entry.size:
            got = f"more than {entry.size}" if written > entry.size else f"{written}"
            raise InvalidEvidence(
                "cpio.data", f"{show_path(entry.path)} gave {got} bytes, its entry says {entry.size}"
            )
        self._pad(4)

    def finish(self) -> None:
        """Write the trailer and pad the archive."""
        self._header(CpioEntry(_TRAILER, 0), 1)
        self._pad(BLOCK)

    def _header(self, entry: CpioEntry, links: int) -> None:
        # ino, mode, uid, gid, nlink, mtime, filesize, dev x2, rdev x2, namesize, check
        header = (
            f"{self._inode:08x}{entry.mode:08x}{entry.uid:08x}{entry.gid:08x}{links:08x}{entry.mtime:08x}"
            f"{entry.size:08x}{_DEVICE}{entry.rdev[0]:08x}{entry.rdev[1]:08x}{len(entry.path) + 1:08x}{0:08x}"
        )
        self._inode += 1
        self._write(_MAGIC + header.encode() + entry.path + b"\0")
        self._pad(4)

    def _write(self, data: bytes) -> None:
        self._sink(data)
        self.size += len(data)

    def _pad(self, alignment: int) -> None:
        if missing := -self.size % alignment:
            self._write(bytes(missing))


def read_cpio(file: Readable) -> Iterator[tuple[CpioEntry, Iterator[bytes]]]:
    """Read one archive that fills `file`; each entry comes with its data in pieces of at most 1 MiB.

    Data that was not taken is passed over when the next entry is asked for. A directory's path may end in a
    slash (docker's export writes so); the entry has it without. A directory may occur twice, as linuxkit
    writes those that enclaves need; nothing else may.

    Raises `InvalidEvidence`: `cpio.magic`, `cpio.header`, `cpio.truncated`, `cpio.path`, `cpio.mode`,
    `cpio.size`, `cpio.links`, `cpio.duplicate`, `cpio.parent`, `cpio.padding`, `cpio.entries` (more than this
    reader remembers), `cpio.trailing`.
    """
    source = _Source(file)
    directories: dict[bytes, bool] = {}
    paths_size = 0
    while (entry := _next_entry(source)) is not None:
        paths_size += len(entry.path)
        if len(directories) == MAX_ENTRIES or paths_size > MAX_PATHS_SIZE:
            raise InvalidEvidence(
                "cpio.entries",
                f"archive has more than {MAX_ENTRIES} entries or {MAX_PATHS_SIZE} bytes of paths",
            )
        _place(entry, directories)
        data = source.data(entry.size)
        yield entry, data
        for _ in data:
            pass
        source.skip_padding()
    source.expect_end()


def check_path(path: bytes) -> None:
    """Refuse a path that leads elsewhere or that the kernel skips: `InvalidEvidence("cpio.path")`."""
    if not path or len(path) > MAX_PATH:
        _refuse_path(path, f"has {len(path)} bytes, expected 1 to {MAX_PATH}")
    if b"\0" in path:
        _refuse_path(path, "contains a NUL")
    if path == _TRAILER:
        _refuse_path(path, "is the mark of an archive's end")
    for part in path.split(b"/"):
        if part in {b"", b".", b".."}:
            _refuse_path(path, "is absolute, or has an empty or a dotted component")
        if len(part) > MAX_NAME:
            _refuse_path(path, f"has a component of more than {MAX_NAME} bytes")


class _Source:
    """The archive's bytes, counted."""

    def __init__(self, file: Readable) -> None:
        self._read = file.read
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes, a small number."""
        taken = b""
        while len(taken) < size:
            piece = self._read(size - len(taken))
            if not piece:
                raise InvalidEvidence(
                    "cpio.truncated", f"archive ends {size - len(taken)} bytes early, at {self._at}"
                )
            taken += piece
            self._at += len(piece)
        return taken

    def data(self, size: int) -> Iterator[bytes]:
        """Yield `size` bytes in pieces."""
        while size:
            piece = self.take(min(size, _CHUNK))
            size -= len(piece)
            yield piece

    def skip_padding(self) -> None:
        """Pass over the zeros up to the next multiple of four."""
        if any(self.take(-self._at % 4)):
            raise InvalidEvidence("cpio.padding", f"archive has bytes in its padding before {self._at}")

    def expect_end(self) -> None:
        """Refuse anything but zeros up to the end: the kernel would go on with another archive."""
        while piece := self._read(_CHUNK):
            if piece.count(0) != len(piece):
                raise InvalidEvidence("cpio.trailing", "archive has bytes after its trailer")


def _next_entry(source: _Source) -> CpioEntry | None:
    """Read one header and name; None for the trailer."""
    header = source.take(_HEADER_SIZE)
    if not header.startswith(_MAGIC):
        raise InvalidEvidence("cpio.magic", f"entry starts with {header[:6]!r}, expected {_MAGIC!r} (newc)")
    if not _FIELDS.fullmatch(header, 6):
        raise InvalidEvidence("cpio.header", "entry has a header field that is not eight hex digits")
    fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_SIZE, 8)]
    _, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, check = fields
    if not 1 < name_size <= MAX_PATH + 1:
        raise InvalidEvidence("cpio.path", f"path has {name_size} bytes, expected 2 to {MAX_PATH + 1}")
    name = source.take(name_size)
    if name[-1]:
        raise InvalidEvidence("cpio.path", f"path {show_path(name)} does not end in a NUL")
    source.skip_padding()
    path = name[:-1]
    if check:
        raise InvalidEvidence("cpio.header", f"{show_path(path)} has the checksum {check}, expected 0 (newc)")
    if path == _TRAILER:
        if size:
            raise InvalidEvidence("cpio.size", f"trailer has {size} bytes of data, expected none")
        return None
    if stat.S_ISDIR(mode):
        path = path.removesuffix(b"/")
    elif links != 1:
        raise InvalidEvidence(
            "cpio.links", f"{show_path(path)} has {links} links, expected 1: the kernel could join files"
        )
    check_path(path)
    entry = CpioEntry(path, mode, uid, gid, mtime, (major, minor), size)
    _check_mode(entry)
    return entry


def _place(entry: CpioEntry, directories: dict[bytes, bool]) -> None:
    """Remember the entry; `directories` tells of each path so far whether it is a directory."""
    parent, slash, _ = entry.path.rpartition(b"/")
    if slash and not directories.get(parent):
        raise InvalidEvidence(
            "cpio.parent", f"{show_path(entry.path)} comes before its parent, or below what is no directory"
        )
    is_directory = stat.S_ISDIR(entry.mode)
    if entry.path in directories and not (is_directory and directories[entry.path]):
        raise InvalidEvidence("cpio.duplicate", f"{show_path(entry.path)} occurs twice")
    directories[entry.path] = is_directory


def _check_mode(entry: CpioEntry) -> None:
    kind = stat.S_IFMT(entry.mode)
    if kind not in _FORMATS or entry.mode != kind | stat.S_IMODE(entry.mode):
        raise InvalidEvidence("cpio.mode", f"{show_path(entry.path)} has the mode {entry.mode:#o}")
    if kind not in _WITH_DATA and entry.size:
        raise InvalidEvidence(
            "cpio.size", f"{show_path(entry.path)} is a {_FORMATS[kind]} of {entry.size} bytes, expected none"
        )
    if kind == stat.S_IFLNK and not 0 < entry.size <= MAX_PATH:
        raise InvalidEvidence(
            "cpio.size",
            f"symlink {show_path(entry.path)} has a target of {entry.size} bytes, expected 1 to {MAX_PATH}",
        )


def _refuse_path(path: bytes, what: str) -> NoReturn:
    raise InvalidEvidence("cpio.path", f"path {show_path(path)} {what}")


def show_path(path: bytes) -> str:
    """Return a path's beginning for a message: ascii, in quotes."""
    return repr(path[:_SHOWN])[1:]
