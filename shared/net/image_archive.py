"""Unpacking an OS image's tar.gz, which anybody may have made (spec attestation 7.4 step 2).

Two passes, each bounded: the stream is inflated into a tar file, then the tar's entries are written out.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from shared.errors import ProtocolError
from shared.measurement.gzip_stream import inflated
from shared.measurement.tar_stream import DIRECTORY, REGULAR, read_tar

MAX_UNPACKED = 1 << 30  # an archive of what is measured (firmware, kernel, initrd) has some 50 MB
MAX_RATIO = 100  # kernels and initrds are compressed already; firmware padding is not
RATIO_SLACK = 64 << 20  # what a small archive may unpack to all the same
MAX_ENTRIES = 256  # blocks of headers; a real one has about ten
MAX_DEPTH = 4

_CHUNK = 1 << 20
_MAX_EXTENSION = 4096  # of a pax header, which carries times and owners
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")


def unpack(
    archive: Path,
    scratch: Path,
    target: Path,
    check_time: Callable[[], None],
    *,
    max_unpacked: int | None = None,
) -> None:
    """Unpack `archive` into the empty directory `target`, by way of the new file `scratch`.

    Only files and directories, of plain names, and `max_unpacked` bytes in all. `check_time` is called every
    MiB and raises when it is late.
    Raises `ProtocolError`: `os_image.archive` (neither gzip nor tar, or truncated), `os_image.size`,
    `os_image.ratio`, `os_image.entries`, `os_image.entry` (another kind, a name that leads elsewhere, one
    that occurs twice); `OSError` for our own files.
    """
    limit = MAX_UNPACKED if max_unpacked is None else max_unpacked
    _inflate(archive, scratch, check_time, limit)
    with scratch.open("rb") as tar:
        _write_entries(tar, target, check_time)


def _inflate(archive: Path, scratch: Path, check_time: Callable[[], None], max_unpacked: int) -> None:
    allowed = MAX_RATIO * archive.stat().st_size + RATIO_SLACK
    total = 0
    with archive.open("rb") as raw, scratch.open("xb") as tar:
        for chunk in inflated(raw, code="os_image.archive", what="image"):
            total += len(chunk)
            if total > max_unpacked:
                raise ProtocolError("os_image.size", f"image unpacks to more than {max_unpacked} bytes")
            if total > allowed:
                raise ProtocolError(
                    "os_image.ratio", f"image unpacks to more than {MAX_RATIO} times its size"
                )
            check_time()
            tar.write(chunk)


def _write_entries(tar: BinaryIO, target: Path, check_time: Callable[[], None]) -> None:
    seen: set[tuple[str, ...]] = set()
    entries = read_tar(
        tar,
        code="os_image",
        what="image",
        max_blocks=MAX_ENTRIES,
        max_extension=_MAX_EXTENSION,
        renames=False,
    )
    for entry in entries:
        name = _text(entry.name)
        path = _path(name)
        if path in seen:
            _refuse(f"{name!r} twice")
        seen.add(path)
        place = target.joinpath(*path)
        try:
            if entry.kind == DIRECTORY:
                if entry.size:
                    _refuse(f"a directory of {entry.size} bytes")
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.kind == REGULAR and path:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                tar.seek(entry.offset)
                _write_file(tar, place, entry.size, check_time)
            else:
                _refuse(f"{name!r} of type {entry.kind!r}, expected files and directories")
        except (FileExistsError, NotADirectoryError) as error:
            raise ProtocolError("os_image.entry", f"image has {name!r} where it has another entry") from error


def _text(name: bytes) -> str:
    if not name.isascii():
        _refuse(f"a name that is not ascii: {name[:64]!r}")
    return name.decode()


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
            file.write(tar.read(min(left, _CHUNK)))
            left -= min(left, _CHUNK)
            check_time()


def _refuse(what: str) -> NoReturn:
    raise ProtocolError("os_image.entry", f"image has {what}")
