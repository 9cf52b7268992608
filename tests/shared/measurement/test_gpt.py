import io
import shutil
import subprocess
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import pack, pack_into, unpack_from
from uuid import UUID

import msgspec
import pytest

from shared.attestation.tcg_log import parse_tcg_log
from shared.errors import ConfigError
from shared.measurement.disk_image import MIB, SECTOR, FileRange, disk_image
from shared.measurement.gpt import (
    EFI_SYSTEM,
    LINUX_FILESYSTEM,
    Partition,
    PartitionTable,
    partition_table,
    read_partition_table,
)
from tests.shared.measurement.made_disks import Holes
from tests.shared.refusal import refuses

DISK = UUID(int=0xD15C)
SECTORS = 5 * 2048


def partition(first: int = 2048, last: int = 4095, name: str = "one", **fields: UUID) -> Partition:
    return Partition(
        type_guid=fields.get("type_guid", LINUX_FILESYSTEM),
        guid=UUID(int=first),
        first=first,
        last=last,
        name=name,
    )


TABLE = partition_table(DISK, SECTORS, [partition(), partition(4096, 4200, "two", type_guid=EFI_SYSTEM)])


def disk(table: PartitionTable = TABLE) -> bytearray:
    return bytearray(b"".join(disk_image(table.sectors * SECTOR, table.extents()).chunks()))


def resealed(data: bytearray) -> io.BytesIO:
    """Give both headers the checksums that their entries and fields now have."""
    for at in (SECTOR, len(data) - SECTOR):
        (entries_at,) = unpack_from("<Q", data, at + 72)
        pack_into("<I", data, at + 88, zlib.crc32(data[entries_at * SECTOR : entries_at * SECTOR + 16384]))
        pack_into("<I", data, at + 16, 0)
        pack_into("<I", data, at + 16, zlib.crc32(data[at : at + 92]))
    return io.BytesIO(bytes(data))


def with_entry(index: int, entry: bytes) -> io.BytesIO:
    data = disk()
    for start in (2 * SECTOR, len(data) - 33 * SECTOR):
        data[start + index * 128 : start + index * 128 + 128] = entry
    return resealed(data)


def entry(first: int, last: int, name: bytes = b"", kind: UUID = LINUX_FILESYSTEM) -> bytes:
    return kind.bytes_le + bytes(16) + pack("<QQQ", first, last, 0) + name.ljust(72, b"\0")


def test_the_primary_header_is_what_uefi_says() -> None:
    header = TABLE.primary_header()
    assert len(header) == 92
    assert header[:16] == b"EFI PART" + bytes.fromhex("000001005c000000")
    assert unpack_from("<QQQQ", header, 24) == (1, SECTORS - 1, 34, SECTORS - 34)
    assert header[56:72] == DISK.bytes_le
    assert unpack_from("<QII", header, 72) == (2, 128, 128)
    assert unpack_from("<I", header, 88)[0] == zlib.crc32(TABLE.entries())
    assert unpack_from("<I", header, 16)[0] == zlib.crc32(header[:16] + bytes(4) + header[20:])


def test_the_backup_names_the_primary() -> None:
    data = disk()
    last = SECTORS - 1
    assert unpack_from("<QQ", data, last * SECTOR + 24) == (last, 1)
    assert unpack_from("<Q", data, last * SECTOR + 72)[0] == last - 32
    assert data[(last - 32) * SECTOR : last * SECTOR] == TABLE.entries()


def test_the_boot_record_protects_the_whole_disk() -> None:
    data = disk()
    assert data[446:462] == bytes.fromhex("00000200eeffffff01000000") + (SECTORS - 1).to_bytes(4, "little")
    assert data[510:512] == b"\x55\xaa"
    assert not any(data[:446])


def test_a_disk_beyond_2_tib_is_protected_as_far_as_can_be_said() -> None:
    table = partition_table(DISK, 1 << 33, [])
    assert table.extents()[0].data[458:462] == b"\xff\xff\xff\xff"  # type: ignore[index]


def test_reads_what_it_writes() -> None:
    assert read_partition_table(io.BytesIO(bytes(disk()))) == TABLE


def test_partitions_may_be_listed_in_any_order() -> None:
    swapped = msgspec.structs.replace(TABLE, partitions=TABLE.partitions[::-1])
    assert read_partition_table(io.BytesIO(bytes(disk(swapped)))) == swapped


def test_reads_an_unaligned_partition_of_another_tool() -> None:
    table = read_partition_table(with_entry(0, entry(34, 63, "é".encode("utf-16-le"))))
    assert (table.partitions[0].first, table.partitions[0].name) == (34, "é")


def test_the_boot_event_lists_used_entries_alone() -> None:
    event = TABLE.boot_event()
    assert event[:92] == TABLE.primary_header()
    assert event[92:100] == (2).to_bytes(8, "little")
    assert event[100:] == TABLE.entries()[:256]


