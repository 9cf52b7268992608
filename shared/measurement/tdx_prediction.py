"""What a TDX guest measures, predicted from an image's files, and how a boot differs from it (spec 4)."""

from collections.abc import Iterable, Sequence
from hashlib import sha384
from itertools import zip_longest
from typing import BinaryIO, Final

import msgspec

from shared.attestation.envelope import TdxEvent
from shared.errors import InvalidEvidence
from shared.measurement.authenticode import authenticode_digest
from shared.measurement.disk_image import FileRange, range_of
from shared.measurement.documents import TdxMeasurement
from shared.measurement.kernel_setup import HEAD_BYTES, patch_kernel
from shared.measurement.tdvf import mrtd, td_hob_witness
from shared.measurement.tdx_registers import (
    LITE_MEMORY_FROM,
    MAX_MEMORY,
    AcpiDigests,
    BootEvent,
    LiteRegisters,
    TdxBootEvents,
    build_td_hob,
    parse_td_hob,
    tdx_boot_events,
    tdx_registers,
    uses_two_pass,
)
from shared.measurement.vm_config import VmConfig

MAX_CMDLINE: Final = 2048  # what the kernel takes on x86; a real one has about 330 characters
# The firmware's own ranges end far below; QEMU's smallest useful guest has more.
MIN_MEMORY: Final = 64 << 20

_QEMU_SUFFIX: Final = " initrd=initrd"
_REGISTERS: Final = ("rtmr0", "rtmr1", "rtmr2")


class TdxArtifacts(msgspec.Struct, frozen=True):
    """The measured files of an image for QEMU: firmware, kernel, initrd, and metadata.json's command line."""

    firmware: bytes
    kernel: BinaryIO | FileRange
    initrd: BinaryIO | FileRange
    cmdline: str


class TdxPrediction(msgspec.Struct, frozen=True):
    """The registers that a guest must show, and the events they are made of."""

    registers: LiteRegisters
    events: TdxBootEvents


class EventDifference(msgspec.Struct, frozen=True):
    """An event that differs: its place in a register, what it is, and both digests; None where it is missing.

    `label` is the expected event's, or the log's own name for one that was not expected.
    """

    register: str
    index: int
    label: str
    expected: bytes | None
    actual: bytes | None


def measure_tdx(artifacts: TdxArtifacts, *, memory_size: int = LITE_MEMORY_FROM) -> TdxMeasurement:
    """Return the content of measurement.tdx.cbor for an image's files.

    `memory_size` in bytes enters the kernel's digest; the default is the one that documents are made with.
    Raises `InvalidEvidence`: `measurement.cmdline`, `pe.*`, `kernel.*`, `tdvf.*`, `measurement.td_hob`,
    `file.truncated`.
    """
    kernel, initrd = range_of(artifacts.kernel), range_of(artifacts.initrd)
    head = kernel.read_at(0, min(HEAD_BYTES, kernel.length))
    patched = patch_kernel(head, initrd_size=initrd.length, memory_size=memory_size)
    digest = sha384()
    for chunk in initrd.chunks():
        digest.update(chunk)
    return TdxMeasurement(
        cmdline_sha384=sha384(measured_cmdline(artifacts.cmdline)).digest(),
        kernel_authenticode=authenticode_digest(kernel, "sha384", head=patched),
        initrd_sha384=digest.digest(),
        mrtd_single_pass=mrtd(artifacts.firmware, two_pass=False),
        mrtd_two_pass=mrtd(artifacts.firmware, two_pass=True),
        td_hob=td_hob_witness(artifacts.firmware),
    )


def measured_cmdline(cmdline: str) -> bytes:
    """Return the bytes that are measured of metadata.json's command line on QEMU: UTF-16, with a final NUL.

    Raises `InvalidEvidence("measurement.cmdline")` for a text that is not printable ASCII, or over-long.
    """
    text = cmdline + _QEMU_SUFFIX
    if len(text) > MAX_CMDLINE or not (text.isascii() and text.isprintable()):
        raise InvalidEvidence(
            "measurement.cmdline", f"the command line is not printable ascii of at most {MAX_CMDLINE} bytes"
        )
    return (text + "\0").encode("utf-16-le")


def predict_tdx(artifacts: TdxArtifacts, config: VmConfig, acpi: AcpiDigests) -> TdxPrediction:
    """Return what a guest of any memory size must show, given the digests of its ACPI tables.

    The digests come from the tables that QEMU makes (`acpi_tables.predict_acpi`), or from the guest's log,
    and then show nothing about the tables. Raises `InvalidEvidence`: `measurement.memory_size`,
    `measurement.qemu_version`, and what `measure_tdx` raises.
    """
    memory = config.memory_size
    if not MIN_MEMORY <= memory <= MAX_MEMORY:
        raise InvalidEvidence(
            "measurement.memory_size", f"memory_size is {memory:#x}, expected at least {MIN_MEMORY:#x}"
        )
    two_pass = uses_two_pass(config)
    measurement = measure_tdx(artifacts, memory_size=memory)
    ranges = parse_td_hob(measurement.td_hob)
    if ranges.accepted[-1][1] >= memory:
        raise InvalidEvidence(
            "measurement.memory_size", f"memory_size is {memory:#x}, less than what the firmware accepts"
        )
    events = tdx_boot_events(measurement, build_td_hob(ranges, memory), acpi)
    return TdxPrediction(tdx_registers(measurement, events, two_pass=two_pass), events)


def explain_boot(expected: TdxBootEvents, log: Iterable[TdxEvent]) -> tuple[EventDifference, ...]:
    """Compare a guest's boot events with the expected ones, place by place; an empty result means equal.

    The caller has replayed the log to the quoted registers, or knows that the log may lie about digests.
    """
    actual: dict[int, list[BootEvent]] = {index: [] for index in range(len(_REGISTERS))}
    for event in log:
        if event.imr in actual:
            actual[event.imr].append(BootEvent(event.event or f"type {event.event_type:#x}", event.digest))
    differences: list[EventDifference] = []
    for index, name in enumerate(_REGISTERS):
        differences += explain_events(name, getattr(expected, name), actual[index])
    return tuple(differences)


def explain_events(
    register: str, expected: Sequence[BootEvent], actual: Sequence[BootEvent]
) -> tuple[EventDifference, ...]:
    """Compare one register's events, place by place."""
    differences = []
    for index, (want, got) in enumerate(zip_longest(expected, actual)):
        if want is not None and got is not None and want.digest == got.digest:
            continue
        label = got.label if want is None else want.label
        differences.append(
            EventDifference(
                register,
                index,
                label,
                None if want is None else want.digest,
                None if got is None else got.digest,
            )
        )
    return tuple(differences)
