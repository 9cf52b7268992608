import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.measurement.cpio import read_cpio
from shared.measurement.eif import (
    MAX_CMDLINE,
    MAX_RAMDISKS,
    Eif,
    SectionFile,
    measure_eif,
    read_eif,
    write_eif,
)
from shared.measurement.eif_metadata import MAX_METADATA
from shared.measurement.eif_registers import STOCK_PCR1, Registers, SectionKind, image_hash
from tests.shared.measurement.made_eif import (
    APP,
    BOOT,
    CMDLINE,
    CMDLINE_TYPE,
    DATA,
    KERNEL,
    KERNEL_TYPE,
    METADATA,
    METADATA_TYPE,
    RAMDISK_TYPE,
    SIGNATURE_TYPE,
    TINY,
    TINY_SECTIONS,
    image,
    listed,
    raw_image,
)
from tests.shared.refusal import refuses

VECTORS = {vector["name"]: vector for vector in json.loads((DATA / "vectors.json").read_text())}
KERNEL_SECTION, CMDLINE_SECTION, METADATA_SECTION, BOOT_SECTION, APP_SECTION = TINY_SECTIONS


def read(raw: bytes) -> Eif:
    return read_eif(io.BytesIO(raw))


def with_bytes(at: int, new: bytes) -> bytes:
    return TINY[:at] + new + TINY[at + len(new) :]


def pcr(*payloads: bytes) -> bytes:
    """A register as the specification writes it."""
    inner = hashlib.sha384(b"".join(payloads)).digest()
    return hashlib.sha384(bytes(48) + inner).digest()


