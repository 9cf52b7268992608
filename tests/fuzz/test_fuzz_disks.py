"""Disks and what boots from them: PE files, TDX firmware, kernels, volumes, partition tables, directories."""

import io
import json

import hypothesis.strategies as st

from shared.measurement.acpi_tables import acpi_loader, acpi_rsdp, table_lengths
from shared.measurement.authenticode import authenticode_digest, parse_pe, pe_section
from shared.measurement.boot_disk import boot_partition_table, measure_boot, measure_boot_disk
from shared.measurement.disk_image import MIB, SECTOR, FileRange, disk_image
from shared.measurement.fat import MIN_VOLUME, FatFile, fat32_volume
from shared.measurement.fat_reader import FatVolume
from shared.measurement.gpt import Partition, partition_table, read_partition_table
from shared.measurement.kernel_setup import HEAD_BYTES, patch_kernel
from shared.measurement.os_image_directory import check_image_directory, finish_image, parse_metadata
from shared.measurement.tdvf import mrtd, parse_tdvf, td_hob_witness
from shared.measurement.tdx_registers import MAX_MEMORY
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.measurement.made_disks import (
    CMDLINE,
    Holes,
    make_firmware,
    make_kernel,
    make_pe,
    make_uki,
)

PES = [
    make_kernel(),
    make_uki(),
    make_pe([(b".text", b"x" * 600)], plus=False),
    make_pe([(b".text", b"x" * 600)], certificates=bytes(64)),
]
FIRMWARE = make_firmware()
FIRMWARE_TAIL = FIRMWARE[0x3000:]
VOLUME = b"".join(
    fat32_volume(
        MIN_VOLUME,
        "FUZZ",
        [FatFile("A/B/C.D", b"x" * 1000), FatFile("a long file name", b"y" * 2000), FatFile("E", b"")],
        serial=1,
        timestamp=0,
    ).chunks()
)
# The table and the directories, which the tail of the volume is not.
TABLE_AT, FAT_SECTORS = 32 * SECTOR, int.from_bytes(VOLUME[36:40], "little")
ROOT_AT = TABLE_AT + 2 * FAT_SECTORS * SECTOR
BOOT = VOLUME[:SECTOR]
TABLE = VOLUME[TABLE_AT : TABLE_AT + SECTOR]
DIRECTORIES = VOLUME[ROOT_AT : ROOT_AT + 4 * SECTOR]
IDENTITY = boot_partition_table(1).guid
GPT = partition_table(
    IDENTITY,
    8192,
    [Partition(type_guid=IDENTITY, guid=IDENTITY, first=2048, last=4095, name="dstack-rootfs")],
)
GPT_HEAD = b"".join(disk_image(8192 * SECTOR, GPT.extents()).chunks())[: 6 * SECTOR]
GPT_TAIL = b"".join(disk_image(8192 * SECTOR, GPT.extents()).chunks())[-33 * SECTOR :]
METADATA = json.dumps(
    {"bios": "ovmf.fd", "kernel": "bzImage", "cmdline": CMDLINE, "initrd": "initrd", "version": "0.6.0"}
).encode()


class Files(dict[str, bytes]):
    def open(self, name: str) -> io.BytesIO:
        if name not in self:
            raise FileNotFoundError(name)
        return io.BytesIO(self[name])


IMAGE = Files({"ovmf.fd": FIRMWARE, "bzImage": PES[0], "initrd": b"initrd", "metadata.json": METADATA})
FINISHED = Files({**IMAGE, **finish_image(IMAGE)})


