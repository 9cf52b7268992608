"""The EIF, the image of a Nitro enclave: its writer, its reader and its registers (measurement spec 1 and 2).

A header of 548 bytes, then sections back to back. AWS's reader would take and hash sections in any order;
this one takes the order that builders write (kernel, cmdline, metadata, ramdisks, signature), so that no file
is measured in one order and booted in another. Numbers are big-endian.
"""

import struct
from collections.abc import Iterator, Sequence
from io import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, NoReturn
from zlib import crc32

import msgspec

from shared.errors import ConfigError, InvalidEvidence
from shared.measurement.crc32 import joined_crc32
from shared.measurement.eif_metadata import MAX_METADATA, EifMetadata, encode_metadata, parse_metadata
from shared.measurement.eif_registers import Registers, SectionKind, image_hash

if TYPE_CHECKING:  # loads `cryptography`, which most images do not need: they are unsigned
    from shared.measurement.eif_signature import EifSignature, EifSigner

Arch = Literal["x86_64", "aarch64"]

MAX_SECTIONS: Final = 32
MAX_RAMDISKS: Final = MAX_SECTIONS - 4  # besides kernel, cmdline, metadata and a signature
# Linux cuts a command line at 2048 bytes on both architectures.
MAX_CMDLINE: Final = 2047
HEADER_SIZE: Final = 548
SECTION_HEADER_SIZE: Final = 12
_MAGIC: Final = b".eif"
_VERSION: Final = 4
_HEADER: Final = struct.Struct(">4sHHQQHH32Q32QII")
_SECTION: Final = struct.Struct(">HHQ")
_CRC_AT: Final = 544
# Constants of AWS's builder; nothing reads them any more.
_DEFAULT_MEMORY: Final = 1 << 30
_DEFAULT_CPUS: Final = 2
_ARCHES: Final[tuple[Arch, ...]] = ("x86_64", "aarch64")  # by the one flag
# Small enough to stay in a core's cache while three functions go over it.
_CHUNK: Final = 256 << 10
_RAMDISK_ALIGNMENT: Final = 4  # the kernel looks for the next archive there


_LEADING: Final = (SectionKind.KERNEL, SectionKind.CMDLINE, SectionKind.METADATA)


class EifSection(msgspec.Struct, frozen=True):
    """One section: where its payload begins, behind the 12 bytes of its header, and how long it is."""

    kind: SectionKind
    offset: int
    size: int


class Eif(msgspec.Struct, frozen=True):
    """A file's structure; nothing is hashed yet. `crc32` is what the header says."""

    arch: Arch
    sections: tuple[EifSection, ...]
    cmdline: bytes
    metadata: EifMetadata
    signature: "EifSignature | None"
    crc32: int


class EifMeasurement(msgspec.Struct, frozen=True):
    """What an enclave of this image measures: registers of 48 bytes, `pcr8` None for an unsigned image.

    `os_image_hash` is sha256(PCR0 || PCR1 || PCR2), 32 bytes: what governance approves.
    """

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None
    os_image_hash: bytes
    crc32: int


def write_eif(
    sink: BinaryIO,
    *,
    kernel: BinaryIO,
    cmdline: bytes,
    ramdisks: Sequence[BinaryIO],
    metadata: EifMetadata,
    arch: Arch,
    signer: "EifSigner | None" = None,
) -> EifMeasurement:
    """Write an image to `sink`, an empty seekable file, and return its measurement. Memory stays flat.

    `kernel` and `ramdisks` are seekable files, taken from where they stand to their end; ramdisks must be
    multiples of 4 bytes. `cmdline` has no newline at its end (trap 3).

    Raises `ConfigError`: `eif.cmdline`, `eif.ramdisks`, `eif.input` (a file changed while it was read),
    `eif.metadata.*`; `InvalidEvidence("eif.signature.*")`; `OSError` for the files.
    """
    _check_cmdline(cmdline)
    if not 1 <= len(ramdisks) <= MAX_RAMDISKS:
        raise ConfigError("eif.ramdisks", f"{len(ramdisks)} ramdisks are given, expected 1 to {MAX_RAMDISKS}")
    writer = _Writer(sink)
    raw_metadata = encode_metadata(metadata)
    writer.add_file(SectionKind.KERNEL, kernel)
    writer.add_bytes(SectionKind.CMDLINE, cmdline)
    writer.add_bytes(SectionKind.METADATA, raw_metadata)
    for ramdisk in ramdisks:
        writer.add_file(SectionKind.RAMDISK, ramdisk)
    pcr0, pcr1, pcr2 = writer.registers.values()
    pcr8 = None
    if signer is not None:
        from shared.measurement.eif_signature import sign_image  # noqa: PLC0415 - see above

        section, signature = sign_image(signer, pcr0)
        writer.add_bytes(SectionKind.SIGNATURE, section)
        pcr8 = signature.pcr8
    crc = writer.finish(_ARCHES.index(arch))
    return EifMeasurement(pcr0, pcr1, pcr2, pcr8, image_hash(pcr0, pcr1, pcr2), crc)


