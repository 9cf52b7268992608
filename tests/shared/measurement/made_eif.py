"""Enclave images and archives, well made and badly made."""

import io
import stat
import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from shared.measurement.cpio import CpioEntry, CpioWriter, read_cpio
from shared.measurement.eif import EifMeasurement, write_eif
from shared.measurement.eif_metadata import BuildMetadata, EifMetadata
from shared.measurement.eif_signature import EifSigner

DATA = Path(__file__).parents[2] / "data" / "measurement"
TINY = (DATA / "tiny.eif").read_bytes()
BOOT = (DATA / "boot.cpio").read_bytes()
APP = (DATA / "app.cpio").read_bytes()
KERNEL = b"KERNEL" * 16
CMDLINE = b"reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0"
METADATA = EifMetadata(
    image_name="hello",
    image_version="1",
    build_metadata=BuildMetadata(
        build_time="1970-01-01T00:00:00+00:00",
        build_tool="dstack-cloud",
        build_tool_version="0",
        operating_system="Linux",
        kernel_version="x",
    ),
    docker_info=None,
    custom_metadata=None,
)
NOT_BEFORE, NOT_AFTER = 1_700_000_000, 1_800_000_000
KERNEL_TYPE, CMDLINE_TYPE, RAMDISK_TYPE, SIGNATURE_TYPE, METADATA_TYPE = 1, 2, 3, 4, 5
TINY_SECTIONS = [
    (KERNEL_TYPE, KERNEL),
    (CMDLINE_TYPE, CMDLINE),
    (METADATA_TYPE, TINY[764:998]),
    (RAMDISK_TYPE, BOOT),
    (RAMDISK_TYPE, APP),
]


def image(
    *,
    kernel: bytes = KERNEL,
    cmdline: bytes = CMDLINE,
    ramdisks: Sequence[bytes] = (BOOT, APP),
    metadata: EifMetadata = METADATA,
    signer: EifSigner | None = None,
) -> tuple[bytes, EifMeasurement]:
    """An image as our writer makes it."""
    sink = io.BytesIO()
    measured = write_eif(
        sink,
        kernel=io.BytesIO(kernel),
        cmdline=cmdline,
        ramdisks=[io.BytesIO(one) for one in ramdisks],
        metadata=metadata,
        arch="x86_64",
        signer=signer,
    )
    return sink.getvalue(), measured


def raw_image(sections: Iterable[tuple[int, bytes]], **header: Any) -> bytes:
    """An image of any sections, packed here and not by our writer; `header` overrides its fields."""
    body = b""
    table = []
    for kind, payload in sections:
        table.append((548 + len(body), len(payload)))
        body += struct.pack(">HHQ", kind, header.get("section_flags", 0), len(payload)) + payload
    offsets = [offset for offset, _ in table][:32]
    sizes = [size for _, size in table][:32]
    head = struct.pack(
        ">4sHHQQHH32Q32QI",
        header.get("magic", b".eif"),
        header.get("version", 4),
        header.get("flags", 0),
        1 << 30,
        2,
        header.get("reserved", 0),
        header.get("count", len(table)),
        *offsets,
        *[header.get("unused_offset", 0)] * (32 - len(offsets)),
        *sizes,
        *[header.get("unused_size", 0)] * (32 - len(sizes)),
        header.get("unused", 0),
    )
    return head + struct.pack(">I", crc32(body, crc32(head))) + body


def signing_certificate(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, name: str = "signer"
) -> bytes:
    """A self-signed certificate in PEM."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        subject,
        subject,
        key.public_key(),
        7,
        datetime.fromtimestamp(NOT_BEFORE, UTC).replace(tzinfo=None),
        datetime.fromtimestamp(NOT_AFTER, UTC).replace(tzinfo=None),
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def archive(*entries: tuple[CpioEntry, bytes]) -> bytes:
    """An archive as our writer makes it."""
    out = bytearray()
    writer = CpioWriter(out.extend)
    for entry, data in entries:
        writer.add(entry, [data])
    writer.finish()
    assert writer.size == len(out)
    return bytes(out)


def raw_entry(path: bytes, data: bytes = b"", **fields: Any) -> bytes:
    """One entry of any numbers, packed here and not by our writer."""
    numbers = {
        "ino": 1,
        "mode": stat.S_IFREG | 0o644,
        "uid": 0,
        "gid": 0,
        "nlink": 1,
        "mtime": 0,
        "filesize": len(data),
        "devmajor": 0,
        "devminor": 0,
        "rdevmajor": 0,
        "rdevminor": 0,
        "namesize": len(path) + 1,
        "check": 0,
    }
    numbers.update({name: value for name, value in fields.items() if name in numbers})
    name = fields.get("magic", b"070701") + b"".join(b"%08x" % number for number in numbers.values())
    name += path + fields.get("end", b"\0")
    padding = fields.get("padding", b"\0\0\0")
    name += padding[: -len(name) % 4]
    return bytes(name + data + padding[: -len(data) % 4])


def raw_archive(*entries: bytes, tail: bytes = b"") -> bytes:
    return b"".join(entries) + raw_entry(b"TRAILER!!!", mode=0) + tail


def listed(raw: bytes) -> list[tuple[CpioEntry, bytes]]:
    return [(entry, b"".join(data)) for entry, data in read_cpio(io.BytesIO(raw))]
