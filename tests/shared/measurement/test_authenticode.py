import hashlib
import io
import shutil
import subprocess
import sysconfig
from pathlib import Path
from struct import pack_into
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.errors import InvalidEvidence
from shared.measurement import authenticode
from shared.measurement.authenticode import authenticode_digest, parse_pe, pe_section
from shared.measurement.disk_image import FileRange
from tests.shared.measurement.made_disks import HEADERS, make_kernel, make_pe, make_uki, pe_digest
from tests.shared.refusal import refuses

SECTIONS = [(b".text", b"code" * 200), (b".data", b"data" * 100)]
OPTIONAL = 0x40 + 24


def edited(data: bytes, at: int, form: str, *values: int) -> io.BytesIO:
    changed = bytearray(data)
    pack_into(form, changed, at, *values)
    return io.BytesIO(bytes(changed))


@pytest.mark.parametrize("plus", [True, False], ids=["pe32+", "pe32"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_hashes_all_but_checksum_and_certificate_entry(
    *, plus: bool, algorithm: Literal["sha256", "sha384"]
) -> None:
    data = make_pe(SECTIONS, plus=plus)
    assert authenticode_digest(io.BytesIO(data), algorithm) == pe_digest(data, algorithm, plus=plus)


def test_the_certificate_table_is_not_hashed() -> None:
    data = make_pe(SECTIONS, certificates=bytes(64))
    got = authenticode_digest(io.BytesIO(data), "sha256")
    assert got == pe_digest(data, "sha256", certificates=64)
    assert got == authenticode_digest(io.BytesIO(make_pe(SECTIONS, certificates=b"other..." * 8)), "sha256")


def test_bytes_between_sections_and_certificate_table_are_hashed() -> None:
    data = make_pe(SECTIONS, overlay=b"trailing", certificates=bytes(64))
    assert authenticode_digest(io.BytesIO(data), "sha256") == pe_digest(data, "sha256", certificates=64)


def test_sections_without_bytes_are_skipped() -> None:
    data = make_pe([SECTIONS[0], (b".bss", b""), SECTIONS[1]])
    assert [section.name for section in parse_pe(io.BytesIO(data)).sections] == [b".text", b".data"]
    assert authenticode_digest(io.BytesIO(data), "sha256") == pe_digest(data, "sha256")


def test_the_order_of_the_section_table_does_not_matter() -> None:
    data = bytearray(make_pe(SECTIONS))
    table = OPTIONAL + 240
    data[table : table + 40], data[table + 40 : table + 80] = (
        data[table + 40 : table + 80],
        data[table : table + 40],
    )
    assert authenticode_digest(io.BytesIO(bytes(data)), "sha256") == pe_digest(bytes(data), "sha256")


def test_a_file_within_a_larger_one_is_hashed_alone() -> None:
    data = make_pe(SECTIONS)
    outer = io.BytesIO(b"before" + data + b"after")
    assert authenticode_digest(FileRange(outer, 6, len(data)), "sha256") == pe_digest(data, "sha256")


def test_long_files_are_hashed_in_parts() -> None:
    data = make_pe([(b".text", bytes(range(256)) * 10_000)])
    assert authenticode_digest(io.BytesIO(data), "sha384") == pe_digest(data, "sha384")


def test_a_head_stands_for_the_first_bytes() -> None:
    data = make_pe(SECTIONS)
    head = bytearray(data[:0x300])
    head[0x210] = 0xB0
    changed = bytes(head) + data[0x300:]
    assert authenticode_digest(io.BytesIO(data), "sha384", head=bytes(head)) == pe_digest(changed, "sha384")


def test_refuses_a_head_longer_than_the_file() -> None:
    data = make_pe(SECTIONS)
    with refuses("pe.head"):
        authenticode_digest(io.BytesIO(data), "sha384", head=data + b"more")


@given(st.integers(0, len(make_uki()) - 1), st.integers(1, 255))
def test_every_byte_but_twelve_is_measured(at: int, change: int) -> None:
    data = bytearray(make_uki())
    digest = authenticode_digest(io.BytesIO(bytes(data)), "sha256")
    data[at] ^= change
    try:
        got = authenticode_digest(io.BytesIO(bytes(data)), "sha256")
    except InvalidEvidence:
        return
    checksum = range(OPTIONAL + 64, OPTIONAL + 68)
    assert (got == digest) == (at in checksum)


def test_n03_refuses_sizes_that_firmware_pads() -> None:
    with refuses("pe.size"):
        parse_pe(io.BytesIO(make_pe(SECTIONS) + b"x"))


def test_n03_refuses_files_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticode, "MAX_PE_BYTES", 1024)
    with refuses("pe.size"):
        parse_pe(io.BytesIO(make_pe(SECTIONS)))


def test_refuses_an_overlay_without_certificate_table() -> None:
    with refuses("pe.overlay"):
        parse_pe(io.BytesIO(make_pe(SECTIONS, overlay=bytes(16))))


def test_refuses_a_certificate_table_of_no_size_at_a_place() -> None:
    with refuses("pe.overlay"):
        parse_pe(edited(make_pe(SECTIONS), OPTIONAL + 112 + 32, "<II", 0x800, 0))


@pytest.mark.parametrize("shift", [-512, 8])
def test_refuses_a_certificate_table_that_is_not_the_end(shift: int) -> None:
    data = make_pe(SECTIONS, certificates=bytes(64))
    with refuses("pe.certificates"):
        parse_pe(edited(data, OPTIONAL + 112 + 32, "<II", len(data) - 64 + shift, 64 - min(shift, 0)))


def test_refuses_a_certificate_table_over_sections() -> None:
    data = make_pe(SECTIONS)
    with refuses("pe.certificates"):
        parse_pe(edited(data, OPTIONAL + 112 + 32, "<II", HEADERS, len(data) - HEADERS))


@pytest.mark.parametrize(
    "data",
    [b"", b"ELF.".ljust(4096, b"\0"), b"MZ".ljust(4096, b"\0")],
    ids=["empty", "another format", "no signature"],
)
def test_refuses_what_is_no_pe(data: bytes) -> None:
    with refuses("pe.magic"):
        parse_pe(io.BytesIO(data))


def test_refuses_an_unknown_optional_header() -> None:
    with refuses("pe.magic"):
        parse_pe(edited(make_pe(SECTIONS), OPTIONAL, "<H", 0x107))


@pytest.mark.parametrize("pointer", [0xFFFFFFFF, 0xA00])
def test_n03_refuses_a_pointer_beyond_the_file(pointer: int) -> None:
    with refuses("pe.truncated"):
        parse_pe(edited(make_pe(SECTIONS), 0x3C, "<I", pointer))


def test_refuses_a_header_that_ends_with_the_file() -> None:
    data = make_pe(SECTIONS)[: OPTIONAL + 40]
    with refuses("pe.truncated"):
        parse_pe(io.BytesIO(data[: len(data) // 8 * 8]))


def test_refuses_headers_without_an_entry_for_certificates() -> None:
    with refuses("pe.headers"):
        parse_pe(io.BytesIO(make_pe(SECTIONS, directories=4)))


def test_refuses_a_directory_count_that_the_header_does_not_hold() -> None:
    with refuses("pe.headers"):
        parse_pe(edited(make_pe(SECTIONS), 0x40 + 20, "<H", 112 + 36))


@pytest.mark.parametrize("size", [0x100, 0x10000000])
def test_refuses_headers_that_end_elsewhere(size: int) -> None:
    with refuses("pe.headers"):
        parse_pe(edited(make_pe(SECTIONS), OPTIONAL + 60, "<I", size))


@pytest.mark.parametrize("count", [0, 97])
def test_n03_refuses_none_or_too_many_sections(count: int) -> None:
    # headers that would hold so many
    data = edited(make_pe([(b".text", bytes(8192))]), 0x40 + 6, "<H", count).getvalue()
    with refuses("pe.sections"):
        parse_pe(edited(data, OPTIONAL + 60, "<I", 0x1800))


@pytest.mark.parametrize(("at", "value"), [(20, HEADERS + 8), (16, 8), (16, 0xFFFFFF00)])
def test_refuses_sections_with_gaps_overlaps_or_no_end(at: int, value: int) -> None:
    with refuses("pe.sections"):
        parse_pe(edited(make_pe(SECTIONS), OPTIONAL + 240 + at, "<I", value))


def test_refuses_one_section_beyond_the_end() -> None:
    with refuses("pe.sections"):
        parse_pe(edited(make_pe(SECTIONS[:1]), OPTIONAL + 240 + 16, "<I", 0x4000))


def test_a_section_is_what_a_loader_maps() -> None:
    kernel = make_kernel()
    assert b"".join(pe_section(io.BytesIO(make_uki(kernel)), b".linux").chunks()) == kernel


@pytest.mark.parametrize("name", [b".nothing", b".text"])
def test_refuses_no_or_several_sections_of_a_name(name: bytes) -> None:
    with refuses("pe.section"):
        pe_section(io.BytesIO(make_pe([SECTIONS[0], SECTIONS[0]])), name)


@pytest.mark.parametrize("mapped", [0, 4096])
def test_refuses_a_section_that_is_mapped_empty_or_beyond_its_bytes(mapped: int) -> None:
    data = make_pe(SECTIONS, virtual_sizes={b".text": mapped})
    with refuses("pe.section"):
        pe_section(io.BytesIO(data), b".text")


def windows_programs() -> list[Path]:
    """Programs for Windows that setuptools and pip bring along: PE32 and PE32+, of two processors."""
    return sorted(Path(sysconfig.get_path("purelib")).glob("**/*.exe"))


def test_agrees_with_pesign_on_real_programs() -> None:
    programs = windows_programs()
    if shutil.which("pesign") is None or not programs:
        pytest.skip("no pesign, or no program to compare with, on this machine")
    for program in programs:
        stated = subprocess.run(
            ["pesign", "--hash", "--in", str(program)], check=True, capture_output=True, text=True
        ).stdout.split()
        with program.open("rb") as file:
            assert authenticode_digest(file, "sha256").hex() in stated


def test_refuses_a_boot_loader_with_an_overlay() -> None:
    loader = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
    if not loader.exists():
        pytest.skip("systemd-boot is not installed")
    data = loader.read_bytes()
    with refuses("pe.overlay"):
        parse_pe(io.BytesIO(data.ljust(-(-len(data) // 8) * 8, b"\0")))


def test_the_two_algorithms_differ() -> None:
    data = io.BytesIO(make_pe(SECTIONS))
    assert len(authenticode_digest(data, "sha384")) == hashlib.sha384().digest_size
