"""What a Google Compute Engine guest measures while it boots an image (spec attestation section 5.3).

The firmware's events are the real ones, so PCR0 is what verifiers know. What boots is one of three things:

- a boot disk, measured as firmware does: partition table, unified kernel image (UKI), the kernel inside it;
- a dstack OS image without its disk: its measurement document says what the UKI's digest would be;
- any other directory, whose plain listing stands for the UKI: a changed byte, name or permission changes the
  digest, its measurement document, and with that the os_image_hash.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from enclave.simulator.image import serialised
from enclave.simulator.tcg_log import SHA256, SHA384, encode_tcg_log
from shared.attestation.gcp import FIRMWARE_PCR, IMAGE_PCR
from shared.attestation.tcg_log import TcgRecord
from shared.errors import ConfigError
from shared.measurement.authenticode import authenticode_digest
from shared.measurement.boot_disk import read_boot_disk, uki_kernel
from shared.measurement.documents import (
    MAX_MEASUREMENT_BYTES,
    MeasurementDocument,
    bound_measurement,
    document_to_base64,
    gcp_measurement_document,
    parse_gcp_measurement,
)
from shared.measurement.os_image import MAX_SUMS_BYTES, SUMS_NAME
from shared.measurement.os_image_directory import DISK_NAME

_EV_SEPARATOR = 0x4
_EV_S_CRTM_VERSION = 0x8
_EV_NONHOST_INFO = 0x11
_EV_IPL = 0xD
_EV_ACTION = 0x80000007
_EV_GPT = 0x80000006
_EV_APPLICATION = 0x80000003

_SEPARATOR = bytes(4)
_VERSION = "GCE Virtual Firmware v2\0".encode("utf-16-le")
_TDX_MEMORY_ENCRYPTION = b"\x03"
_NONHOST_INFO = b"GCE NonHostInfo\0" + _TDX_MEMORY_ENCRYPTION + bytes(15)
_PARTITION_TABLE = b"EFI PART" + b"simulated boot disk".ljust(84, b"\0")
_CALLING = b"Calling EFI Application from Boot Option"
_EXITING = b"Exit Boot Services Invocation"
_CMDLINE = b"console=ttyS0 dstack.simulated\0"
_UKI_TEXT, _KERNEL_TEXT = b"simulated uki", b"simulated kernel"
_MEASUREMENT_NAME = "measurement.gcp.cbor"


class Extension(msgspec.Struct, frozen=True):
    """One extension of a register. `text` is what was measured; its digest is what counts."""

    register: int
    event_type: int
    digest: bytes
    text: bytes = b""


class _Program(msgspec.Struct, frozen=True):
    """What firmware measures of a program that it starts: its digest in each kind of register."""

    sha256: bytes
    sha384: bytes

    @classmethod
    def named(cls, text: bytes) -> Self:
        """Return the digests of a text that stands for a program."""
        return cls(hashlib.sha256(text).digest(), hashlib.sha384(text).digest())


class GcpBoot(msgspec.Struct, frozen=True, kw_only=True):
    """One image's boot: what it extends into PCRs (SHA-256) and RTMRs (SHA-384), and its own description."""

    os_image_hash: bytes
    document: MeasurementDocument
    pcr_events: tuple[Extension, ...]
    rtmr_events: tuple[Extension, ...]

    @classmethod
    def of(cls, image: Path) -> Self:
        """Measure the image whose files are below `image`: a dstack OS image, or any directory.

        Raises `ConfigError`: `simulator.image.missing`, `simulator.image.entry`; for a dstack OS image what
        `of_document` and `of_disk` raise.
        """
        if (image / SUMS_NAME).is_file():
            return cls._of_os_image(image)
        content = b"".join(serialised(image))
        digest = hashlib.sha256(content).digest()
        checksum_file, measurement, _ = gcp_measurement_document(digest)
        uki = _Program.named(content)
        kernel = _Program.named(b"simulated kernel of " + digest)
        return cls._started(MeasurementDocument(checksum_file, measurement), _PARTITION_TABLE, uki, kernel)

    @classmethod
    def _of_os_image(cls, image: Path) -> Self:
        document = MeasurementDocument(
            _read(image / SUMS_NAME, MAX_SUMS_BYTES), _read(image / _MEASUREMENT_NAME, MAX_MEASUREMENT_BYTES)
        )
        disk = image / DISK_NAME
        if not disk.is_file():
            return cls.of_document(document)
        with disk.open("rb") as file:
            return cls.of_disk(file, document)

    @classmethod
    def of_document(cls, document: MeasurementDocument) -> Self:
        """Boot what a measurement document names, where there is no disk to be measured.

        PCR2 then has the document's digest for the UKI; the partition table and the kernel are made up.
        Raises `InvalidEvidence("measurement.*")` for a document that does not hold together.
        """
        raw = bound_measurement(document, "gcp", document.os_image_hash)
        digest = parse_gcp_measurement(raw).uki_auth
        uki = _Program(digest, hashlib.sha384(b"simulated uki of " + digest).digest())
        return cls._started(document, _PARTITION_TABLE, uki, _Program.named(b"simulated kernel of " + digest))

    @classmethod
    def of_disk(cls, disk: BinaryIO, document: MeasurementDocument) -> Self:
        """Measure a boot disk. `document` is what the host says of it, which counts for nothing here.

        Raises `InvalidEvidence`: `boot_disk.*`, `gpt.*`, `fat.*`, `pe.*`, `file.truncated`.
        """
        table, uki = read_boot_disk(disk)
        kernel = uki_kernel(uki)
        programs = [
            _Program(authenticode_digest(one, "sha256"), authenticode_digest(one, "sha384"))
            for one in (uki, kernel)
        ]
        return cls._started(document, table.boot_event(), *programs)

    @classmethod
    def _started(cls, document: MeasurementDocument, table: bytes, uki: _Program, kernel: _Program) -> Self:
        return cls(
            os_image_hash=document.os_image_hash,
            document=document,
            pcr_events=(
                _pcr(FIRMWARE_PCR, _EV_S_CRTM_VERSION, _VERSION),
                _pcr(FIRMWARE_PCR, _EV_NONHOST_INFO, _NONHOST_INFO),
                _pcr(FIRMWARE_PCR, _EV_SEPARATOR, _SEPARATOR),
                _pcr(IMAGE_PCR, _EV_SEPARATOR, _SEPARATOR),
                _pcr(IMAGE_PCR, _EV_GPT, table),
                Extension(IMAGE_PCR, _EV_APPLICATION, uki.sha256, _UKI_TEXT),
                Extension(IMAGE_PCR, _EV_APPLICATION, kernel.sha256, _KERNEL_TEXT),
            ),
            rtmr_events=(
                _rtmr(0, _EV_S_CRTM_VERSION, _VERSION),
                _rtmr(0, _EV_SEPARATOR, _SEPARATOR),
                _rtmr(1, _EV_ACTION, _CALLING),
                _rtmr(1, _EV_SEPARATOR, _SEPARATOR),
                _rtmr(1, _EV_GPT, table),
                Extension(1, _EV_APPLICATION, uki.sha384, _UKI_TEXT),
                Extension(1, _EV_APPLICATION, kernel.sha384, _KERNEL_TEXT),
                _rtmr(1, _EV_ACTION, _EXITING),
                _rtmr(2, _EV_IPL, _CMDLINE),
            ),
        )

    @property
    def vm_config(self) -> str:
        """The text that the host puts into the guest's sys-config."""
        config = {
            "os_image_hash": self.os_image_hash.hex(),
            "gcp_measurement": document_to_base64(self.document),
        }
        return msgspec.json.encode(config).decode()

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3 when the kernel starts."""
        values = [bytes(48)] * 4
        for event in self.rtmr_events:
            values[event.register] = hashlib.sha384(values[event.register] + event.digest).digest()
        return values[0], values[1], values[2], values[3]

    def pcr(self, index: int) -> bytes:
        """Return a register of the SHA-256 bank when the kernel starts."""
        value = bytes(32)
        for event in self.pcr_events:
            if event.register == index:
                value = hashlib.sha256(value + event.digest).digest()
        return value

    def tpm_log(self) -> bytes:
        """Return the TPM's boot log."""
        records = [TcgRecord(e.register, e.event_type, {SHA256: e.digest}, e.text) for e in self.pcr_events]
        return encode_tcg_log(records, kind="tpm", algorithm=SHA256)

    def ccel(self) -> bytes:
        """Return the domain's boot log, which counts registers from 1."""
        records = [
            TcgRecord(e.register + 1, e.event_type, {SHA384: e.digest}, e.text) for e in self.rtmr_events
        ]
        return encode_tcg_log(records, kind="ccel", algorithm=SHA384)


def _pcr(register: int, event_type: int, measured: bytes) -> Extension:
    return Extension(register, event_type, hashlib.sha256(measured).digest(), measured)


def _rtmr(register: int, event_type: int, measured: bytes) -> Extension:
    return Extension(register, event_type, hashlib.sha384(measured).digest(), measured)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError("simulator.image.missing", f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ConfigError("simulator.image.size", f"{path} is larger than {limit} bytes")
    return content
