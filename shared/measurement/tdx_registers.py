"""MRTD and RTMR0 to RTMR2 of a TDX guest, rebuilt from its image's document (spec attestation 7.6).

This is the lite check: no image is downloaded. Three RTMR0 digests, those of QEMU's ACPI tables, are taken
from the guest's own log, so RTMR0 shows nothing about the tables' content (measurement trap 12): a verdict
must say that they are unverified.
"""

import re
import struct
from collections.abc import Iterable
from hashlib import sha384
from itertools import pairwise
from typing import Final, NoReturn

import msgspec

from shared.attestation.envelope import TdxEvent
from shared.errors import InvalidEvidence
from shared.measurement.documents import (
    SHA384_BYTES,
    TdxMeasurement,
    bound_measurement,
    parse_tdx_measurement,
)
from shared.measurement.vm_config import VmConfig, attestation_variant

# QEMU patches the kernel by memory size; the document's digest holds for these sizes alone.
LITE_MEMORY: Final = 0x8000_0000
LITE_MEMORY_FROM: Final = 0xB000_0000
MAX_MEMORY: Final = 1 << 52  # what an x86 physical address can reach

PAGE: Final = 4096

MAX_TD_HOB_BYTES: Final = 512
MAX_RANGES: Final = 64  # a real firmware has four

_LOW_MEMORY_END: Final = 0x8000_0000
_HIGH_MEMORY: Final = 0x1_0000_0000
_ACCEPTED: Final = 0
_UNACCEPTED: Final = 7

_DEFAULT_QEMU: Final = "9.1.0"
_QEMU_VERSION: Final = re.compile(r"([0-9]{1,3})\.[0-9]{1,3}\.[0-9]{1,3}")
_OLDEST_QEMU: Final = 8
_SINGLE_PASS_QEMU: Final = 9

_ACPI_EVENT: Final = 10
_ACPI_PAYLOAD: Final = b"ACPI DATA"
_ACPI_NAMES: Final = ("acpi-loader", "acpi-rsdp", "acpi-tables")

# Constants of the one firmware build that images ship: its variable store, and its own boot entry.
_CFV: Final = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
)
_BOOT0000: Final = bytes.fromhex(
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"
)
_GLOBAL_VARIABLE: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
# Secure boot is off and its variables are empty: each is measured as a name without data.
_VARIABLES: Final = (
    (_GLOBAL_VARIABLE, "SecureBoot"),
    (_GLOBAL_VARIABLE, "PK"),
    (_GLOBAL_VARIABLE, "KEK"),
    (_IMAGE_SECURITY, "db"),
    (_IMAGE_SECURITY, "dbx"),
)
_SEPARATOR: Final = bytes(4)
_BOOT_ORDER: Final = bytes(2)
_RTMR1_ACTIONS: Final = (
    ("boot option called", b"Calling EFI Application from Boot Option"),
    ("separator", _SEPARATOR),
    ("boot services exited", b"Exit Boot Services Invocation"),
    ("boot services gone", b"Exit Boot Services Returned with Success"),
)


class AcpiDigests(msgspec.Struct, frozen=True):
    """The 48-byte digests of QEMU's ACPI loader script, root pointer and tables, as the guest logged them."""

    loader: bytes
    rsdp: bytes
    tables: bytes


class LiteRegisters(msgspec.Struct, frozen=True):
    """The four 48-byte registers that name a TDX guest's firmware, kernel, command line and initrd."""

    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes


class BootEvent(msgspec.Struct, frozen=True):
    """One digest that a boot extends into a register, and a few words on what was hashed."""

    label: str
    digest: bytes


class TdxBootEvents(msgspec.Struct, frozen=True):
    """What firmware and kernel extend into RTMR0, RTMR1 and RTMR2, in order; 48-byte digests."""

    rtmr0: tuple[BootEvent, ...]
    rtmr1: tuple[BootEvent, ...]
    rtmr2: tuple[BootEvent, ...]


class MemoryRanges(msgspec.Struct, frozen=True):
    """The memory that the firmware accepts by itself, as ascending (start, end) in bytes; the HOB's base."""

    hob_base: int
    accepted: tuple[tuple[int, int], ...]


def acpi_digests(events: Iterable[TdxEvent]) -> AcpiDigests:
    """Find the three ACPI digests in a TDX event log.

    Raises `InvalidEvidence("measurement.acpi")` unless RTMR0 has exactly three events of type 10 with payload
    `ACPI DATA`, each of the three names once, each digest 48 bytes.
    """
    found = [
        e for e in events if e.imr == 0 and e.event_type == _ACPI_EVENT and e.event_payload == _ACPI_PAYLOAD
    ]
    if len(found) != len(_ACPI_NAMES):
        raise InvalidEvidence("measurement.acpi", f"the log has {len(found)} acpi events, expected 3")
    digests = {event.event: event.digest for event in found}
    if digests.keys() != set(_ACPI_NAMES):
        raise InvalidEvidence(
            "measurement.acpi", f"the acpi events are not {', '.join(_ACPI_NAMES)}, once each"
        )
    if any(len(digest) != SHA384_BYTES for digest in digests.values()):
        raise InvalidEvidence("measurement.acpi", f"an acpi digest has not {SHA384_BYTES} bytes")
    return AcpiDigests(*(digests[name] for name in _ACPI_NAMES))