@fuzz(mutated(PES) | st.binary(max_size=2048).map(lambda tail: b"MZ" + tail))
def test_pe(raw: bytes) -> None:
    # sizes that are not divisible by 8 are refused at once: see what comes after
    data = raw[: len(raw) // 8 * 8]
    layout = outcome(parse_pe, io.BytesIO(data))
    digest = outcome(authenticode_digest, io.BytesIO(data), "sha256")
    assert (layout is None) == (digest is None)
    outcome(authenticode_digest, io.BytesIO(data), "sha384", head=raw[:64])
    part = outcome(pe_section, io.BytesIO(data), b".linux")
    if part is not None:
        assert len(b"".join(part.chunks())) == part.length
    outcome(measure_boot, boot_partition_table(1), io.BytesIO(data))


@fuzz(mutated([FIRMWARE_TAIL]) | st.binary(max_size=400))
def test_tdvf(tail: bytes) -> None:
    firmware = FIRMWARE[:0x3000] + tail
    sections = outcome(parse_tdvf, firmware)
    if sections is not None:
        assert len(mrtd(firmware, two_pass=True)) == len(mrtd(firmware, two_pass=False))
        outcome(td_hob_witness, firmware)


@fuzz(
    st.tuples(
        mutated([PES[0][0x200:0x240]]),
        st.integers(0, 1 << 32) | st.integers(0, 1 << 20),
        st.integers(0, MAX_MEMORY),
    )
)
def test_kernel_setup(example: tuple[bytes, int, int]) -> None:
    header, initrd_size, memory_size = example
    head = (bytes(0x200) + header[:0x200]).ljust(HEAD_BYTES, b"\0")
    patched = outcome(patch_kernel, head, initrd_size=initrd_size, memory_size=memory_size)
    if patched is not None:
        assert len(patched) == HEAD_BYTES
        assert patched[0x240:] == head[0x240:]


@fuzz(st.tuples(mutated([BOOT]) | st.just(BOOT), mutated([TABLE]) | st.just(TABLE), mutated([DIRECTORIES])))
def test_fat(parts: tuple[bytes, bytes, bytes]) -> None:
    boot, table, directories = parts
    disk = Holes(
        len(VOLUME),
        {0: boot[:SECTOR], TABLE_AT: table[:SECTOR], ROOT_AT: directories[: 4 * SECTOR]},
    )
    volume = outcome(FatVolume, disk)
    if volume is None:
        return
    for path, entry in volume.entries.items():
        content = outcome(volume.read, path, MIB)
        place = outcome(volume.file_range, path)
        if content is not None:
            assert len(content) == entry.size
            assert place is None or place.read_at(0, place.length) == content


@fuzz(st.tuples(mutated([GPT_HEAD]) | st.just(GPT_HEAD), mutated([GPT_TAIL]) | st.just(GPT_TAIL)))
def test_gpt(parts: tuple[bytes, bytes]) -> None:
    head, tail = parts
    size = 8192 * SECTOR
    disk = Holes(size, {0: head[: 34 * SECTOR], size - 33 * SECTOR: tail[: 33 * SECTOR]})
    table = outcome(read_partition_table, FileRange(disk, 0, size))
    if table is not None:
        assert table.partitions == GPT.partitions
        outcome(measure_boot_disk, disk)


@fuzz(st.lists(st.binary(max_size=60), max_size=7) | st.just([b"DSDT", b"FACP"]))
def test_acpi_tables(tables: list[bytes]) -> None:
    names = (b"DSDT", b"FACP", b"APIC", b"MCFG", b"WAET", b"RSDT", b"SRAT")
    blob = bytes(64)
    for name, content in zip(names, tables, strict=False):
        blob += name + (len(content) + 8).to_bytes(4, "little") + content
    lengths = outcome(table_lengths, blob)
    if lengths is not None:
        assert len(acpi_loader(lengths)) == 4096
        assert len(acpi_rsdp(lengths)) == 20


@fuzz(
    st.sampled_from(sorted(FINISHED)).flatmap(
        lambda name: st.tuples(st.just(name), mutated([FINISHED[name]]))
    )
)
def test_image_directory(example: tuple[str, bytes]) -> None:
    name, raw = example
    files = Files({**FINISHED, name: raw})
    outcome(check_image_directory, files)
    outcome(finish_image, files)


@fuzz(mutated([METADATA]) | st.binary(max_size=100))
def test_metadata(raw: bytes) -> None:
    outcome(parse_metadata, raw)