class Shrinking(io.BytesIO):
    """A file that is cut while it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        self.truncate(max(self.tell(), len(self.getbuffer()) - 4))
        return super().read(size)


def test_measures_the_specs_image() -> None:
    expected = VECTORS["tiny.eif"]["output"]
    measured = measure_eif(io.BytesIO(TINY))
    assert hashlib.sha256(TINY).hexdigest() == expected["sha256"]
    assert {name: getattr(measured, name).hex() for name in ("pcr0", "pcr1", "pcr2", "os_image_hash")} == {
        name: expected[name] for name in ("pcr0", "pcr1", "pcr2", "os_image_hash")
    }
    assert f"{measured.crc32:08x}" == expected["crc32"]
    assert measured.pcr8 is None


def test_writes_the_specs_image_to_the_byte() -> None:
    raw, measured = image()
    assert raw == TINY
    assert measured == measure_eif(io.BytesIO(TINY))


def test_reads_the_specs_image() -> None:
    eif = read(TINY)
    assert (eif.arch, eif.cmdline, eif.metadata, eif.signature) == ("x86_64", CMDLINE, METADATA, None)
    assert [(one.offset - 12, one.size) for one in eif.sections] == [
        (548, 96),
        (656, 84),
        (752, 234),
        (998, 512),
        (1522, 2048),
    ]


def test_is_the_image_that_the_spec_ships(shared_data: Callable[[str], Path]) -> None:
    assert shared_data("measurement/tiny.eif").read_bytes() == TINY


def test_the_image_hash_is_that_of_a_real_enclave() -> None:
    vector = VECTORS["nitro os_image_hash"]
    registers = [bytes.fromhex(vector["input"][name]) for name in ("pcr0", "pcr1", "pcr2")]
    assert image_hash(*registers).hex() == vector["output"]
    assert registers[1] in STOCK_PCR1


def test_an_aarch64_image_differs_in_its_flag_alone() -> None:
    sink = io.BytesIO()
    measured = write_eif(
        sink,
        kernel=io.BytesIO(KERNEL),
        cmdline=CMDLINE,
        ramdisks=[io.BytesIO(BOOT), io.BytesIO(APP)],
        metadata=METADATA,
        arch="aarch64",
    )
    assert sink.getvalue()[:544] == TINY[:7] + b"\1" + TINY[8:544]
    assert measured.os_image_hash == measure_eif(io.BytesIO(TINY)).os_image_hash
    assert read(sink.getvalue()).arch == "aarch64"


@pytest.mark.parametrize("count", [1, 2, 3, MAX_RAMDISKS])
def test_registers_are_over_the_specs_payloads_for_any_number_of_ramdisks(count: int) -> None:
    ramdisks = [bytes([number]) * 300_000 for number in range(count)]
    raw, measured = image(ramdisks=ramdisks)
    assert measured == measure_eif(io.BytesIO(raw))
    assert measured.pcr0 == pcr(KERNEL, CMDLINE, *ramdisks)
    assert measured.pcr1 == pcr(KERNEL, CMDLINE, ramdisks[0])
    assert measured.pcr2 == pcr(*ramdisks[1:])


def test_without_a_second_ramdisk_pcr2_is_the_specs_constant() -> None:
    _, measured = image(ramdisks=[BOOT])
    assert measured.pcr2.hex().startswith("21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c")


def test_registers_do_not_tell_where_the_kernel_ends_as_the_builds_page_says() -> None:
    measured = write_eif(
        io.BytesIO(),
        kernel=io.BytesIO(KERNEL + CMDLINE[:9]),
        cmdline=CMDLINE[9:],
        ramdisks=[io.BytesIO(BOOT), io.BytesIO(APP)],
        metadata=METADATA,
        arch="x86_64",
    )
    assert measured.os_image_hash == measure_eif(io.BytesIO(TINY)).os_image_hash


def test_metadata_is_not_measured() -> None:
    raw = raw_image([*TINY_SECTIONS[:2], (METADATA_TYPE, METADATA_SECTION[1] + b" "), *TINY_SECTIONS[3:]])
    measured, tiny = measure_eif(io.BytesIO(raw)), measure_eif(io.BytesIO(TINY))
    assert measured.os_image_hash == tiny.os_image_hash
    assert measured.crc32 != tiny.crc32


def test_inputs_are_taken_from_where_they_stand() -> None:
    kernel = io.BytesIO(b"skipped" + KERNEL)
    kernel.seek(7)
    sink = io.BytesIO()
    write_eif(
        sink,
        kernel=kernel,
        cmdline=CMDLINE,
        ramdisks=[io.BytesIO(BOOT), io.BytesIO(APP)],
        metadata=METADATA,
        arch="x86_64",
    )
    assert sink.getvalue() == TINY
    assert sink.tell() == len(TINY)


def test_memory_stays_flat_however_large_the_image_is(tmp_path: Path) -> None:
    ramdisk = tmp_path / "ramdisk"
    with ramdisk.open("wb") as file:
        file.truncate(32 << 20)
    with ramdisk.open("rb") as large, (tmp_path / "image.eif").open("w+b") as sink:
        tracemalloc.start()
        try:
            written = write_eif(
                sink,
                kernel=io.BytesIO(KERNEL),
                cmdline=CMDLINE,
                ramdisks=[io.BytesIO(BOOT), large],
                metadata=METADATA,
                arch="x86_64",
            )
            assert measure_eif(sink) == written
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()


def test_a_section_can_be_read_as_a_file() -> None:
    section = read(TINY).sections[4]
    found = [(entry, b"".join(data)) for entry, data in read_cpio(SectionFile(io.BytesIO(TINY), section))]
    assert found == listed(APP)


@pytest.mark.parametrize("raw", [b"", b".ei", b"MZ" + bytes(600), APP])
def test_another_file_is_refused(raw: bytes) -> None:
    with refuses("eif.magic"):
        read(raw)


@pytest.mark.parametrize("size", [4, 547])
def test_n03_a_cut_header_is_refused(size: int) -> None:
    with refuses("eif.truncated"):
        read(TINY[:size])


@pytest.mark.parametrize("size", range(548, len(TINY), 97))
def test_n03_a_cut_image_is_refused(size: int) -> None:
    with refuses("eif.section.size"):
        read(TINY[:size])


@pytest.mark.parametrize("version", [0, 3, 5])
def test_another_version_is_refused(version: int) -> None:
    with refuses("eif.version"):
        read(raw_image(TINY_SECTIONS, version=version))


@pytest.mark.parametrize("flags", [2, 3, 0x8000])
def test_unknown_flags_are_refused(flags: int) -> None:
    with refuses("eif.flags"):
        read(raw_image(TINY_SECTIONS, flags=flags))


@pytest.mark.parametrize("count", [0, 3, 33, 0xFFFF])
def test_n03_an_impossible_number_of_sections_is_refused(count: int) -> None:
    with refuses("eif.sections"):
        read(raw_image(TINY_SECTIONS, count=count))


@pytest.mark.parametrize("field", ["reserved", "unused", "unused_offset", "unused_size"])
def test_numbers_where_the_header_is_unused_are_refused(field: str) -> None:
    with refuses("eif.reserved"):
        read(raw_image(TINY_SECTIONS, **{field: 1}))


def test_n03_more_sections_than_the_file_has_are_refused() -> None:
    with refuses("eif.section.offset"):
        read(raw_image(TINY_SECTIONS, count=6))


def test_fewer_sections_than_the_file_has_are_refused() -> None:
    with refuses("eif.reserved"):
        read(raw_image(TINY_SECTIONS, count=4))


@pytest.mark.parametrize("offset", [0, 547, 549, 656, 0xFFFFFFFFFFFFFFFF])
def test_a_section_elsewhere_than_behind_the_last_is_refused(offset: int) -> None:
    with refuses("eif.section.offset"):
        read(with_bytes(28, offset.to_bytes(8, "big")))


@pytest.mark.parametrize("size", [len(TINY), 1 << 63, 0xFFFFFFFFFFFFFFFF])
def test_n03_a_size_that_the_file_cannot_hold_is_refused(size: int) -> None:
    with refuses("eif.section.size"):
        read(with_bytes(284, size.to_bytes(8, "big")))


@pytest.mark.parametrize("size", [95, 97, 0xFFFFFFFFFFFFFFFF])
def test_a_section_headers_size_other_than_the_headers_is_refused(size: int) -> None:
    with refuses("eif.section.size"):
        read(with_bytes(552, size.to_bytes(8, "big")))


@pytest.mark.parametrize("kind", [0, 6, 0xFFFF])
def test_an_unknown_section_is_refused(kind: int) -> None:
    with refuses("eif.section.kind"):
        read(raw_image([*TINY_SECTIONS, (kind, b"")]))


def test_flags_of_a_section_are_refused() -> None:
    with refuses("eif.section.flags"):
        read(raw_image(TINY_SECTIONS, section_flags=1))


@pytest.mark.parametrize(
    "sections",
    [
        [CMDLINE_SECTION, KERNEL_SECTION, METADATA_SECTION, BOOT_SECTION],
        [KERNEL_SECTION, METADATA_SECTION, CMDLINE_SECTION, BOOT_SECTION],
        [KERNEL_SECTION, CMDLINE_SECTION, BOOT_SECTION, METADATA_SECTION],
        [*TINY_SECTIONS, KERNEL_SECTION],
        [*TINY_SECTIONS, CMDLINE_SECTION],
        [*TINY_SECTIONS, METADATA_SECTION],
        [KERNEL_SECTION, KERNEL_SECTION, CMDLINE_SECTION, METADATA_SECTION, BOOT_SECTION],
        [*TINY_SECTIONS[:3], (SIGNATURE_TYPE, b"")],
        [*TINY_SECTIONS[:4], (SIGNATURE_TYPE, b""), APP_SECTION],
        [*TINY_SECTIONS, (SIGNATURE_TYPE, b""), (SIGNATURE_TYPE, b"")],
    ],
)
def test_sections_missing_repeated_or_in_another_order_are_refused(sections: list[tuple[int, bytes]]) -> None:
    with refuses("eif.section.order"):
        read(raw_image(sections))


def test_bytes_after_the_last_section_are_refused() -> None:
    with refuses("eif.trailing"):
        read(TINY + b"\0")


def test_n03_a_long_cmdline_is_refused() -> None:
    longest = b"c" * MAX_CMDLINE
    assert read(image(cmdline=longest)[0]).cmdline == longest
    with refuses("eif.cmdline"):
        read(raw_image([KERNEL_SECTION, (CMDLINE_TYPE, longest + b"c"), *TINY_SECTIONS[2:]]))


def test_n03_long_metadata_is_refused() -> None:
    with refuses("eif.metadata.size"):
        read(raw_image([*TINY_SECTIONS[:2], (METADATA_TYPE, bytes(MAX_METADATA + 1)), BOOT_SECTION]))


def test_malformed_metadata_is_refused() -> None:
    with refuses("eif.metadata.syntax"):
        read(raw_image([*TINY_SECTIONS[:2], (METADATA_TYPE, b""), BOOT_SECTION]))


@pytest.mark.parametrize("at", [12, 544, 560, 700, 1100, 3000])
def test_a_changed_byte_is_refused(at: int) -> None:
    with refuses("eif.crc"):
        measure_eif(io.BytesIO(with_bytes(at, bytes([TINY[at] ^ 1]))))


def test_an_image_that_is_cut_while_it_is_read_is_refused() -> None:
    with refuses("eif.truncated"):
        measure_eif(Shrinking(TINY))


@pytest.mark.parametrize("cmdline", [b"", b"a\n", b" a", b"a\0", b"a\0b", b"c" * (MAX_CMDLINE + 1)])
def test_a_cmdline_with_more_than_the_kernel_is_told_is_not_written(cmdline: bytes) -> None:
    with refuses("eif.cmdline", ConfigError):
        image(cmdline=cmdline)


@pytest.mark.parametrize("ramdisks", [[], [BOOT] * (MAX_RAMDISKS + 1), [BOOT, APP + b"\0"]])
def test_ramdisks_that_do_not_boot_are_not_written(ramdisks: list[bytes]) -> None:
    with refuses("eif.ramdisks", ConfigError):
        image(ramdisks=ramdisks)


def test_an_input_that_changes_while_it_is_read_is_refused() -> None:
    with refuses("eif.input", ConfigError):
        write_eif(
            io.BytesIO(),
            kernel=Shrinking(KERNEL),
            cmdline=CMDLINE,
            ramdisks=[io.BytesIO(BOOT)],
            metadata=METADATA,
            arch="x86_64",
        )


def test_registers_of_an_image_without_a_ramdisk_are_refused() -> None:
    registers: Any = Registers()
    registers.end(SectionKind(KERNEL_TYPE))
    with refuses("eif.sections"):
        registers.values()


def test_ramdisks_may_be_compressed() -> None:
    raw = raw_image([*TINY_SECTIONS[:3], (RAMDISK_TYPE, b"\x1f\x8b odd size")])
    assert measure_eif(io.BytesIO(raw)).pcr1 == pcr(KERNEL, CMDLINE, b"\x1f\x8b odd size")
