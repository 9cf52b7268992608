"""The firmware of a TDX guest: its metadata, MRTD, and the memory that it accepts (spec 4.2 and 4.4)."""

import struct
from collections.abc import Iterator
from hashlib import sha384
from typing import Final, NoReturn

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.tdx_registers import PAGE, MemoryRanges, encode_td_hob, parse_td_hob

MAX_FIRMWARE_BYTES: Final = 16 << 20  # real firmware has 2 or 4 MiB
MAX_SECTIONS: Final = 64  # a real firmware has six
# Pages that all sections measure together, so that a claimed size costs a second at most; real: about 550.
MAX_PAGES: Final = 16384

_TABLE_GUID: Final = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
_METADATA_GUID: Final = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
_TABLE_END: Final = 32  # bytes between the table's last GUID and the end of the file: the reset vector
_ENTRY: Final = 18  # each entry ends with its u16 length and its GUID
_DESCRIPTOR: Final = struct.Struct("<4sIII")
_SECTION: Final = struct.Struct("<IIQQII")
_VERSION: Final = 1

_TD_HOB: Final = 2
_TEMP_MEM: Final = 3
_LAST_TYPE: Final = 3
_MR_EXTEND: Final = 1
_PAGE_AUG: Final = 2

_CHUNK: Final = 256
_RECORD: Final = struct.Struct("<16sQ104x")


class TdvfSection(msgspec.Struct, frozen=True):
    """One range of guest memory: `data_size` bytes of the firmware file, then zeros up to `memory_size`.

    `kind` is 0 for boot code, 1 for the variable store, 2 for the hand-off block, 3 for scratch memory.
    `attributes`: bit 0 for content that is measured, bit 1 for pages that are added at run time.
    """

    data_offset: int
    data_size: int
    address: int
    memory_size: int
    kind: int
    attributes: int


def parse_tdvf(firmware: bytes) -> tuple[TdvfSection, ...]:
    """Read a firmware file's TDVF sections, in the order of its table.

    Raises `InvalidEvidence`: `tdvf.size` (over 16 MiB, or too small), `tdvf.table` (no table of GUIDs at the
    file's end, or a broken one), `tdvf.descriptor` (missing, of another version, with more than 64 sections),
    `tdvf.section` (unaligned, beyond the file, of an unknown type, measured in part, or over 64 MiB of pages
    in all).
    """
    if not _TABLE_END + _ENTRY <= len(firmware) <= MAX_FIRMWARE_BYTES:
        raise InvalidEvidence(
            "tdvf.size", f"firmware has {len(firmware)} bytes, expected at most {MAX_FIRMWARE_BYTES}"
        )
    at = len(firmware) - _descriptor_distance(firmware)
    if not 0 <= at <= len(firmware) - _DESCRIPTOR.size:
        _refuse_descriptor(f"lies at {at:#x}, outside the file")
    signature, length, version, count = _DESCRIPTOR.unpack_from(firmware, at)
    if signature != b"TDVF" or version != _VERSION:
        _refuse_descriptor(f"is {signature!r} of version {version}, expected TDVF of version {_VERSION}")
    end = at + _DESCRIPTOR.size + count * _SECTION.size
    if not 0 < count <= MAX_SECTIONS or length != end - at or end > len(firmware):
        _refuse_descriptor(f"has {length} bytes and {count} sections, which do not fit")
    fields = _SECTION.iter_unpack(firmware[at + _DESCRIPTOR.size : end])
    sections = tuple(TdvfSection(*section) for section in fields)
    for section in sections:
        _check_section(section, len(firmware))
    if sum(section.memory_size for section in sections) > MAX_PAGES * PAGE:
        raise InvalidEvidence("tdvf.section", f"sections have more than {MAX_PAGES} pages in all")
    return sections