def read_eif(file: BinaryIO) -> Eif:
    """Read the structure of a seekable file that holds one image, and what is small in it.

    Raises `InvalidEvidence`: `eif.truncated`, `eif.magic`, `eif.version`, `eif.flags`, `eif.reserved`,
    `eif.sections` (their number), `eif.section.kind`, `eif.section.flags`, `eif.section.order`,
    `eif.section.offset`, `eif.section.size`, `eif.trailing`, `eif.cmdline`, `eif.metadata.*`,
    `eif.signature.*`, `cbor.*`.
    """
    file_size = file.seek(0, SEEK_END)
    file.seek(0)
    if (magic := file.read(len(_MAGIC))) != _MAGIC:
        raise InvalidEvidence("eif.magic", f"file starts with {magic!r}, expected {_MAGIC!r}")
    file.seek(0)
    fields = _HEADER.unpack(_exactly(file, HEADER_SIZE))
    _, version, flags, _, _, reserved, count = fields[:7]
    offsets, sizes, (unused, crc) = fields[7:39], fields[39:71], fields[71:]
    if version != _VERSION:
        raise InvalidEvidence("eif.version", f"eif version is {version}, expected {_VERSION}")
    if flags >= len(_ARCHES):
        raise InvalidEvidence("eif.flags", f"eif flags are {flags:#x}, expected 0 (x86_64) or 1 (aarch64)")
    if not len(_LEADING) < count <= MAX_SECTIONS:
        raise InvalidEvidence(
            "eif.sections", f"eif has {count} sections, expected {len(_LEADING) + 1} to {MAX_SECTIONS}"
        )
    if reserved or unused or any(offsets[count:]) or any(sizes[count:]):
        raise InvalidEvidence("eif.reserved", "eif header has numbers where it is unused, expected zeros")

    sections = _sections(file, file_size, list(zip(offsets[:count], sizes[:count], strict=True)))
    cmdline = _payload(file, sections[1], MAX_CMDLINE, "eif.cmdline")
    metadata = parse_metadata(_payload(file, sections[2], MAX_METADATA, "eif.metadata.size"))
    return Eif(_ARCHES[flags], sections, cmdline, metadata, _signature(file, sections[-1]), crc)


def measure_eif(file: BinaryIO) -> EifMeasurement:
    """Read an image's structure, then hash the file once from end to end.

    Raises `InvalidEvidence`: as `read_eif`, and `eif.crc`.
    """
    eif = read_eif(file)
    file.seek(0)
    header = _exactly(file, HEADER_SIZE)
    crc = crc32(header[:_CRC_AT])
    registers = Registers()
    for section in eif.sections:
        crc = crc32(_exactly(file, SECTION_HEADER_SIZE), crc)
        updates = registers.begin(section.kind)
        for piece in _pieces(file, section.size):
            crc = crc32(piece, crc)
            for update in updates:
                update(piece)
        registers.end(section.kind)
    if crc != eif.crc32:
        raise InvalidEvidence("eif.crc", f"eif has the crc {crc:08x}, its header says {eif.crc32:08x}")
    pcr0, pcr1, pcr2 = registers.values()
    pcr8 = None if eif.signature is None else eif.signature.pcr8
    return EifMeasurement(pcr0, pcr1, pcr2, pcr8, image_hash(pcr0, pcr1, pcr2), crc)


class SectionFile:
    """A section's payload as a file that can only be read, for `read_cpio`."""

    def __init__(self, file: BinaryIO, section: EifSection) -> None:
        self._file = file
        self._at = section.offset
        self._end = section.offset + section.size

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        self._file.seek(self._at)
        piece = self._file.read(min(size, self._end - self._at))
        self._at += len(piece)
        return piece


