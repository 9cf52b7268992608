"""Simulated boots: what firmware measures, and the logs that say so (spec attestation 3.3, 5.3)."""

import hashlib
from collections.abc import Sequence

from enclave.devices.tpm import Tpm
from shared.attestation.tcg_log import EV_NO_ACTION, Kind, TcgRecord

SHA256, SHA384 = 0x000B, 0x000C
_LENGTHS = {SHA256: 32, SHA384: 48}
_HASHES = {SHA256: hashlib.sha256, SHA384: hashlib.sha384}

EV_SEPARATOR = 4
EV_S_CRTM_VERSION = 8
EV_NONHOST_INFO = 0x11
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_GPT_EVENT = 0x80000006

_SEPARATOR = bytes(4)
# What Google's firmware measures of itself; 3 stands for TDX memory encryption.
_GCE_VERSION = "GCE Virtual Firmware v2\0".encode("utf-16-le")
_GCE_TECHNOLOGY = b"GCE NonHostInfo\0" + b"\x03" + bytes(15)

_END = b"\xff" * 4


def boot_gcp(tpm: Tpm, *, uki_digest: bytes, gpt: bytes = b"simulated disk") -> bytes:
    """Extend a fresh vTPM as a boot of one image does, and return the TPM's event log.

    PCR0 becomes the value of Google's TDX firmware. `uki_digest` is the image's Authenticode SHA-256: the
    third event of PCR2. Raises what `Tpm` does.
    """
    records = (
        _measured(0, EV_S_CRTM_VERSION, _GCE_VERSION),
        _measured(0, EV_NONHOST_INFO, _GCE_TECHNOLOGY),
        _measured(0, EV_SEPARATOR, _SEPARATOR),
        _measured(2, EV_SEPARATOR, _SEPARATOR),
        _measured(2, EV_EFI_GPT_EVENT, gpt),
        TcgRecord(2, EV_EFI_BOOT_SERVICES_APPLICATION, {SHA256: uki_digest}, b"simulated image"),
        _measured(2, EV_EFI_BOOT_SERVICES_APPLICATION, b"simulated kernel"),
    )
    for record in records:
        tpm.pcr_extend(record.index, {"sha256": record.digests[SHA256]})
    return encode_log(records, SHA256, kind="tpm")


def boot_tdx() -> tuple[bytes, tuple[bytes, bytes, bytes, bytes]]:
    """Return a CCEL of one event for each of RTMR0 to RTMR2, and the registers after it."""
    # the log counts registers from 1
    records = tuple(_measured(index + 1, EV_SEPARATOR, _SEPARATOR, SHA384) for index in range(3))
    first, second, third = (
        hashlib.sha384(bytes(_LENGTHS[SHA384]) + record.digests[SHA384]).digest() for record in records
    )
    return encode_log(records, SHA384, kind="ccel"), (first, second, third, bytes(_LENGTHS[SHA384]))


def encode_log(records: Sequence[TcgRecord], algorithm: int, *, kind: Kind) -> bytes:
    """Return the log of `records`, which have one digest each, as firmware leaves it in memory."""
    spec = b"Spec ID Event03\0" + bytes(4) + bytes([0, 2, 0, 2])
    spec += _le32(1) + _le16(algorithm) + _le16(_LENGTHS[algorithm]) + bytes(1)
    header = _le32(0) + _le32(EV_NO_ACTION) + bytes(20) + _le32(len(spec)) + spec
    body = b"".join(
        _le32(record.index)
        + _le32(record.event_type)
        + _le32(1)
        + _le16(algorithm)
        + record.digests[algorithm]
        + _le32(len(record.data))
        + record.data
        for record in records
    )
    return header + body + (_END if kind == "ccel" else b"")


def _measured(index: int, event_type: int, data: bytes, algorithm: int = SHA256) -> TcgRecord:
    return TcgRecord(index, event_type, {algorithm: _HASHES[algorithm](data).digest()}, data)


def _le16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _le32(value: int) -> bytes:
    return value.to_bytes(4, "little")
