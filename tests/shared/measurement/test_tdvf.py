import hashlib
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from shared.measurement.tdvf import MAX_FIRMWARE_BYTES, mrtd, parse_tdvf, td_hob_witness
from tests.shared.measurement.made_disks import (
    FIRMWARE_SECTIONS,
    METADATA_GUID,
    OTHER_GUID,
    WITNESS,
    make_firmware,
    slow_mrtd,
)
from tests.shared.refusal import refuses

DEBIAN = Path("/usr/share/ovmf/OVMF.fd")
DEBIAN_SHA256 = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"


@pytest.fixture
def debian() -> bytes:
    """Return the firmware that the specification's numbers are of."""
    if not DEBIAN.exists():
        pytest.skip("ovmf is not installed")
    firmware = DEBIAN.read_bytes()
    if hashlib.sha256(firmware).hexdigest() != DEBIAN_SHA256:
        pytest.skip("the installed ovmf is another version than 2022.11-6+deb12u2")
    return firmware


def one(*section: int) -> list[tuple[int, ...]]:
    return [*FIRMWARE_SECTIONS[:1], section]


def test_debian_firmware_in_a_single_pass(debian: bytes) -> None:
    expected = (
        "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
    )
    assert mrtd(debian, two_pass=False).hex() == expected


def test_debian_firmware_in_two_passes(debian: bytes) -> None:
    expected = (
        "acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1"
    )
    assert mrtd(debian, two_pass=True).hex() == expected


def test_debian_firmware_accepts_the_memory_that_dstacks_does(debian: bytes) -> None:
    assert td_hob_witness(debian) == WITNESS


@pytest.mark.parametrize("two_pass", [True, False])
def test_mrtd_is_what_the_words_of_the_specification_make(*, two_pass: bool) -> None:
    # the second section's pages are added at run time: its content is measured, its pages are not
    sections = [FIRMWARE_SECTIONS[0], (0, 0x2000, 0xFFFFB000, 0x2000, 1, 3), *FIRMWARE_SECTIONS[2:]]
    firmware = make_firmware(sections)
    assert mrtd(firmware, two_pass=two_pass) == slow_mrtd(firmware, sections, two_pass=two_pass)


def test_the_passes_differ() -> None:
    firmware = make_firmware()
    assert mrtd(firmware, two_pass=True) != mrtd(firmware, two_pass=False)


def test_sections_keep_the_order_of_their_table() -> None:
    assert [section.address for section in parse_tdvf(make_firmware())] == [s[2] for s in FIRMWARE_SECTIONS]


def test_the_witness_is_sorted_and_relative() -> None:
    assert td_hob_witness(make_firmware()) == WITNESS


def test_other_entries_of_the_table_are_stepped_over() -> None:
    assert parse_tdvf(make_firmware(other=b"")) == parse_tdvf(make_firmware())


@pytest.mark.parametrize("size", [0, 49, MAX_FIRMWARE_BYTES + 1])
def test_n03_refuses_firmware_of_no_size(size: int) -> None:
    with refuses("tdvf.size"):
        parse_tdvf(bytes(size))


def test_refuses_firmware_without_a_table() -> None:
    with refuses("tdvf.table"):
        parse_tdvf(make_firmware(guid=OTHER_GUID))


@pytest.mark.parametrize("length", [0, 17, 60000])
def test_n03_refuses_entries_of_impossible_length(length: int) -> None:
    with refuses("tdvf.table"):
        parse_tdvf(make_firmware(other=pack("<H", length) + OTHER_GUID, table_length=40))


def test_refuses_a_table_that_does_not_name_the_descriptor() -> None:
    with refuses("tdvf.table"):
        parse_tdvf(make_firmware(metadata=b"", other=b"", table_length=0))


def test_refuses_an_entry_for_the_descriptor_without_a_place() -> None:
    with refuses("tdvf.table"):
        parse_tdvf(make_firmware(metadata=pack("<H", 18) + METADATA_GUID))


@pytest.mark.parametrize("distance", [0, 15, 0x5001, 0xFFFFFFFF])
def test_n03_refuses_a_descriptor_outside_the_file(distance: int) -> None:
    with refuses("tdvf.descriptor"):
        parse_tdvf(make_firmware(distance=distance))


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": b"TDVG"},
        {"version": 2},
        {"count": 0},
        {"count": 0xFFFFFFFF},
        {"count": 65, "length": 16 + 65 * 32},
        {"length": 16},
        {"distance": 100, "count": 6},
    ],
)
def test_n03_refuses_a_descriptor_that_does_not_fit(changes: dict[str, Any]) -> None:
    with refuses("tdvf.descriptor"):
        parse_tdvf(make_firmware(**changes))


def test_refuses_a_descriptor_cut_by_the_end_of_the_file() -> None:
    firmware = bytearray(make_firmware(distance=16))
    firmware[-16:] = pack("<4sIII", b"TDVF", 48, 1, 1)
    with refuses("tdvf.descriptor"):
        parse_tdvf(bytes(firmware))


@pytest.mark.parametrize(
    "section",
    [
        (0, 0, 0x1000, 0x1000, 4, 0),
        (0, 0, 0x1001, 0x1000, 3, 0),
        (0, 0, 0x1000, 0x1001, 3, 0),
        (0, 0, (1 << 52) - 0x1000, 0x2000, 3, 0),
        (0, 0x2000, 0x1000, 0x1000, 3, 0),
        (0x4800, 0x1000, 0x1000, 0x1000, 1, 0),
        (0, 0x800, 0x1000, 0x1000, 1, 1),
    ],
    ids=["type", "address", "size", "too high", "more data than memory", "beyond the file", "half measured"],
)
def test_refuses_a_section_that_nobody_could_measure(section: tuple[int, ...]) -> None:
    with refuses("tdvf.section"):
        parse_tdvf(make_firmware(one(*section)))


def test_n03_refuses_sections_with_more_pages_than_a_second_measures() -> None:
    with refuses("tdvf.section"):
        mrtd(make_firmware(one(0, 0, 0, 1 << 40, 3, 0)), two_pass=True)


@pytest.mark.parametrize("count", [0, 2])
def test_refuses_no_or_several_hand_off_blocks(count: int) -> None:
    hobs: list[tuple[int, ...]] = [(0, 0, 0x1000 * (index + 1), 0x1000, 2, 0) for index in range(count)]
    with refuses("tdvf.hob"):
        td_hob_witness(make_firmware([FIRMWARE_SECTIONS[0], *hobs]))


def test_refuses_memory_that_no_document_may_carry() -> None:
    overlapping: list[tuple[int, ...]] = [(0, 0, 0x1000, 0x2000, 2, 0), (0, 0, 0x2000, 0x1000, 3, 0)]
    with refuses("measurement.td_hob"):
        td_hob_witness(make_firmware(overlapping))