def uses_two_pass(config: VmConfig) -> bool:
    """Return whether QEMU added all of a section's pages before it measured them (trap 10).

    The field `qemu_single_pass_add_pages`, where set, is the answer as it stands: true means two-pass. Else
    QEMU 8 takes two passes and later ones a single pass; no version means 9.1.0. Raises
    `InvalidEvidence("measurement.qemu_version")` for a version before 8 or one that is not x.y.z.
    """
    match = _QEMU_VERSION.fullmatch(config.qemu_version or _DEFAULT_QEMU)
    if match is None or int(match[1]) < _OLDEST_QEMU:
        raise InvalidEvidence(
            "measurement.qemu_version",
            f"qemu_version is {config.qemu_version}, expected x.y.z from {_OLDEST_QEMU}.0.0 on",
        )
    if config.qemu_single_pass_add_pages is not None:
        return config.qemu_single_pass_add_pages
    return int(match[1]) < _SINGLE_PASS_QEMU


def parse_td_hob(witness: bytes) -> MemoryRanges:
    """Unpack a document's `td_hob`: LEB128 numbers of 4 KiB pages, ranges ascending and apart.

    Raises `InvalidEvidence("measurement.td_hob")` for a cut, over-long or not shortest number, more than 64
    ranges, an empty range, an overlap, one that reaches 2 GiB, a HOB outside the start of every range, and
    trailing bytes.
    """
    if len(witness) > MAX_TD_HOB_BYTES:
        _refuse_td_hob(f"has {len(witness)} bytes, expected at most {MAX_TD_HOB_BYTES}")
    base, at = _leb128(witness, 0)
    delta, at = _leb128(witness, at)
    count, at = _leb128(witness, at)
    if not 1 <= count <= MAX_RANGES:
        _refuse_td_hob(f"has {count} ranges, expected 1 to {MAX_RANGES}")
    accepted: list[tuple[int, int]] = []
    for _ in range(count):
        start, at = _leb128(witness, at)
        pages, at = _leb128(witness, at)
        first = (base + start) * PAGE
        accepted.append((first, first + pages * PAGE))
    if at != len(witness):
        _refuse_td_hob(f"has {len(witness) - at} trailing bytes, expected none")
    # Ranges below 2 GiB leave the last range of memory to be unaccepted, whatever the memory size.
    if any(start >= end or end >= _LOW_MEMORY_END for start, end in accepted):
        _refuse_td_hob("has an empty range or one that reaches 2 GiB")
    if any(before[1] > after[0] for before, after in pairwise(accepted)):
        _refuse_td_hob("has ranges that overlap or are out of order")
    hob_base = (base + delta) * PAGE
    if hob_base not in {start for start, _ in accepted}:
        _refuse_td_hob(f"puts the hob at {hob_base:#x}, where no range starts")
    return MemoryRanges(hob_base, tuple(accepted))


