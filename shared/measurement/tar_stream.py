"""A strict reader of tar headers, for archives that anybody may have made (spec measurement 3.2, traps).

The standard library's reader follows sizes and extensions that an archive claims, into loops and into memory,
and guesses where formats disagree. This one takes the ustar, pax and GNU forms that builders write, bounds
each header, and refuses what two readers could read in two ways. It never reads a file's data: it says where
the data lies.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import msgspec

from shared.errors import ProtocolError

MAX_EXTENSION = 1 << 20
"""Of one extended header in bytes: it is held in memory. Linux allows 64 KiB of attributes for each name."""

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_BLOCK = 512
_CHUNK = 1 << 20
_SHOWN = 100  # bytes of a name that an error repeats
_POSIX, _GNU = b"ustar\x00", b"ustar  \x00"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS = frozenset({_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK})
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,7}) ")  # eight digits are more than MAX_EXTENSION has
# What changes how an entry is found or owned; of a global header it would change all entries after it.
_MEANINGFUL = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid"})
_RENAMES = frozenset({b"path", b"linkpath", b"size"})
# A file that is not stored as it is, or names in another character set.
_REFUSED_KEYS = re.compile(rb"GNU\.sparse\..*|hdrcharset", re.DOTALL)
_ATTRIBUTE_KEYS = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")


class TarEntry(msgspec.Struct, frozen=True):
    """One entry: what its headers say, and where its `size` bytes of data begin (`offset`).

    `name` and `link` are bytes as they were written, neither checked nor normalised, without NUL. `kind` is
    the type flag, `b"0"` for every regular file. `attributes` counts extended attributes, which are not kept.
    `blocks` are the 512 bytes each that its headers fill, and those of headers before it that are for no
    entry alone.
    """

    name: bytes
    kind: bytes
    size: int
    offset: int
    mode: int
    uid: int
    gid: int
    link: bytes
    attributes: int
    blocks: int


def read_tar(
    file: BinaryIO,
    *,
    code: str,
    what: str,
    max_blocks: int,
    max_extension: int = MAX_EXTENSION,
    renames: bool = True,
) -> Iterator[TarEntry]:
    """Yield the entries of the seekable `file`, in their order; the caller may move the file's position.

    `what` names the archive in sentences, `code` is the first part of the error codes. Without `renames`, an
    extended header that gives an entry another name or size is refused. Raises `ProtocolError`:
    `{code}.archive` (no tar, damaged, truncated, bytes after its end), `{code}.entry` (a header that is not
    taken), `{code}.entries` (headers of more than `max_blocks` blocks of 512 bytes, extended ones with what
    they hold: the time that an archive takes goes by them).
    """
    reader = _Reader(file, code, what, max_extension, renames=renames)
    end = file.seek(0, 2)
    position = blocks = counted = 0
    extension = _Extension()
    while True:
        header = reader.header_at(position)
        if header is None:
            if extension.kinds:
                reader.refuse("an extended header before its end")
            return
        kind = header[156:157]
        is_extension = kind in _EXTENSIONS
        size = reader.number(header[124:136]) if is_extension else 0
        blocks += 1 + -(-min(size, max_extension) // _BLOCK)
        if blocks > max_blocks:
            raise ProtocolError(f"{code}.entries", f"{what} has more than {max_blocks} blocks of headers")
        position += _BLOCK
        if is_extension:
            reader.extend(extension, kind, position, size)
        else:
            entry = reader.entry(header, position, extension, blocks - counted)
            counted = blocks
            size = entry.size
            if size > end - position:
                reader.damaged(f"ends inside {entry.name[:_SHOWN]!r}")
            yield entry
            extension = _Extension()
        position += size + -size % _BLOCK


class _Extension:
    """What the extended headers before an entry say of it."""

    def __init__(self) -> None:
        self.kinds: set[bytes] = set()
        self.values: dict[bytes, bytes] = {}
        self.attributes = 0


class _Reader:
    def __init__(self, file: BinaryIO, code: str, what: str, max_extension: int, *, renames: bool) -> None:
        self._file = file
        self._renames = renames
        self._code = code
        self._what = what
        self._max_extension = max_extension

    def header_at(self, position: int) -> bytes | None:
        """Read one header; None at the end, after which only zeros may follow."""
        self._file.seek(position)
        header = self._read(_BLOCK)
        if header.count(0) == _BLOCK:
            if self._read(_BLOCK).count(0) != _BLOCK:
                self.damaged("has an empty block in its middle")
            while rest := self._file.read(_CHUNK):
                if rest.count(0) != len(rest):
                    self.damaged("has bytes after its end")
            return None
        if self.number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 0x20:
            self.damaged("has a header with a wrong checksum")
        if not header.startswith((_POSIX, _GNU), 257):
            self.damaged("has a header of an unknown kind of tar")
        return header

    def extend(self, extension: _Extension, kind: bytes, position: int, size: int) -> None:
        if size > self._max_extension:
            self.refuse(f"an extended header of {size} bytes")
        if kind != _PAX_GLOBAL and kind in extension.kinds:
            self.refuse("two extended headers of one kind for one entry")
        self._file.seek(position)
        content = self._read(size)
        if kind == _PAX_GLOBAL:
            for key, _ in self._records(content):
                if key in _MEANINGFUL:
                    self.refuse(f"a global header that sets {key.decode()} of all entries")
            return
        extension.kinds.add(kind)
        if kind == _PAX:
            for key, value in self._records(content):
                if key in _MEANINGFUL:
                    self._set(extension, key, value)
                extension.attributes += key.startswith(_ATTRIBUTE_KEYS)
        else:
            key = b"path" if kind == _GNU_NAME else b"linkpath"
            self._set(extension, key, content.rstrip(b"\0"))

    def _set(self, extension: _Extension, key: bytes, value: bytes) -> None:
        if key in extension.values or not value:
            self.refuse(f"an extended header that sets {key.decode()} twice, or to nothing")
        if key in _RENAMES and not self._renames:
            self.refuse("an extended header that renames or resizes an entry")
        extension.values[key] = value

    def _records(self, content: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the `length key=value` lines of a pax header; a length counts its own digits."""
        at = 0
        while at < len(content):
            match = _RECORD_LENGTH.match(content, at)
            end = at + int(match[1]) if match else 0
            if match is None or end > len(content) or content[end - 1 : end] != b"\n" or end <= match.end():
                self.refuse("an extended header whose lengths do not fit")
            key, equals, value = content[match.end() : end - 1].partition(b"=")
            if not equals:
                self.refuse("an extended header without a value")
            if _REFUSED_KEYS.fullmatch(key):
                self.refuse(f"an extended header with {key[:_SHOWN]!r}")
            yield key, value
            at = end

    def entry(self, header: bytes, position: int, extension: _Extension, blocks: int) -> TarEntry:
        values = extension.values
        name, link = header[:100].partition(b"\0")[0], header[157:257].partition(b"\0")[0]
        prefix = header[345:500].partition(b"\0")[0]
        if prefix and header.startswith(_POSIX, 257):  # GNU keeps times in its place
            name = prefix + b"/" + name
        name, link = values.get(b"path", name), values.get(b"linkpath", link)
        if b"\0" in name or b"\0" in link:
            self.refuse("a name with a NUL byte")
        kind = header[156:157]
        return TarEntry(
            name=name,
            kind=REGULAR if kind == b"\0" else kind,
            size=self._value(values, b"size", header[124:136]),
            offset=position,
            mode=self.number(header[100:108]),
            uid=self._value(values, b"uid", header[108:116], blank=True),
            gid=self._value(values, b"gid", header[116:124], blank=True),
            link=link,
            attributes=extension.attributes,
            blocks=blocks,
        )

    def _value(self, values: dict[bytes, bytes], key: bytes, field: bytes, *, blank: bool = False) -> int:
        value = values.get(key)
        if value is None:
            return 0 if blank and not field.strip(b" \0") else self.number(field)
        if not _DECIMAL.fullmatch(value):
            self.refuse(f"an extended header with the {key.decode()} {value[:_SHOWN]!r}")
        return int(value)

    def number(self, field: bytes) -> int:
        """Read an octal number, or GNU's binary one where the octal digits would not fit."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        match = _OCTAL.fullmatch(field)
        if match is None:
            self.damaged(f"has a header with {field!r} where a number belongs")
        return int(match[1], 8)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            self.damaged("ends inside an entry, or without its end mark")
        return data

    def damaged(self, how: str) -> NoReturn:
        raise ProtocolError(f"{self._code}.archive", f"{self._what} {how}")

    def refuse(self, what: str) -> NoReturn:
        raise ProtocolError(f"{self._code}.entry", f"{self._what} has {what}")
