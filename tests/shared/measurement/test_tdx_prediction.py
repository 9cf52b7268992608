import hashlib
import io
import json
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path

import msgspec
import pytest

from shared.attestation.envelope import TdxEvent
from shared.measurement.authenticode import authenticode_digest
from shared.measurement.kernel_setup import patch_kernel
from shared.measurement.tdvf import mrtd
from shared.measurement.tdx_prediction import (
    EventDifference,
    TdxArtifacts,
    explain_boot,
    measure_tdx,
    measured_cmdline,
    predict_tdx,
)
from shared.measurement.tdx_registers import (
    LITE_MEMORY,
    BootEvent,
    MemoryRanges,
    acpi_digests,
    encode_td_hob,
    lite_registers,
    parse_td_hob,
    tdx_boot_events,
)
from shared.measurement.vm_config import VmConfig
from tests.shared.measurement.made import GIB, acpi_events, h48
from tests.shared.measurement.made_disks import CMDLINE, WITNESS, make_firmware, make_kernel, pe_digest
from tests.shared.refusal import refuses

FIRMWARE = make_firmware()
KERNEL = make_kernel()
INITRD = b"initrd" * 300_000
ACPI = acpi_digests(acpi_events())


def artifacts(**changes: object) -> TdxArtifacts:
    made = TdxArtifacts(FIRMWARE, io.BytesIO(KERNEL), io.BytesIO(INITRD), CMDLINE)
    return msgspec.structs.replace(made, **changes)


def config(memory_size: int = 2 * GIB, **fields: object) -> VmConfig:
    return msgspec.structs.replace(VmConfig(), memory_size=memory_size, **fields)


def log(prediction_config: VmConfig) -> list[TdxEvent]:
    events = predict_tdx(artifacts(), prediction_config, ACPI).events
    return [
        TdxEvent(imr=imr, event_type=1, digest=event.digest, event="", event_payload=b"")
        for imr, register in enumerate((events.rtmr0, events.rtmr1, events.rtmr2))
        for event in register
    ]


def test_measures_each_file_of_an_image() -> None:
    measured = measure_tdx(artifacts())
    patched = patch_kernel(KERNEL[:4096], initrd_size=len(INITRD), memory_size=0xB000_0000)
    assert measured.kernel_authenticode == pe_digest(patched + KERNEL[4096:], "sha384")
    assert measured.initrd_sha384 == sha384(INITRD).digest()
    assert measured.cmdline_sha384 == sha384((CMDLINE + " initrd=initrd\0").encode("utf-16-le")).digest()
    assert measured.mrtd_single_pass == mrtd(FIRMWARE, two_pass=False)
    assert measured.mrtd_two_pass == mrtd(FIRMWARE, two_pass=True)
    assert measured.td_hob == WITNESS


def test_the_command_line_of_the_specification() -> None:
    line = (
        "console=ttyS0 init=/init panic=1 net.ifnames=0 biosdevname=0 mce=off oops=panic pci=noearly "
        "pci=nommconf random.trust_cpu=y random.trust_bootloader=n tsc=reliable no-kvmclock "
        f"dstack.rootfs_hash={'ab' * 32} dstack.rootfs_size=1048576"
    )
    expected = (
        "5540637be22db958a981c1fedacaf4845fa30ed669c5b14ef0b5fd752fcac3118578bc53f391cbbb38dc2ea8908169b6"
    )
    assert hashlib.sha384(measured_cmdline(line)).hexdigest() == expected


@pytest.mark.parametrize("line", ["a\nb", "ü", "x" * 2048, "nul\0"])
def test_refuses_a_command_line_that_is_no_plain_text(line: str) -> None:
    with refuses("measurement.cmdline"):
        measured_cmdline(line)


@pytest.mark.parametrize("memory", [2 * GIB, 3 * GIB, 64 * GIB])
@pytest.mark.parametrize("qemu", ["8.2.2", "9.2.1"])
def test_agrees_with_the_lite_check_where_that_holds(memory: int, qemu: str) -> None:
    chosen = config(memory, qemu_version=qemu)
    predicted = predict_tdx(artifacts(), chosen, ACPI).registers
    assert predicted == lite_registers(chosen, measure_tdx(artifacts()), ACPI)


def test_other_memory_sizes_change_the_kernel_and_the_hand_off_blocks() -> None:
    lite = predict_tdx(artifacts(), config(2 * GIB), ACPI)
    small = predict_tdx(artifacts(), config(GIB), ACPI)
    assert small.registers.rtmr0 != lite.registers.rtmr0
    assert small.registers.rtmr1 != lite.registers.rtmr1
    assert small.registers.rtmr2 == lite.registers.rtmr2
    patched = patch_kernel(KERNEL[:4096], initrd_size=len(INITRD), memory_size=GIB)
    assert small.events.rtmr1[0].digest == authenticode_digest(io.BytesIO(KERNEL), "sha384", head=patched)


