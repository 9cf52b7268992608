"""A TDX guest whose registers follow from its image's measurement document and its ACPI digests alone."""

import hashlib
from collections.abc import Callable
from typing import Final, Self

import msgspec

from enclave.devices.tdx_attestor import collect_tdx
from enclave.simulator.tcg_log import SHA384, encode_tcg_log
from enclave.simulator.tdx import Domain, SimulatedIntel, SimulatedTdx
from shared.attestation.envelope import Attestation, RuntimeEvent
from shared.attestation.event_log import ACPI_EVENT_TYPE, ACPI_PAYLOAD, RUNTIME_RTMR, event_digest
from shared.attestation.tcg_log import TcgRecord
from shared.measurement.documents import MeasurementDocument, TdxMeasurement, tdx_measurement_document
from shared.measurement.mr_config import mr_config_id_v1
from shared.measurement.tdx_registers import (
    AcpiDigests,
    BootEvent,
    LiteRegisters,
    build_td_hob,
    parse_td_hob,
    tdx_boot_events,
    tdx_registers,
)
from shared.measurement.vm_config import VmConfig, encode_vm_config

Attest = Callable[[bytes], Attestation]

# Firmware of 2 GiB: the pages that it accepts by itself, packed as in measurement.tdx.cbor.
_MEMORY: Final = 0x8000_0000
_TD_HOB: Final = bytes([0x10, 0x02, 0x02, 0x00, 0x01, 0x02, 0x02])
_EFI_ACTION: Final = 0x8000_0007
_ACPI_LABELS: Final = ("acpi loader", "acpi root pointer", "acpi tables")


class LiteImage(msgspec.Struct, frozen=True):
    """An OS image: what the host says of its guest, the registers that it makes, the log of its boot."""

    config: VmConfig
    registers: LiteRegisters
    boot_log: bytes

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the image with this content, whatever bytes they are."""
        parts = [hashlib.sha384(part + content).digest() for part in (b"kernel", b"cmdline", b"initrd")]
        firmware = [hashlib.sha384(part).digest() for part in (b"single pass", b"two pass")]
        measured = TdxMeasurement(
            kernel_authenticode=parts[0],
            cmdline_sha384=parts[1],
            initrd_sha384=parts[2],
            mrtd_single_pass=firmware[0],
            mrtd_two_pass=firmware[1],
            td_hob=_TD_HOB,
        )
        checksum_file, measurement, image_hash = tdx_measurement_document(measured)
        config = VmConfig(
            os_image_hash=image_hash,
            memory_size=_MEMORY,
            tdx_attestation_variant="lite",
            tdx_measurement=MeasurementDocument(checksum_file, measurement),
        )
        acpi = AcpiDigests(*(hashlib.sha384(name).digest() for name in (b"loader", b"rsdp", b"tables")))
        events = tdx_boot_events(measured, build_td_hob(parse_td_hob(_TD_HOB), _MEMORY), acpi)
        records = [
            _record(register, event)
            for register, booted in enumerate((events.rtmr0, events.rtmr1, events.rtmr2), 1)
            for event in booted
        ]
        return cls(
            config,
            tdx_registers(measured, events, two_pass=False),
            encode_tcg_log(records, kind="ccel", algorithm=SHA384),
        )

    def started(self, intel: SimulatedIntel, mr_config_id: bytes) -> SimulatedTdx:
        """Return a domain that booted it, into which the host bound `mr_config_id` (48 bytes)."""
        registers = self.registers
        return SimulatedTdx(
            intel,
            Domain(mrtd=registers.mrtd, mr_config_id=mr_config_id),
            rtmrs=(registers.rtmr0, registers.rtmr1, registers.rtmr2, bytes(48)),
            event_log=self.boot_log,
        )


def boot_lite(
    image: LiteImage, intel: SimulatedIntel, *, compose_hash: bytes, events: tuple[RuntimeEvent, ...]
) -> Attest:
    """Boot an app's guest that records `events`; return what makes its evidence over 64 bytes."""
    domain = image.started(intel, mr_config_id_v1(compose_hash))
    for event in events:
        domain.extend_rtmr(RUNTIME_RTMR, event_digest(event, "sha384"))

    def attest(report_data: bytes) -> Attestation:
        quote = collect_tdx(domain, report_data, events)
        return Attestation(quote, events, report_data, encode_vm_config(image.config))

    return attest


def _record(register: int, event: BootEvent) -> TcgRecord:
    """Return an entry of the log, whose registers count from 1 as a CCEL's do."""
    if event.label in _ACPI_LABELS:
        return TcgRecord(register, ACPI_EVENT_TYPE, {SHA384: event.digest}, ACPI_PAYLOAD)
    return TcgRecord(register, _EFI_ACTION, {SHA384: event.digest}, event.label.encode())
