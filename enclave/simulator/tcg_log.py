"""Writes firmware logs in TCG's crypto-agile format, as `shared.attestation.tcg_log` reads them."""

import struct
from collections.abc import Sequence

from shared.attestation.tcg_log import EV_NO_ACTION, Kind, TcgRecord

SHA256, SHA384 = 0xB, 0xC

_SIZES = {SHA256: 32, SHA384: 48}
_END = b"\xff" * 4
# A CCEL numbers registers from 1, its header included.
_HEADER_INDEX: dict[Kind, int] = {"tpm": 0, "ccel": 1}


def encode_tcg_log(records: Sequence[TcgRecord], *, kind: Kind, algorithm: int) -> bytes:
    """Return the log of `records`, which carry one digest each, of `algorithm`."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1)
    spec += struct.pack("<HHB", algorithm, _SIZES[algorithm], 0)
    header = struct.pack("<II20sI", _HEADER_INDEX[kind], EV_NO_ACTION, b"", len(spec)) + spec
    body = b"".join(
        struct.pack("<IIIH", record.index, record.event_type, 1, algorithm)
        + record.digests[algorithm]
        + struct.pack("<I", len(record.data))
        + record.data
        for record in records
    )
    return header + body + (_END if kind == "ccel" else b"")
