import json
from collections.abc import Callable, Iterator
from hashlib import sha384
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest

from shared.attestation.envelope import TdxEvent, TdxQuote, decode_envelope
from shared.measurement.tdx_registers import (
    MAX_MEMORY,
    MAX_RANGES,
    MAX_TD_HOB_BYTES,
    LiteRegisters,
    acpi_digests,
    build_td_hob,
    check_lite,
    parse_td_hob,
    uses_two_pass,
)
from shared.measurement.vm_config import VmConfig, parse_vm_config
from tests.shared.measurement.made import (
    GIB,
    HOB_2_GIB,
    HOB_4_GIB,
    HOB_2816_MIB,
    TD_HOB,
    acpi_events,
    document,
    lite_quoted,
    lite_text,
    tdx_tree,
)
from tests.shared.refusal import refuses

FIXTURE_WITNESS = bytes.fromhex("80100904000609020b021010")


def registers_of(quote: bytes) -> LiteRegisters:
    return LiteRegisters(quote[184:232], quote[376:424], quote[424:472], quote[472:520])


def fixtures(shared_data: Callable[[str], Path]) -> Iterator[tuple[str, list[TdxEvent], bytes]]:
    body = json.loads(shared_data("attestation/upstream/verifier/tdx-lite-getquote.json").read_text())
    events = [
        TdxEvent(
            imr=event["imr"],
            event_type=event["event_type"],
            digest=bytes.fromhex(event["digest"]),
            event=event["event"],
            event_payload=bytes.fromhex(event["event_payload"]),
        )
        for event in json.loads(body["event_log"])
    ]
    yield body["vm_config"], events, bytes.fromhex(body["quote"])
    body = json.loads(shared_data("attestation/upstream/verifier/tdx-lite-attestation.json").read_text())
    attestation = decode_envelope(bytes.fromhex(body["attestation"]))
    assert isinstance(attestation.quote, TdxQuote)
    yield attestation.config, list(attestation.quote.event_log), attestation.quote.quote


def test_reproduces_both_upstream_fixtures(shared_data: Callable[[str], Path]) -> None:
    for text, events, quote in fixtures(shared_data):
        quoted = registers_of(quote)
        assert check_lite(parse_vm_config(text), events, quoted) == quoted


@pytest.mark.parametrize("name", LiteRegisters.__struct_fields__)
def test_n19_refuses_each_fixture_with_one_register_changed(
    shared_data: Callable[[str], Path], name: str
) -> None:
    for text, events, quote in fixtures(shared_data):
        quoted = msgspec.structs.replace(registers_of(quote), **{name: bytes(48)})
        with refuses(f"measurement.{name}"):
            check_lite(parse_vm_config(text), events, quoted)


@pytest.mark.parametrize(
    ("memory_size", "digest"),
    [
        (
            2 * GIB,
            "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
        ),
        (
            64 * GIB,
            "8ae1e425351df7992c444586eff99d35af3b779aa2b0e981cb4b73bc5b279f2ade19b6a62a203fc3c3bbdaae80af596d",
        ),
    ],
)
def test_makes_the_hob_that_real_machines_logged(memory_size: int, digest: str) -> None:
    assert sha384(build_td_hob(parse_td_hob(FIXTURE_WITNESS), memory_size)).hexdigest() == digest


@pytest.mark.parametrize(
    ("memory_size", "expected"),
    [(2 * GIB, HOB_2_GIB), (0xB000_0000, HOB_2816_MIB), (4 * GIB, HOB_4_GIB)],
)
def test_makes_the_hob_that_was_packed_by_hand(memory_size: int, expected: bytes) -> None:
    assert build_td_hob(parse_td_hob(TD_HOB), memory_size) == expected


def test_memory_accepted_from_page_zero_on_has_nothing_before_it() -> None:
    assert len(build_td_hob(parse_td_hob(bytes([0, 0, 1, 0, 1])), 2 * GIB)) == 56 + 2 * 48


def test_accepts_a_made_image_at_both_memory_layouts() -> None:
    small = lite_quoted(HOB_2_GIB)
    assert check_lite(parse_vm_config(lite_text()), acpi_events(), small) == small
    large = lite_quoted(HOB_4_GIB)
    assert check_lite(parse_vm_config(lite_text(memory_size=4 * GIB)), acpi_events(), large) == large


def test_reads_the_acpi_digests_among_other_events_in_any_order() -> None:
    other = [
        TdxEvent(imr=imr, event_type=kind, digest=b"", event="acpi-loader", event_payload=payload)
        for imr, kind, payload in [(1, 10, b"ACPI DATA"), (0, 11, b"ACPI DATA"), (0, 10, b"ACPI")]
    ]
    quoted = lite_quoted()
    assert check_lite(parse_vm_config(lite_text()), [*other, *reversed(acpi_events())], quoted) == quoted


@pytest.mark.parametrize("name", LiteRegisters.__struct_fields__)
def test_n19_refuses_a_register_that_the_image_does_not_make(name: str) -> None:
    quoted = msgspec.structs.replace(lite_quoted(), **{name: bytes(48)})
    with refuses(f"measurement.{name}") as caught:
        check_lite(parse_vm_config(lite_text()), acpi_events(), quoted)
    assert bytes(48).hex() in caught.value.message
    assert getattr(lite_quoted(), name).hex() in caught.value.message


def test_n54_refuses_another_memory_size_than_booted() -> None:
    with refuses("measurement.rtmr0"):
        check_lite(parse_vm_config(lite_text(memory_size=4 * GIB)), acpi_events(), lite_quoted())