def encode_td_hob(ranges: MemoryRanges) -> bytes:
    """Pack what `parse_td_hob` unpacks. The ranges ascend and consist of pages; it judges the rest."""
    base = ranges.accepted[0][0]
    numbers = [base, ranges.hob_base - base]
    for start, end in ranges.accepted:
        numbers += [start - base, end - start]
    pages = [number // PAGE for number in numbers]
    return b"".join(_to_leb128(number) for number in (*pages[:2], len(ranges.accepted), *pages[2:]))


def build_td_hob(ranges: MemoryRanges, memory_size: int) -> bytes:
    """Return the hand-off block list that the host gives the firmware, as RTMR0's first event measures it."""
    resources: list[tuple[int, int, int]] = []
    at = 0
    for start, end in ranges.accepted:
        if start > at:
            resources.append((_UNACCEPTED, at, start - at))
        resources.append((_ACCEPTED, start, end - start))
        at = end
    if memory_size >= LITE_MEMORY_FROM:
        resources.append((_UNACCEPTED, at, _LOW_MEMORY_END - at))
        resources.append((_UNACCEPTED, _HIGH_MEMORY, memory_size - _LOW_MEMORY_END))
    else:
        resources.append((_UNACCEPTED, at, memory_size - at))
    listed = b"".join(
        struct.pack("<HHI16xIIQQ", 3, 48, 0, kind, 7, start, length) for kind, start, length in resources
    )
    end_of_list = ranges.hob_base + 56 + len(listed) + 8
    return struct.pack("<HHIII32xQ", 1, 56, 0, 9, 0, end_of_list) + listed


def tdx_boot_events(measurement: TdxMeasurement, hob: bytes, acpi: AcpiDigests) -> TdxBootEvents:
    """Return the events of a guest with this image, hand-off block list (`build_td_hob`) and ACPI digests."""
    return TdxBootEvents(
        rtmr0=(
            BootEvent("hand-off blocks", sha384(hob).digest()),
            BootEvent("firmware variables", _CFV),
            *(
                BootEvent(f"variable {name}", sha384(_variable(guid, name)).digest())
                for guid, name in _VARIABLES
            ),
            BootEvent("separator", sha384(_SEPARATOR).digest()),
            BootEvent("acpi loader", acpi.loader),
            BootEvent("acpi root pointer", acpi.rsdp),
            BootEvent("acpi tables", acpi.tables),
            BootEvent("boot order", sha384(_BOOT_ORDER).digest()),
            BootEvent("boot option", _BOOT0000),
        ),
        rtmr1=(
            BootEvent("kernel", measurement.kernel_authenticode),
            *(BootEvent(label, sha384(data).digest()) for label, data in _RTMR1_ACTIONS),
        ),
        rtmr2=(
            BootEvent("command line", measurement.cmdline_sha384),
            BootEvent("initrd", measurement.initrd_sha384),
        ),
    )


def tdx_registers(measurement: TdxMeasurement, events: TdxBootEvents, *, two_pass: bool) -> LiteRegisters:
    """Return the registers after these events; `two_pass` chooses the document's MRTD."""
    return LiteRegisters(
        mrtd=measurement.mrtd_two_pass if two_pass else measurement.mrtd_single_pass,
        rtmr0=_replay(events.rtmr0),
        rtmr1=_replay(events.rtmr1),
        rtmr2=_replay(events.rtmr2),
    )


def lite_registers(config: VmConfig, measurement: TdxMeasurement, acpi: AcpiDigests) -> LiteRegisters:
    """Return the registers that a guest of this config and image must show.

    Raises `InvalidEvidence`: `measurement.memory_size` (the document's kernel digest holds for exactly 2 GiB,
    and from 2816 MiB on), `measurement.qemu_version`, `measurement.td_hob`.
    """
    memory = config.memory_size
    if memory != LITE_MEMORY and not LITE_MEMORY_FROM <= memory <= MAX_MEMORY:
        raise InvalidEvidence(
            "measurement.memory_size",
            f"memory_size is {memory:#x}, expected {LITE_MEMORY:#x}, or from {LITE_MEMORY_FROM:#x} on",
        )
    two_pass = uses_two_pass(config)
    hob = build_td_hob(parse_td_hob(measurement.td_hob), memory)
    return tdx_registers(measurement, tdx_boot_events(measurement, hob, acpi), two_pass=two_pass)


def check_lite(config: VmConfig, events: Iterable[TdxEvent], quoted: LiteRegisters) -> LiteRegisters:
    """Check a verified quote's registers against the image that `config` names; return the expected ones.

    The caller has verified the quote. Steps, cheap ones first: (1) the config selects the lite check,
    (2) the document is bound to os_image_hash and read, (3) three ACPI digests come from the log, (4) the
    registers are rebuilt and compared. Raises `InvalidEvidence`: `measurement.variant`, what
    `bound_measurement`, `parse_tdx_measurement`, `acpi_digests` and `lite_registers` raise, and
    `measurement.mrtd`, `measurement.rtmr0`, `measurement.rtmr1`, `measurement.rtmr2`.
    """
    if attestation_variant(config) != "lite":
        raise InvalidEvidence("measurement.variant", "tdx_attestation_variant is legacy, expected lite")
    raw = bound_measurement(config.tdx_measurement, "tdx", config.os_image_hash)
    expected = lite_registers(config, parse_tdx_measurement(raw), acpi_digests(events))
    for name in LiteRegisters.__struct_fields__:
        got, want = getattr(quoted, name), getattr(expected, name)
        if got != want:
            raise InvalidEvidence(
                f"measurement.{name}", f"the quote's {name} is {got.hex()}, the image makes {want.hex()}"
            )
    return expected


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    # Four bytes hold page numbers up to 1 TiB, far above where firmware lies.
    for shift, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            if shift and not byte:
                _refuse_td_hob(f"has a number at offset {at} that is not in its shortest form")
            return value, at + shift + 1
    raise InvalidEvidence("measurement.td_hob", f"td_hob has no number of at most 4 bytes at offset {at}")


def _to_leb128(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _refuse_td_hob(what: str) -> NoReturn:
    raise InvalidEvidence("measurement.td_hob", f"td_hob {what}")


def _variable(guid: bytes, name: str) -> bytes:
    return guid + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")


def _replay(events: Iterable[BootEvent]) -> bytes:
    register = bytes(SHA384_BYTES)
    for event in events:
        register = sha384(register + event.digest).digest()
    return register
