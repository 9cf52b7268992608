"""Unpacking an OS image's tar.gz, which anybody may have made (spec attestation 7.4 step 2).

Two passes, each bounded: the stream is inflated into a tar file, then the tar's entries are written out. The
tar is read here, block by block: the standard library's reader follows sizes and extensions that the archive
claims, into loops and into memory.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from shared.errors import ProtocolError

MAX_UNPACKED = 1 << 30  # an archive of what is measured (firmware, kernel, initrd) has some 50 MB
MAX_RATIO = 100  # kernels and initrds are compressed already; firmware padding is not
RATIO_SLACK = 64 << 20  # what a small archive may unpack to all the same
MAX_ENTRIES = 256  # a real one has about ten
MAX_DEPTH = 4

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_EXTENSION = 4096  # of a pax header, which carries times and owners
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*")
# What would give the next entry another name or size than its own header does.
_OVERRIDES = re.compile(rb"(?:^|\n)[0-9]+ (?:path|size|linkpath|hdrcharset|GNU\.sparse\.[^=]*)=")
_POSIX, _GNU = b"ustar\x00", b"ustar  \x00"


class _Entry(msgspec.Struct, frozen=True):
    name: str
    kind: bytes
    size: int


def unpack(archive: Path, scratch: Path, target: Path, check_time: Callable[[], None]) -> None:
    """Unpack `archive` into the empty directory `target`, by way of the new file `scratch`.

    Only files and directories, of plain names. `check_time` is called every MiB and raises when it is late.
    Raises `ProtocolError`: `os_image.archive` (neither gzip nor tar, or truncated), `os_image.size`,
    `os_image.ratio`, `os_image.entries`, `os_image.entry` (another kind, a name that leads elsewhere, one
    that occurs twice); `OSError` for our own files.
    """
    _inflate(archive, scratch, check_time)
    with scratch.open("rb") as tar:
        _write_entries(tar, target, check_time)


def _inflate(archive: Path, scratch: Path, check_time: Callable[[], None]) -> None:
    allowed = MAX_RATIO * archive.stat().st_size + RATIO_SLACK
    total = 0
    with archive.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream, scratch.open("xb") as tar:
        while chunk := _inflated(stream):
            total += len(chunk)
            if total > MAX_UNPACKED:
                raise ProtocolError("os_image.size", f"image unpacks to more than {MAX_UNPACKED} bytes")
            if total > allowed:
                raise ProtocolError(
                    "os_image.ratio", f"image unpacks to more than {MAX_RATIO} times its size"
                )
            check_time()
            tar.write(chunk)


def _inflated(stream: gzip.GzipFile) -> bytes:
    try:
        return stream.read(_CHUNK)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ProtocolError("os_image.archive", f"image is not a whole gzip file: {error}") from error


def _write_entries(tar: BinaryIO, target: Path, check_time: Callable[[], None]) -> None:
    seen: set[tuple[str, ...]] = set()
    entries = 0
    while (entry := _next_entry(tar)) is not None:
        entries += 1
        if entries > MAX_ENTRIES:
            raise ProtocolError("os_image.entries", f"image has more than {MAX_ENTRIES} entries")
        if entry.kind in {b"x", b"g"}:
            _check_extension(tar, entry)
            continue
        path = _path(entry.name)
        if path in seen:
            _refuse(f"{entry.name!r} twice")
        seen.add(path)
        place = target.joinpath(*path)
        try:
            if entry.kind == b"5":
                if entry.size:
                    _refuse(f"a directory of {entry.size} bytes")
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.kind in {b"0", b"\0"} and path:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write_file(tar, place, entry.size, check_time)
            else:
                _refuse(f"{entry.name!r} of type {entry.kind!r}, expected files and directories")
        except (FileExistsError, NotADirectoryError) as error:
            raise ProtocolError(
                "os_image.entry", f"image has {entry.name!r} where it has another entry"
            ) from error


def _next_entry(tar: BinaryIO) -> _Entry | None:
    """Read one header; None at the end, after which only zeros may follow."""
    header = _read(tar, _BLOCK)
    if not any(header):
        _read(tar, _BLOCK, expect_zero=True)
        while rest := tar.read(_CHUNK):
            if any(rest):
                raise ProtocolError("os_image.archive", "image has bytes after its end")
        return None
    blank = header[:148] + b" " * 8 + header[156:]
    if _number(header[148:156]) != sum(blank):
        raise ProtocolError("os_image.archive", "a header of the image has a wrong checksum")
    prefix = b""
    if header.startswith(_POSIX, 257):
        prefix = header[345:500].rstrip(b"\0")
    elif not header.startswith(_GNU, 257):
        raise ProtocolError("os_image.archive", "a header of the image is of an unknown kind of tar")
    name = header[:100].rstrip(b"\0")
    try:
        text = (prefix + b"/" + name if prefix else name).decode("ascii")
    except UnicodeDecodeError:
        _refuse(f"a name that is not ascii: {name[:64]!r}")
    return _Entry(text, header[156:157], _number(header[124:136]))


def _check_extension(tar: BinaryIO, entry: _Entry) -> None:
    if entry.size > _MAX_EXTENSION:
        _refuse(f"an extended header of {entry.size} bytes")
    content = _read(tar, entry.size)
    _skip_padding(tar, entry.size)
    if _OVERRIDES.search(content):
        _refuse("an extended header that renames or resizes an entry")


def _path(name: str) -> tuple[str, ...]:
    if name.startswith("/"):
        _refuse(f"the absolute path {name[:100]!r}")
    # tar writes directories with a slash at their end, and everything below "./" where it was told to
    parts = tuple(part for part in name.removesuffix("/").split("/") if part != ".")
    if len(parts) > MAX_DEPTH or not all(_COMPONENT.fullmatch(part) for part in parts):
        _refuse(f"the path {name[:100]!r}, expected plain names in at most {MAX_DEPTH} levels")
    return parts


def _write_file(tar: BinaryIO, place: Path, size: int, check_time: Callable[[], None]) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    left = size
    with os.fdopen(descriptor, "wb") as file:
        while left:
            file.write(_read(tar, min(left, _CHUNK)))
            left -= min(left, _CHUNK)
            check_time()
    _skip_padding(tar, size)


def _skip_padding(tar: BinaryIO, size: int) -> None:
    _read(tar, -size % _BLOCK)


def _read(tar: BinaryIO, size: int, *, expect_zero: bool = False) -> bytes:
    data = tar.read(size)
    if len(data) != size or (expect_zero and any(data)):
        raise ProtocolError("os_image.archive", "image ends inside an entry, or without its end mark")
    return data


def _number(field: bytes) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ProtocolError("os_image.archive", f"a header of the image has {field!r} where a number belongs")
    return int(match[1], 8)


def _refuse(what: str) -> NoReturn:
    raise ProtocolError("os_image.entry", f"image has {what}")
