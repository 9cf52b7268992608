"""What a Google Compute Engine guest measures while it boots an image (spec attestation section 5.3).

The firmware's events are the real ones, so PCR0 is what verifiers know. A plain listing of a directory stands
for the unified kernel image: a changed byte, name or permission changes the
digest, its measurement document, and with that the os_image_hash.
"""

import hashlib
from pathlib import Path

import msgspec

from enclave.simulator.image import serialised
from enclave.simulator.tcg_log import SHA256, SHA384, encode_tcg_log
from shared.attestation.gcp import FIRMWARE_PCR, IMAGE_PCR
from shared.attestation.tcg_log import TcgRecord
from shared.measurement.documents import (
    MeasurementDocument,
    document_to_base64,
    gcp_measurement_document,
)

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


class Extension(msgspec.Struct, frozen=True):
    """One extension of a register. `text` is what was measured; its digest is what counts."""

    register: int
    event_type: int
    digest: bytes
    text: bytes = b""


class GcpBoot(msgspec.Struct, frozen=True, kw_only=True):
    """One image's boot: what it extends into PCRs (SHA-256) and RTMRs (SHA-384), and its own description."""

    os_image_hash: bytes
    document: MeasurementDocument
    pcr_events: tuple[Extension, ...]
    rtmr_events: tuple[Extension, ...]

    @classmethod
    def of(cls, image: Path) -> "GcpBoot":
        """Measure the image whose files are below `image`.

        Raises `ConfigError`: `simulator.image.missing`, `simulator.image.entry`.
        """
        content = b"".join(serialised(image))
        kernel = b"simulated kernel of " + hashlib.sha256(content).digest()
        checksum_file, measurement, image_hash = gcp_measurement_document(hashlib.sha256(content).digest())
        return cls(
            os_image_hash=image_hash,
            document=MeasurementDocument(checksum_file, measurement),
            pcr_events=(
                _pcr(FIRMWARE_PCR, _EV_S_CRTM_VERSION, _VERSION),
                _pcr(FIRMWARE_PCR, _EV_NONHOST_INFO, _NONHOST_INFO),
                _pcr(FIRMWARE_PCR, _EV_SEPARATOR, _SEPARATOR),
                _pcr(IMAGE_PCR, _EV_SEPARATOR, _SEPARATOR),
                _pcr(IMAGE_PCR, _EV_GPT, _PARTITION_TABLE),
                _pcr(IMAGE_PCR, _EV_APPLICATION, content, shown=b"simulated uki"),
                _pcr(IMAGE_PCR, _EV_APPLICATION, kernel),
            ),
            rtmr_events=(
                _rtmr(0, _EV_S_CRTM_VERSION, _VERSION),
                _rtmr(0, _EV_SEPARATOR, _SEPARATOR),
                _rtmr(1, _EV_ACTION, _CALLING),
                _rtmr(1, _EV_SEPARATOR, _SEPARATOR),
                _rtmr(1, _EV_GPT, _PARTITION_TABLE),
                _rtmr(1, _EV_APPLICATION, content, shown=b"simulated uki"),
                _rtmr(1, _EV_APPLICATION, kernel),
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


def _pcr(register: int, event_type: int, measured: bytes, *, shown: bytes | None = None) -> Extension:
    text = measured if shown is None else shown
    return Extension(register, event_type, hashlib.sha256(measured).digest(), text)


def _rtmr(register: int, event_type: int, measured: bytes, *, shown: bytes | None = None) -> Extension:
    text = measured if shown is None else shown
    return Extension(register, event_type, hashlib.sha384(measured).digest(), text)
