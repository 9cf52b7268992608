"""Firmware's measurement logs: CCEL of a TDX guest, and the log of a TPM (spec attestation section 3.3).

Both are TCG's crypto-agile format, little-endian. A log proves nothing until its digests replay to a quoted
register; the names and payloads in it are not covered by the digests.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NoReturn

import msgspec

from shared.attestation.envelope import TdxEvent, TpmEvent
from shared.attestation.event_log import ACPI_EVENT_TYPE, ACPI_PAYLOAD, MAX_EVENTS
from shared.errors import InvalidEvidence

# Firmware reserves 64 KiB for a CCEL; a Google Cloud guest's TPM log has 30 KiB.
MAX_LOG: Final = 1024 * 1024
EV_NO_ACTION: Final = 3

# algorithm -> digest length; SHA-1, SHA-256, SHA-384, SHA-512
_LENGTHS: Final = {0x4: 20, 0xB: 32, 0xC: 48, 0xD: 64}
_SHA256: Final = 0xB
_SHA384: Final = 0xC
_SIGNATURE: Final = b"Spec ID Event03\0"
_END: Final = 0xFFFFFFFF
_ACPI_NAMES: Final = ("acpi-loader", "acpi-rsdp", "acpi-tables")

Kind = Literal["ccel", "tpm"]


class TcgRecord(msgspec.Struct, frozen=True):
    """One record. `index` is the register's number in the log; `digests` maps an algorithm id to a digest."""

    index: int
    event_type: int
    digests: dict[int, bytes]
    data: bytes


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise InvalidEvidence(
                "tcg_log.truncated",
                f"log needs {count} bytes at offset {self.at}, only {self.left()} are left",
            )
        start = self.at
        self.at += count
        return self._data[start : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")


def parse_tcg_log(data: bytes, *, kind: Kind) -> tuple[TcgRecord, ...]:
    """Parse a log into its records, without the header record.

    A CCEL ends at a register index of all ones and is padded behind it; a TPM log may also end with the
    data. Raises `InvalidEvidence`: `tcg_log.size`, `tcg_log.truncated`, `tcg_log.header`,
    `tcg_log.algorithm` for a hash that is not known or not announced, `tcg_log.digests` for records that do
    not carry each announced hash once, `tcg_log.count`.
    """
    if len(data) > MAX_LOG:
        raise InvalidEvidence("tcg_log.size", f"log has {len(data)} bytes, at most {MAX_LOG} are read")
    cursor = _Cursor(data)
    algorithms = _read_header(cursor)
    records: list[TcgRecord] = []
    while kind == "ccel" or cursor.left():
        index = cursor.number(4)
        if index == _END:
            break
        if len(records) == MAX_EVENTS:
            raise InvalidEvidence("tcg_log.count", f"log has more than {MAX_EVENTS} records")
        event_type = cursor.number(4)
        digests = _read_digests(cursor, algorithms)
        records.append(TcgRecord(index, event_type, digests, cursor.take(cursor.number(4))))
    return tuple(records)


def _read_header(cursor: _Cursor) -> frozenset[int]:
    """Read the first record, of the format before crypto agility; return the algorithms that it announces."""
    cursor.take(4)  # a register index: 0 in a TPM log, 1 in a CCEL
    if cursor.number(4) != EV_NO_ACTION:
        _refuse_header("is no event that extends nothing")
    cursor.take(20)
    header = _Cursor(cursor.take(cursor.number(4)))
    if header.take(len(_SIGNATURE)) != _SIGNATURE:
        _refuse_header("has another signature than Spec ID Event03")
    header.take(8)  # platform class, version, size of an uint
    count = header.number(4)
    if not 0 < count <= len(_LENGTHS):
        _refuse_header(f"announces {count} hash algorithms, expected 1 to {len(_LENGTHS)}")
    algorithms = set()
    for _ in range(count):
        algorithm, size = header.number(2), header.number(2)
        if _LENGTHS.get(algorithm) != size:
            raise InvalidEvidence(
                "tcg_log.algorithm", f"log announces hash algorithm {algorithm:#x} of {size} bytes"
            )
        algorithms.add(algorithm)
    header.take(header.number(1))
    if header.left() or len(algorithms) != count:
        _refuse_header("has trailing bytes or announces an algorithm twice")
    return frozenset(algorithms)


def _read_digests(cursor: _Cursor, algorithms: frozenset[int]) -> dict[int, bytes]:
    count = cursor.number(4)
    if count != len(algorithms):
        raise InvalidEvidence(
            "tcg_log.digests", f"record has {count} digests, the log's header announces {len(algorithms)}"
        )
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = cursor.number(2)
        if algorithm not in algorithms:
            raise InvalidEvidence(
                "tcg_log.algorithm",
                f"record has a digest of algorithm {algorithm:#x}, which is not announced",
            )
        if algorithm in digests:
            raise InvalidEvidence("tcg_log.digests", f"record has two digests of algorithm {algorithm:#x}")
        digests[algorithm] = cursor.take(_LENGTHS[algorithm])
    return digests


def ccel_events(data: bytes) -> tuple[TdxEvent, ...]:
    """Return the boot events of a TDX guest from its CCEL; the guest appends its runtime events.

    The log numbers registers from 1, and records of register 0 are dropped. The RTMR0 records that carry
    ACPI data are named in their order. Raises `InvalidEvidence`: those of `parse_tcg_log`,
    `tcg_log.digests` when a record has not exactly one digest, of SHA-384.
    """
    events: list[TdxEvent] = []
    names = iter(_ACPI_NAMES)
    for record in parse_tcg_log(data, kind="ccel"):
        if record.index == 0:
            continue
        if list(record.digests) != [_SHA384]:
            raise InvalidEvidence("tcg_log.digests", "ccel record has not exactly one digest, of sha-384")
        imr = record.index - 1
        acpi = imr == 0 and record.event_type == ACPI_EVENT_TYPE and record.data == ACPI_PAYLOAD
        events.append(
            TdxEvent(
                imr=imr,
                event_type=record.event_type,
                digest=record.digests[_SHA384],
                event=next(names, "") if acpi else "",
                event_payload=record.data,
            )
        )
    return tuple(events)


def tpm_events(data: bytes) -> tuple[TpmEvent, ...]:
    """Return the SHA-256 digests of a TPM log in order, of every register.

    Records that extend nothing are dropped. Raises `InvalidEvidence`: those of `parse_tcg_log`,
    `tcg_log.digests` when a record has no SHA-256 digest.
    """
    events: list[TpmEvent] = []
    for record in parse_tcg_log(data, kind="tpm"):
        if record.event_type == EV_NO_ACTION:
            continue
        if _SHA256 not in record.digests:
            raise InvalidEvidence("tcg_log.digests", "tpm log carries no sha-256 digests")
        events.append(TpmEvent(record.index, record.digests[_SHA256]))
    return tuple(events)


def replay_pcrs(events: Sequence[TpmEvent], pcrs: Iterable[int]) -> dict[int, bytes]:
    """Return the SHA-256 value that each of `pcrs` has after these events, from zero, in one pass.

    Raises `InvalidEvidence`: `event_log.count`, `tcg_log.digest` for a digest that is not 32 bytes.
    """
    if len(events) > MAX_EVENTS:
        raise InvalidEvidence(
            "event_log.count", f"event log has {len(events)} events, at most {MAX_EVENTS} are replayed"
        )
    values = dict.fromkeys(pcrs, bytes(32))
    for event in events:
        if event.pcr_index in values:
            if len(event.digest) != 32:
                raise InvalidEvidence(
                    "tcg_log.digest",
                    f"event of PCR{event.pcr_index} has {len(event.digest)} bytes, expected 32",
                )
            values[event.pcr_index] = hashlib.sha256(values[event.pcr_index] + event.digest).digest()
    return values


def _refuse_header(found: str) -> NoReturn:
    raise InvalidEvidence("tcg_log.header", f"first record of the log {found}")