def test_n24_refuses_another_kernel_command_line_than_the_images() -> None:
    tree = tdx_tree()
    tree["image"]["cmdline_sha384"] = sha384(b"cmdline dstack.storage_encrypted=0").digest()
    with refuses("measurement.rtmr2"):
        check_lite(parse_vm_config(lite_text(tree)), acpi_events(), lite_quoted())


def test_refuses_a_legacy_config_although_it_carries_a_document() -> None:
    with refuses("measurement.variant"):
        check_lite(parse_vm_config(lite_text(tdx_attestation_variant="legacy")), acpi_events(), lite_quoted())


def test_refuses_a_lite_config_without_a_document() -> None:
    config = parse_vm_config('{"tdx_attestation_variant":"lite"}')
    with refuses("measurement.missing"):
        check_lite(config, acpi_events(), lite_quoted())


def test_refuses_a_document_of_another_image() -> None:
    carried, _ = document("tdx", cbor2.dumps(tdx_tree()))
    text = json.dumps({**json.loads(lite_text()), "os_image_hash": "00" * 32, "tdx_measurement": carried})
    with refuses("measurement.os_image_hash"):
        check_lite(parse_vm_config(text), acpi_events(), lite_quoted())


@pytest.mark.parametrize(
    "memory_size", [0, 2 * GIB - 1, 2 * GIB + 1, 0xB000_0000 - 1, MAX_MEMORY + 1, (1 << 63) - 1]
)
def test_refuses_a_memory_size_for_which_the_document_does_not_hold(memory_size: int) -> None:
    with refuses("measurement.memory_size"):
        check_lite(parse_vm_config(lite_text(memory_size=memory_size)), acpi_events(), lite_quoted())


@pytest.mark.parametrize("memory_size", [0xB000_0000, MAX_MEMORY])
def test_takes_the_ends_of_the_memory_range(memory_size: int) -> None:
    with refuses("measurement.rtmr0"):
        check_lite(parse_vm_config(lite_text(memory_size=memory_size)), acpi_events(), lite_quoted())


@pytest.mark.parametrize(
    ("version", "flag", "two_pass"),
    [
        (None, None, False),
        ("8.0.0", None, True),
        ("8.2.2", None, True),
        ("9.0.0", None, False),
        ("10.1.0", None, False),
        ("9.1.0", True, True),
        ("8.2.2", False, False),
        (None, True, True),
    ],
)
def test_the_pass_order_follows_the_flag_and_then_the_version(
    *, version: str | None, flag: bool | None, two_pass: bool
) -> None:
    config = VmConfig(qemu_version=version, qemu_single_pass_add_pages=flag)
    assert uses_two_pass(config) is two_pass


def test_the_pass_order_chooses_the_mrtd() -> None:
    config = parse_vm_config(lite_text(qemu_version="8.2.2"))
    assert check_lite(config, acpi_events(), lite_quoted(mrtd="two")).mrtd == lite_quoted(mrtd="two").mrtd
    with refuses("measurement.mrtd"):
        check_lite(config, acpi_events(), lite_quoted(mrtd="single"))


@pytest.mark.parametrize(
    "version", ["7.2.0", "0.0.0", "9", "9.1", "9.1.0.1", "v9.1.0", "9.1.x", "9999.1.0", " 9.1.0"]
)
@pytest.mark.parametrize("flag", [None, True])
def test_refuses_an_unknown_or_old_qemu(*, version: str, flag: bool | None) -> None:
    with refuses("measurement.qemu_version"):
        uses_two_pass(VmConfig(qemu_version=version, qemu_single_pass_add_pages=flag))


def _events(*changes: dict[str, Any]) -> list[TdxEvent]:
    changes = changes + ({},) * (3 - len(changes))
    return [
        msgspec.structs.replace(event, **change) for event, change in zip(acpi_events(), changes, strict=True)
    ]


@pytest.mark.parametrize(
    "events",
    [
        [],
        acpi_events()[:2],
        [*acpi_events(), acpi_events()[0]],
        _events({"event": "acpi-rsdp"}),
        _events({"event": ""}),
        _events({"digest": b""}),
        _events({"digest": bytes(32)}),
    ],
)
def test_n09_refuses_a_log_without_exactly_three_acpi_digests(events: list[TdxEvent]) -> None:
    with refuses("measurement.acpi"):
        acpi_digests(events)


@pytest.mark.parametrize(
    "witness",
    [
        b"",
        FIXTURE_WITNESS[:-1],
        FIXTURE_WITNESS + b"\0",
        bytes(MAX_TD_HOB_BYTES + 1),
        bytes([0, 0, 0]),
        bytes([0, 0, MAX_RANGES + 1]) + bytes([1, 1]) * (MAX_RANGES + 1),
        bytes([0x80, 0x00, 0, 1, 0, 1]),
        bytes([0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0, 1, 0, 1]),
        bytes([0, 0, 1, 0, 0]),
        bytes([0, 1, 1, 0, 1]),
        bytes([0, 0, 2, 0, 2, 1, 1]),
        bytes([0, 0, 2, 0, 1, 0, 1]),
        bytes([0, 0, 2, 2, 1, 0, 1]),
        bytes([0, 0, 1, 0, 0x80, 0x80, 0x20]),
        bytes([0x80, 0x80, 0x20, 0, 1, 0, 1]),
    ],
)
def test_refuses_a_td_hob_that_is_no_firmwares(witness: bytes) -> None:
    with refuses("measurement.td_hob"):
        parse_td_hob(witness)


def test_reads_ranges_that_touch_and_end_just_below_2_gib() -> None:
    ranges = parse_td_hob(bytes([0, 0, 2, 0, 1, 1, 0xFE, 0xFF, 0x1F]))
    assert ranges.accepted == ((0, 4096), (4096, 2 * GIB - 4096))
