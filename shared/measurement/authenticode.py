"""The digest that firmware measures of an EFI program (spec measurement 4.7, trap 11).

A TDX guest's kernel is measured so with SHA-384, a unified kernel image (UKI) in a vTPM with SHA-256.
Upstream and firmware hash the same bytes only of a plain file: headers, then sections that follow each other
without gaps, then nothing or one certificate table. Every other layout is refused, because two readers would
name two digests for it.
"""

import hashlib
import struct
from typing import BinaryIO, Final, Literal, NoReturn

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.disk_image import FileRange, range_of

Algorithm = Literal["sha256", "sha384"]

MAX_PE_BYTES: Final = 1 << 30  # a unified kernel image of 50 to 200 MB is usual
MAX_HEADER_BYTES: Final = 64 * 1024  # real headers have up to 4 KiB
MAX_SECTIONS: Final = 96  # what Windows loads; a unified kernel image has about a dozen

_CHUNK: Final = 1 << 20
_ALIGNMENT: Final = 8
_OPTIONAL_AT: Final = 24  # after the signature and the COFF header
# Offset of the data directories, by the magic number of PE32 and PE32+.
_DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}
_CERTIFICATES: Final = 4  # index of the certificate table among the data directories
_SECTION: Final = 40


class PeSection(msgspec.Struct, frozen=True):
    """A section with bytes in the file: `offset` and `size` there, `virtual_size` of what a loader maps."""

    name: bytes
    offset: int
    size: int
    virtual_size: int


class PeLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Where a PE file keeps what its digest skips or covers; offsets in bytes from the file's start.

    `sections` holds only those with bytes in the file, in the order of their offsets.
    """

    checksum: int
    certificate_entry: int
    headers_size: int
    sections: tuple[PeSection, ...]
    certificates_size: int
    file_size: int


def parse_pe(source: BinaryIO | FileRange) -> PeLayout:
    """Read the headers of a PE32 or PE32+ file.

    Raises `InvalidEvidence`: `pe.size` (over 1 GiB, or not divisible by 8), `pe.truncated`, `pe.magic`,
    `pe.headers` (a header that lies elsewhere than it may), `pe.sections` (too many, overlapping, with gaps,
    or beyond the end), `pe.certificates` (a table that is not the file's end), `pe.overlay` (bytes behind the
    sections of a file without a certificate table).
    """
    file = range_of(source)
    size = file.length
    if size > MAX_PE_BYTES or size % _ALIGNMENT:
        raise InvalidEvidence(
            "pe.size", f"pe file has {size} bytes, expected a multiple of 8, at most {MAX_PE_BYTES}"
        )
    head = file.read_at(0, min(size, MAX_HEADER_BYTES))
    if head[:2] != b"MZ":
        raise InvalidEvidence("pe.magic", "file does not start with MZ")
    pe = _number(head, 0x3C, 4)
    if _take(head, pe, 4) != b"PE\0\0":
        raise InvalidEvidence("pe.magic", f"file has no PE signature at offset {pe:#x}")
    count, optional_size = _number(head, pe + 6, 2), _number(head, pe + 20, 2)
    optional = pe + _OPTIONAL_AT
    directories = _DIRECTORIES.get(_number(head, optional, 2))
    if directories is None:
        raise InvalidEvidence("pe.magic", "optional header is neither PE32 nor PE32+")
    certificate_entry = optional + directories + 8 * _CERTIFICATES
    table = optional + optional_size
    if _number(head, optional + directories - 4, 4) <= _CERTIFICATES or certificate_entry + 8 > table:
        _refuse_headers("have no entry for a certificate table")
    headers_size = _number(head, optional + 60, 4)
    if not table + count * _SECTION <= headers_size <= len(head):
        _refuse_headers(f"say that they have {headers_size} bytes, which do not hold them or are too many")
    if not 0 < count <= MAX_SECTIONS:
        _refuse_sections(f"{count} sections, expected 1 to {MAX_SECTIONS}")
    sections = _sections(head, table, count)
    end = _check_contiguous(sections, headers_size, size)
    certificates_at, certificates_size = struct.unpack_from("<II", head, certificate_entry)
    _check_end(end, certificates_at, certificates_size, size)
    return PeLayout(
        checksum=optional + 64,
        certificate_entry=certificate_entry,
        headers_size=headers_size,
        sections=sections,
        certificates_size=certificates_size,
        file_size=size,
    )


def authenticode_digest(source: BinaryIO | FileRange, algorithm: Algorithm, *, head: bytes = b"") -> bytes:
    """Return the Authenticode digest of a PE file, read as a stream.

    `head` stands for the file's first bytes where a loader changes them (`kernel_setup.patch_kernel`); the
    layout is that of the changed file. Raises what `parse_pe` raises, and `pe.head` for a head that is longer
    than the file.
    """
    file = range_of(source)
    if head:
        if len(head) > file.length:
            raise InvalidEvidence("pe.head", f"file has {file.length} bytes, fewer than its head")
        file = file.with_head(head)
    layout = parse_pe(file)
    digest = hashlib.new(algorithm, usedforsecurity=True)
    at = 0
    skipped = ((layout.checksum, 4), (layout.certificate_entry, 8))
    # Sections follow the headers without a gap: what is hashed is the file but for three places.
    for start, length in (*skipped, (layout.file_size - layout.certificates_size, 0)):
        while at < start:
            part = file.read_at(at, min(_CHUNK, start - at))
            digest.update(part)
            at += len(part)
        at += length
    return digest.digest()


def pe_section(source: BinaryIO | FileRange, name: bytes) -> FileRange:
    """Return the content of the one section called `name`: as many bytes as a loader maps.

    Raises what `parse_pe` raises, and `InvalidEvidence("pe.section")` unless there is exactly one such
    section, whose mapped bytes are all in the file.
    """
    file = range_of(source)
    found = [section for section in parse_pe(file).sections if section.name == name]
    if len(found) != 1:
        raise InvalidEvidence("pe.section", f"file has {len(found)} sections {name!r}, expected one")
    section = found[0]
    if not 0 < section.virtual_size <= section.size:
        raise InvalidEvidence(
            "pe.section", f"section {name!r} maps {section.virtual_size} bytes, the file has {section.size}"
        )
    return file.part(section.offset, section.virtual_size)


def _sections(head: bytes, table: int, count: int) -> tuple[PeSection, ...]:
    sections = []
    for at in range(table, table + count * _SECTION, _SECTION):
        name, virtual_size, size, offset = struct.unpack_from("<8sI4xII", head, at)
        if size:
            sections.append(PeSection(name.rstrip(b"\0"), offset, size, virtual_size))
    return tuple(sorted(sections, key=lambda section: section.offset))


def _check_contiguous(sections: tuple[PeSection, ...], start: int, size: int) -> int:
    """Return where the sections end; they fill the file from `start` on."""
    for section in sections:
        if section.offset != start:
            _refuse_sections(f"a section at {section.offset:#x}, where {start:#x} follows what is before it")
        start += section.size
    if start > size:
        _refuse_sections(f"sections up to {start:#x}, beyond its {size:#x} bytes")
    return start


def _check_end(end: int, certificates_at: int, certificates_size: int, size: int) -> None:
    if certificates_size:
        if certificates_at < end or certificates_at + certificates_size != size:
            raise InvalidEvidence(
                "pe.certificates", "certificate table does not lie between the sections and the file's end"
            )
    elif certificates_at or end != size:
        raise InvalidEvidence(
            "pe.overlay", f"{size - end} bytes follow the sections, and there is no certificate table"
        )


def _take(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise InvalidEvidence("pe.truncated", f"file has no header of {length} bytes at offset {at:#x}")
    return data[at : at + length]


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(_take(data, at, width), "little")


def _refuse_headers(what: str) -> NoReturn:
    raise InvalidEvidence("pe.headers", f"headers {what}")


def _refuse_sections(what: str) -> NoReturn:
    raise InvalidEvidence("pe.sections", f"file has {what}")