def mrtd(firmware: bytes, *, two_pass: bool) -> bytes:
    """Return the 48-byte MRTD of a guest that starts from this firmware; raises as `parse_tdvf` does.

    `two_pass` is the order of QEMU 8 (`tdx_registers.uses_two_pass`): all pages of a section are added before
    its content is measured.
    """
    digest = sha384()
    for section in parse_tdvf(firmware):
        pages = range(section.address, section.address + section.memory_size, PAGE)
        added = not section.attributes & _PAGE_AUG
        content = firmware[section.data_offset : section.data_offset + section.memory_size]
        measured = bool(section.attributes & _MR_EXTEND)
        if two_pass:
            for page in pages if added else ():
                digest.update(_RECORD.pack(b"MEM.PAGE.ADD", page))
        for page in pages:
            if added and not two_pass:
                digest.update(_RECORD.pack(b"MEM.PAGE.ADD", page))
            if measured:
                for record in _extensions(content, section.address, page):
                    digest.update(record)
    return digest.digest()


def td_hob_witness(firmware: bytes) -> bytes:
    """Return the document's `td_hob` for this firmware: where it accepts memory, and where its HOB lies.

    Raises as `parse_tdvf` does, and `InvalidEvidence("tdvf.hob")` unless exactly one section is the HOB's,
    and `measurement.td_hob` for ranges that no document may carry (`tdx_registers.parse_td_hob`).
    """
    sections = parse_tdvf(firmware)
    hobs = [section.address for section in sections if section.kind == _TD_HOB]
    if len(hobs) != 1:
        raise InvalidEvidence("tdvf.hob", f"firmware has {len(hobs)} hand-off block sections, expected one")
    accepted = sorted(
        (section.address, section.address + section.memory_size)
        for section in sections
        if section.kind in {_TD_HOB, _TEMP_MEM}
    )
    witness = encode_td_hob(MemoryRanges(hobs[0], tuple(accepted)))
    parse_td_hob(witness)
    return witness


def _descriptor_distance(firmware: bytes) -> int:
    """Walk the table of GUIDs backwards; return how far before the file's end the descriptor lies."""
    end = len(firmware) - _TABLE_END - _ENTRY
    length = int.from_bytes(firmware[end : end + 2], "little")
    if firmware[end + 2 : end + _ENTRY] != _TABLE_GUID:
        _refuse_table("is missing at the end of the firmware")
    table = firmware[max(0, end - length) : end]
    at = len(table)
    while at >= _ENTRY:
        length = int.from_bytes(table[at - _ENTRY : at - 16], "little")
        if not _ENTRY <= length <= at:
            _refuse_table(f"has an entry of {length} bytes, expected {_ENTRY} to {at}")
        if table[at - 16 : at] == _METADATA_GUID:
            if length < _ENTRY + 4:
                _refuse_table("says nothing about where the descriptor lies")
            return int.from_bytes(table[at - _ENTRY - 4 : at - _ENTRY], "little")
        at -= length
    raise InvalidEvidence("tdvf.table", "table of guids does not name the TDVF descriptor")


def _check_section(section: TdvfSection, file_size: int) -> None:
    if section.kind > _LAST_TYPE:
        _refuse_section(section, f"is of type {section.kind}")
    if (
        section.address % PAGE
        or section.memory_size % PAGE
        or section.address + section.memory_size > 1 << 52
    ):
        _refuse_section(section, "is not made of pages of memory")
    if section.memory_size < section.data_size or section.data_offset + section.data_size > file_size:
        _refuse_section(section, "has more data than memory, or than the file")
    # What would be measured behind the data is a choice of the loader's, so nobody could name the digest.
    if section.attributes & _MR_EXTEND and section.data_size != section.memory_size:
        _refuse_section(section, "is measured, and not filled by the file")


def _extensions(content: bytes, address: int, page: int) -> Iterator[bytes]:
    for gpa in range(page, page + PAGE, _CHUNK):
        yield _RECORD.pack(b"MR.EXTEND", gpa) + content[gpa - address : gpa - address + _CHUNK]


def _refuse_table(what: str) -> NoReturn:
    raise InvalidEvidence("tdvf.table", f"table of guids {what}")


def _refuse_descriptor(what: str) -> NoReturn:
    raise InvalidEvidence("tdvf.descriptor", f"tdvf descriptor {what}")


def _refuse_section(section: TdvfSection, what: str) -> NoReturn:
    raise InvalidEvidence("tdvf.section", f"section at {section.address:#x} {what}")