@pytest.mark.parametrize("memory", [0, (64 << 20) - 1, 1 << 53])
def test_refuses_memory_that_no_guest_has(memory: int) -> None:
    with refuses("measurement.memory_size"):
        predict_tdx(artifacts(), config(memory), ACPI)


def test_refuses_memory_below_what_the_firmware_accepts() -> None:
    high = make_firmware([(0, 0, 0x7000000, 0x1000, 2, 0)])
    with refuses("measurement.memory_size"):
        predict_tdx(artifacts(firmware=high), config(64 << 20), ACPI)


def test_refuses_an_unknown_qemu() -> None:
    with refuses("measurement.qemu_version"):
        predict_tdx(artifacts(), config(qemu_version="7.2.0"), ACPI)


def test_refuses_a_kernel_shorter_than_its_header() -> None:
    with refuses("kernel.truncated"):
        measure_tdx(artifacts(kernel=io.BytesIO(KERNEL[:4000])))


def test_ranges_come_back_from_their_witness() -> None:
    assert encode_td_hob(parse_td_hob(WITNESS)) == WITNESS
    ranges = MemoryRanges(0x3000, ((0x3000, 0x204000), (0x7000000, 0x7001000)))
    assert parse_td_hob(encode_td_hob(ranges)) == ranges


def test_a_boot_as_predicted_has_no_difference() -> None:
    expected = predict_tdx(artifacts(), config(), ACPI).events
    runtime = TdxEvent(imr=3, event_type=1, digest=h48("app"), event="app-id", event_payload=b"")
    assert explain_boot(expected, [*log(config()), runtime]) == ()


def test_a_difference_names_register_place_and_cause() -> None:
    expected = predict_tdx(artifacts(), config(), ACPI).events
    differences = explain_boot(expected, log(config(GIB)))
    assert [(item.register, item.index, item.label) for item in differences] == [
        ("rtmr0", 0, "hand-off blocks"),
        ("rtmr1", 0, "kernel"),
    ]
    assert differences[1].expected == expected.rtmr1[0].digest
    assert differences[1].actual not in {None, expected.rtmr1[0].digest}


def test_events_that_are_missing_or_too_many_are_named() -> None:
    expected = predict_tdx(artifacts(), config(), ACPI).events
    events = log(config())[:-1]
    more = TdxEvent(imr=1, event_type=0x80000003, digest=h48("more"), event="", event_payload=b"")
    named = TdxEvent(imr=1, event_type=1, digest=h48("named"), event="acpi-loader", event_payload=b"")
    assert explain_boot(expected, [*events, more, named]) == (
        EventDifference("rtmr1", 5, "type 0x80000003", None, h48("more")),
        EventDifference("rtmr1", 6, "acpi-loader", None, h48("named")),
        EventDifference("rtmr2", 1, "initrd", expected.rtmr2[1].digest, None),
    )


def test_every_event_of_a_boot_has_a_label() -> None:
    events = predict_tdx(artifacts(), config(), ACPI).events
    assert [event.label for event in events.rtmr0][2:7] == [
        "variable SecureBoot",
        "variable PK",
        "variable KEK",
        "variable db",
        "variable dbx",
    ]
    assert len(events.rtmr0) == 13
    assert len(events.rtmr1) == 5
    assert events.rtmr2 == (
        BootEvent("command line", measure_tdx(artifacts()).cmdline_sha384),
        BootEvent("initrd", sha384(INITRD).digest()),
    )


def test_the_fixture_of_a_large_guest_logs_the_predicted_blocks(shared_data: Callable[[str], Path]) -> None:
    from shared.measurement.tdx_registers import build_td_hob  # noqa: PLC0415 - used here alone

    expected = (
        "8ae1e425351df7992c444586eff99d35af3b779aa2b0e981cb4b73bc5b279f2ade19b6a62a203fc3c3bbdaae80af596d"
    )
    vectors = json.loads(shared_data("measurement/vectors.json").read_text())
    outputs = {vector["output"] for vector in vectors if vector["name"] == "td_hob sha384"}
    hob = build_td_hob(parse_td_hob(WITNESS), 64 * GIB)
    events = tdx_boot_events(measure_tdx(artifacts()), hob, ACPI)
    assert events.rtmr0[0].digest.hex() == expected
    assert expected in outputs


def test_documents_are_made_for_the_usual_memory() -> None:
    assert measure_tdx(artifacts()) == measure_tdx(artifacts(), memory_size=LITE_MEMORY)
