"""Programs, firmware and tables made on the spot, byte by byte: none of the code under test makes them."""

import hashlib
import io
from struct import pack
from typing import Any


class Holes(io.BytesIO):
    """A file with these parts at their places, and zeros between and behind them, which nobody holds."""

    def __init__(self, size: int, parts: dict[int, bytes]) -> None:
        super().__init__()
        self._size, self._parts, self._at = size, parts, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == io.SEEK_END else 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        data = bytearray(size)
        for start, part in self._parts.items():
            low, high = max(start, self._at), min(start + len(part), self._at + size)
            if low < high:
                data[low - self._at : high - self._at] = part[low - start : high - start]
        self._at += size
        return bytes(data)


SECTION_ALIGNMENT = 512
HEADERS = 0x400


def make_pe(
    sections: list[tuple[bytes, bytes]],
    *,
    plus: bool = True,
    certificates: bytes = b"",
    overlay: bytes = b"",
    directories: int = 16,
    virtual_sizes: dict[bytes, int] | None = None,
) -> bytes:
    """Return a PE file of these (name, content) sections; content is padded with zeros in the file."""
    fixed = 112 if plus else 96
    optional_size = fixed + 8 * directories
    table, body, at = b"", b"", HEADERS
    for name, content in sections:
        padded = content.ljust(-(-len(content) // SECTION_ALIGNMENT) * SECTION_ALIGNMENT, b"\0")
        virtual = (virtual_sizes or {}).get(name, len(content))
        table += pack("<8sIIII8xHHI", name, virtual, 0x1000, len(padded), at if padded else 0, 0, 0, 0)
        body += padded
        at += len(padded)
    body += overlay
    at += len(overlay)
    optional = pack("<H", 0x20B if plus else 0x10B).ljust(60, b"\0") + pack("<II", HEADERS, 0xDEADBEEF)
    optional = optional.ljust(fixed - 4, b"\0") + pack("<I", directories)
    table_entry = pack("<II", at, len(certificates)) if certificates else bytes(8)
    entries = [table_entry if index == 4 else bytes(8) for index in range(16)]
    optional += b"".join(entries[:directories])
    head = b"MZ".ljust(0x3C, b"\0") + pack("<I", 0x40)
    head += b"PE\0\0" + pack("<HH12xHH", 0x8664, len(sections), optional_size, 0x206) + optional + table
    assert len(head) <= HEADERS
    return head.ljust(HEADERS, b"\0") + body + certificates


def pe_digest(data: bytes, algorithm: str, *, plus: bool = True, certificates: int = 0) -> bytes:
    """Return the Authenticode digest of a file of `make_pe`, cut by hand."""
    checksum = 0x40 + 24 + 64
    entry = 0x40 + 24 + (112 if plus else 96) + 32
    hashed = data[:checksum] + data[checksum + 4 : entry] + data[entry + 8 : len(data) - certificates]
    return hashlib.new(algorithm, hashed).digest()


def make_kernel(*, protocol: int = 0x20C, flags: int = 1, extended: int = 0x40, limit: int = 0) -> bytes:
    """Return a kernel whose setup header lies in the gap behind the section table, as a bzImage's does."""
    data = bytearray(make_pe([(b".setup", b"setup" * 1000), (b".text", b"kernel" * 500)]))
    data[0x206:0x208] = protocol.to_bytes(2, "little")
    data[0x210:0x212] = bytes([0, flags])
    data[0x22C:0x230] = limit.to_bytes(4, "little")
    data[0x236:0x238] = extended.to_bytes(2, "little")
    return bytes(data)


def make_uki(kernel: bytes | None = None) -> bytes:
    return make_pe(
        [
            (b".text", b"stub" * 300),
            (b".osrel", b"ID=test\n"),
            (b".cmdline", b"console=ttyS0"),
            (b".linux", make_kernel() if kernel is None else kernel),
        ]
    )


# data offset, data size, address, memory size, kind, attributes; the memory is that of dstack's own firmware
FIRMWARE_SECTIONS: list[tuple[int, ...]] = [
    (0x2000, 0x3000, 0xFFFFD000, 0x3000, 0, 1),
    (0, 0x2000, 0xFFFFB000, 0x2000, 1, 0),
    (0, 0, 0x810000, 0x10000, 3, 0),
    (0, 0, 0x80B000, 0x2000, 3, 0),
    (0, 0, 0x809000, 0x2000, 2, 0),
    (0, 0, 0x800000, 0x6000, 3, 0),
]
WITNESS = bytes.fromhex("80100904000609020b021010")
TABLE_GUID = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
METADATA_GUID = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
OTHER_GUID = bytes(range(16))


def make_firmware(sections: list[tuple[int, ...]] | None = None, **changes: Any) -> bytes:
    """Return firmware of 0x5000 bytes: a descriptor in its middle, the table of GUIDs at its end."""
    sections = FIRMWARE_SECTIONS if sections is None else sections
    size, at = 0x5000, 0x3000
    listed = b"".join(pack("<IIQQII", *section) for section in sections)
    descriptor = pack(
        "<4sIII",
        changes.get("signature", b"TDVF"),
        changes.get("length", 16 + len(listed)),
        changes.get("version", 1),
        changes.get("count", len(sections)),
    )
    pointer = pack("<I", changes.get("distance", size - at))
    metadata = changes.get("metadata", pointer + pack("<H", 22) + METADATA_GUID)
    other = changes.get("other", b"data" + pack("<H", 22) + OTHER_GUID)
    entries = metadata + other
    table_length = changes.get("table_length", len(entries) + 18)
    entries += pack("<H", table_length) + changes.get("guid", TABLE_GUID)
    data = bytearray(bytes(range(251)) * 82)[:size]
    data[at : at + len(descriptor) + len(listed)] = descriptor + listed
    data[size - 32 - len(entries) : size - 32] = entries
    return bytes(data)


def slow_mrtd(firmware: bytes, sections: list[tuple[int, ...]], *, two_pass: bool) -> bytes:
    """Return MRTD by the words of the specification, with a list of records for each section."""
    digest = hashlib.sha384()
    for offset, _, address, size, _, attributes in sections:
        adds, extends = [], []
        for page in range(0, size, 4096):
            add = b"MEM.PAGE.ADD".ljust(16, b"\0") + pack("<Q", address + page) + bytes(104)
            adds.append(add if not attributes & 2 else b"")
            chunks = [
                b"MR.EXTEND".ljust(16, b"\0")
                + pack("<Q", address + page + at)
                + bytes(104)
                + firmware[offset + page + at : offset + page + at + 256]
                for at in range(0, 4096, 256)
            ]
            extends.append(b"".join(chunks) if attributes & 1 else b"")
        if two_pass:
            digest.update(b"".join(adds + extends))
        else:
            digest.update(b"".join(a + e for a, e in zip(adds, extends, strict=True)))
    return digest.digest()


CMDLINE = "console=ttyS0 init=/init dstack.rootfs_hash=" + "ab" * 32 + " dstack.rootfs_size=1048576"