class _Writer:
    """Appends sections and keeps what the header needs; the header comes last."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._headers: list[tuple[int, int]] = []
        self._at = HEADER_SIZE
        self._crc = 0  # of everything behind the header
        self.registers = Registers()
        sink.write(bytes(HEADER_SIZE))

    def add_file(self, kind: SectionKind, source: BinaryIO) -> None:
        start = source.tell()
        size = source.seek(0, SEEK_END) - start
        source.seek(start)
        if kind is SectionKind.RAMDISK and size % _RAMDISK_ALIGNMENT:
            raise ConfigError(
                "eif.ramdisks", f"a ramdisk has {size} bytes, expected a multiple of {_RAMDISK_ALIGNMENT}"
            )
        self._section(kind, size, iter(lambda: source.read(_CHUNK), b""))

    def add_bytes(self, kind: SectionKind, payload: bytes) -> None:
        self._section(kind, len(payload), iter((payload,)))

    def finish(self, flags: int) -> int:
        """Write the header and return the checksum in it."""
        unused = [0] * (MAX_SECTIONS - len(self._headers))
        offsets = [offset for offset, _ in self._headers] + unused
        sizes = [size for _, size in self._headers] + unused
        numbers = (_DEFAULT_MEMORY, _DEFAULT_CPUS, 0, len(self._headers), *offsets, *sizes, 0, 0)
        header = _HEADER.pack(_MAGIC, _VERSION, flags, *numbers)[:_CRC_AT]
        crc = joined_crc32(crc32(header), self._crc, self._at - HEADER_SIZE)
        self._sink.seek(0)
        self._sink.write(header + crc.to_bytes(4, "big"))
        self._sink.seek(self._at)
        return crc

    def _section(self, kind: SectionKind, size: int, pieces: Iterator[bytes]) -> None:
        self._headers.append((self._at, size))
        self._write(_SECTION.pack(kind, 0, size))
        end = self._at + size
        updates = self.registers.begin(kind)
        for piece in pieces:
            self._write(piece)
            for update in updates:
                update(piece)
        if self._at != end:
            raise ConfigError("eif.input", f"the {kind.name.lower()} changed its size while it was read")
        self.registers.end(kind)

    def _write(self, piece: bytes) -> None:
        self._sink.write(piece)
        self._crc = crc32(piece, self._crc)
        self._at += len(piece)


def _sections(file: BinaryIO, file_size: int, table: list[tuple[int, int]]) -> tuple[EifSection, ...]:
    """Check the header's table against the file and the section headers; they leave no byte unexplained."""
    sections: list[EifSection] = []
    at = HEADER_SIZE
    for index, (offset, size) in enumerate(table):
        if offset != at:
            raise InvalidEvidence("eif.section.offset", f"section {index} is at {offset}, expected {at}")
        payload = at + SECTION_HEADER_SIZE
        if size > file_size - payload:
            raise InvalidEvidence(
                "eif.section.size", f"section {index} has {size} bytes, the file has {file_size} in all"
            )
        file.seek(offset)
        number, flags, own_size = _SECTION.unpack(_exactly(file, SECTION_HEADER_SIZE))
        try:
            kind = SectionKind(number)
        except ValueError as error:
            raise InvalidEvidence("eif.section.kind", f"section {index} has the type {number}") from error
        if flags:
            raise InvalidEvidence(
                "eif.section.flags", f"section {index} has the flags {flags:#x}, expected 0"
            )
        if own_size != size:
            raise InvalidEvidence(
                "eif.section.size", f"section {index} has {own_size} bytes, the eif header says {size}"
            )
        if not _may_follow(kind, index, last=index == len(table) - 1):
            raise InvalidEvidence(
                "eif.section.order",
                f"section {index} is a {kind.name.lower()}, expected kernel, cmdline, metadata, ramdisks, "
                "signature in this order",
            )
        sections.append(EifSection(kind, payload, size))
        at = payload + size
    if at != file_size:
        raise InvalidEvidence(
            "eif.trailing", f"{file_size - at} bytes follow the last section, expected none"
        )
    return tuple(sections)


def _may_follow(kind: SectionKind, index: int, *, last: bool) -> bool:
    if index < len(_LEADING):
        return kind is _LEADING[index]
    if kind is SectionKind.SIGNATURE:
        return last and index > len(_LEADING)
    return kind is SectionKind.RAMDISK


def _signature(file: BinaryIO, section: EifSection) -> "EifSignature | None":
    if section.kind is not SectionKind.SIGNATURE:
        return None
    from shared.measurement.eif_signature import MAX_SIGNATURE, parse_signature  # noqa: PLC0415 - see above

    return parse_signature(_payload(file, section, MAX_SIGNATURE, "eif.signature.size"))


def _payload(file: BinaryIO, section: EifSection, limit: int, code: str) -> bytes:
    if section.size > limit:
        raise InvalidEvidence(
            code, f"{section.kind.name.lower()} has {section.size} bytes, expected at most {limit}"
        )
    file.seek(section.offset)
    return _exactly(file, section.size)


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, _CHUNK))
        if not piece:
            _truncated()
        size -= len(piece)
        yield piece


def _exactly(file: BinaryIO, size: int) -> bytes:
    return b"".join(_pieces(file, size))


def _truncated() -> NoReturn:
    raise InvalidEvidence("eif.truncated", "file ends inside a header or section of an eif")


def _check_cmdline(cmdline: bytes) -> None:
    if not cmdline or len(cmdline) > MAX_CMDLINE:
        raise ConfigError("eif.cmdline", f"cmdline has {len(cmdline)} bytes, expected 1 to {MAX_CMDLINE}")
    if b"\0" in cmdline or cmdline != cmdline.strip():
        raise ConfigError("eif.cmdline", "cmdline has a NUL, or white space around it: it would be measured")