def test_the_boot_event_is_what_a_google_cloud_guest_logged(shared_data: Callable[[str], Path]) -> None:
    records = parse_tcg_log(shared_data("measurement/tpm_eventlog.bin").read_bytes(), kind="tpm")
    (event,) = [record for record in records if record.event_type == 0x80000006]
    header, count = event.data[:92], unpack_from("<Q", event.data, 92)[0]
    entries = event.data[100:].ljust(16384, b"\0")
    last = unpack_from("<Q", header, 32)[0]
    # The disk as it was: the logged sectors, and the copy that they imply.
    backup = bytearray(header)
    pack_into("<QQ", backup, 24, last, 1)
    pack_into("<Q", backup, 72, last - 32)
    pack_into("<I", backup, 16, 0)
    pack_into("<I", backup, 16, zlib.crc32(backup))
    parts = {1: header, 2: entries, last - 32: entries, last: bytes(backup)}
    table = read_partition_table(
        Holes((last + 1) * SECTOR, {sector * SECTOR: data for sector, data in parts.items()})
    )
    assert [p.name for p in table.partitions] == ["EFI System Partition", "dstack-rootfs"]
    assert len(table.partitions) == count
    assert table.boot_event() == event.data
    assert sha256(table.boot_event()).digest() == event.digests[0xB]


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_reads_what_gdisk_writes(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SECTORS * SECTOR))
    one = [f"--new=1:2048:4095 --typecode=1:8300 --change-name=1:one --partition-guid=1:{UUID(int=2048)}"]
    two = [f"--new=2:4096:4200 --typecode=2:ef00 --change-name=2:two --partition-guid=2:{UUID(int=4096)}"]
    arguments = [argument for group in one + two for argument in group.split()]
    subprocess.run(
        [tool("sgdisk"), "--clear", f"--disk-guid={DISK}", *arguments, str(path)],
        check=True,
        capture_output=True,
    )
    assert read_partition_table(io.BytesIO(path.read_bytes())) == TABLE
    # nor does it write another byte than we do, but for the old geometry in the boot record
    assert path.read_bytes()[SECTOR:] == disk()[SECTOR:]


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        (["parted", "-s", "FILE", "mklabel", "gpt", "mkpart", "one", "1MiB", "2MiB"], ""),
        (["sfdisk", "FILE"], "label: gpt\nstart=2048, size=2048, name=one\n"),
    ],
    ids=["parted", "sfdisk"],
)
def test_reads_what_other_tools_write(command: list[str], stdin: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SECTORS * SECTOR))
    arguments = [str(path) if argument == "FILE" else argument for argument in command[1:]]
    subprocess.run([tool(command[0]), *arguments], check=True, capture_output=True, input=stdin, text=True)
    data = path.read_bytes()
    table = read_partition_table(io.BytesIO(data))
    (found,) = table.partitions
    assert (found.first, found.last, found.name) == (2048, 4095, "one")
    assert table.boot_event()[:92] == data[SECTOR : SECTOR + 92]


@pytest.mark.parametrize(
    "partitions",
    [
        [partition(2049)],
        [partition(0, 5)],
        [partition(4096, 4095)],
        [partition(2048, SECTORS - 33)],
        [partition(name="n" * 37)],
        [partition(name="é")],
        [partition(), partition()],
        [partition(4096, 4200), partition(2048, 4095)],
        [partition()] * 129,
    ],
    ids=[
        "unaligned",
        "in the table",
        "empty",
        "in the backup",
        "name",
        "not ascii",
        "twice",
        "order",
        "many",
    ],
)
def test_refuses_partitions_that_do_not_fit(partitions: list[Partition]) -> None:
    with refuses("gpt.partitions", ConfigError):
        partition_table(DISK, SECTORS, partitions)


@pytest.mark.parametrize("size", [0, 67 * SECTOR, 68 * SECTOR + 1])
def test_refuses_a_disk_of_no_sectors(size: int) -> None:
    with refuses("gpt.size"):
        read_partition_table(io.BytesIO(bytes(size)))


def test_the_smallest_disk_has_room_for_two_tables() -> None:
    table = partition_table(DISK, 68, [])
    assert read_partition_table(io.BytesIO(bytes(disk(table)))) == table


def test_refuses_a_disk_without_a_table() -> None:
    with refuses("gpt.header"):
        read_partition_table(io.BytesIO(bytes(SECTORS * SECTOR)))


@pytest.mark.parametrize("at", [8, 12, 16, 20, 24, 32, 40, 48, 72, 80, 84])
def test_refuses_a_changed_field_of_the_header(at: int) -> None:
    data = disk()
    data[SECTOR + at] ^= 4
    with refuses("gpt.header"):
        read_partition_table(io.BytesIO(bytes(data)))


def test_refuses_entries_that_are_not_those_of_the_header() -> None:
    data = disk()
    data[2 * SECTOR + 20] ^= 1
    with refuses("gpt.entries"):
        read_partition_table(io.BytesIO(bytes(data)))


@pytest.mark.parametrize("at", [-33 * SECTOR, -SECTOR])
def test_refuses_another_backup(at: int) -> None:
    data = disk()
    data[at] ^= 1
    with refuses("gpt.backup"):
        read_partition_table(io.BytesIO(bytes(data)))


@pytest.mark.parametrize(
    ("index", "raw"),
    [
        (1, entry(4000, 4200)),
        (3, entry(5000, 5100)),
        (1, entry(20, 30)),
        (1, entry(5000, 4999)),
        (1, entry(5000, SECTORS - 33)),
        (1, entry(5000, 1 << 63)),
        (1, entry(5000, 5100, b"\x00\xd8")),
        (1, entry(5000, 5100, b"a\0\0\0b\0")),
        (1, entry(5000, 5100, kind=UUID(int=0))),
    ],
    ids=["overlap", "gap", "table", "empty", "backup", "far", "utf-16", "tail", "no type"],
)
def test_n03_refuses_entries_that_no_tool_writes(index: int, raw: bytes) -> None:
    with refuses("gpt.entries"):
        read_partition_table(with_entry(index, raw))


def test_refuses_a_disk_that_is_cut() -> None:
    data = bytes(disk())
    with refuses("file.truncated"):
        read_partition_table(FileRange(io.BytesIO(data[: 20 * SECTOR]), 0, len(data)))


def test_mib_is_the_unit_of_alignment() -> None:
    assert TABLE.partitions[0].first * SECTOR == MIB
