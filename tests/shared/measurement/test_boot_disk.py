import io
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import unpack_from

import pytest

from shared.attestation.tcg_log import parse_tcg_log
from shared.errors import ConfigError
from shared.measurement.boot_disk import (
    UKI_PATH,
    boot_partition_table,
    data_disk,
    gcp_boot_disk,
    measure_boot,
    measure_boot_disk,
    rootfs_partition,
)
from shared.measurement.disk_image import (
    MIB,
    SECTOR,
    DiskImage,
    Extent,
    FileRange,
    disk_image,
    write_disk_archive,
)
from shared.measurement.fat import FatFile, fat32_volume
from shared.measurement.fat_reader import FatVolume
from shared.measurement.gpt import LINUX_FILESYSTEM, Partition, partition_table, read_partition_table
from tests.shared.measurement.made_disks import make_kernel, make_pe, make_uki, pe_digest
from tests.shared.refusal import refuses

KERNEL = make_kernel()
UKI = make_uki(KERNEL)
ROOTFS = b"hsqs" + b"root file system" * 100_000


def boot_disk(uki: bytes = UKI, **named: int) -> DiskImage:
    return gcp_boot_disk(io.BytesIO(uki), io.BytesIO(ROOTFS), **named)


@pytest.fixture(scope="module")
def disk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("boot") / "disk.raw"
    with path.open("wb") as file:
        boot_disk().write_to(file)
    return path


def test_the_third_event_is_the_uki_and_the_fourth_its_kernel(disk_file: Path) -> None:
    with disk_file.open("rb") as file:
        measured = measure_boot_disk(file)
    assert measured.uki_auth == pe_digest(UKI, "sha256")
    assert [event.digest for event in measured.events] == [
        sha256(bytes(4)).digest(),
        sha256(boot_partition_table(len(ROOTFS)).boot_event()).digest(),
        pe_digest(UKI, "sha256"),
        pe_digest(KERNEL, "sha256"),
    ]


def test_pcr2_is_the_replay_of_its_events(disk_file: Path) -> None:
    with disk_file.open("rb") as file:
        measured = measure_boot_disk(file)
    register = bytes(32)
    for event in measured.events:
        register = sha256(register + event.digest).digest()
    assert measured.pcr2 == register


def test_a_disk_measures_what_its_parts_do(disk_file: Path) -> None:
    with disk_file.open("rb") as file:
        assert measure_boot_disk(file) == measure_boot(boot_partition_table(len(ROOTFS)), io.BytesIO(UKI))


def test_the_places_are_those_of_a_real_disk(shared_data: Callable[[str], Path]) -> None:
    records = parse_tcg_log(shared_data("measurement/tpm_eventlog.bin").read_bytes(), kind="tpm")
    (logged,) = [record.data for record in records if record.event_type == 0x80000006]
    first, last = unpack_from("<QQ", logged, 100 + 128 + 32)
    ours = boot_partition_table((last - first + 1) * SECTOR).boot_event()
    # All but what upstream's image of that time drew by chance: the identities, and the checksums over them.
    for event in (ours, logged):
        assert len(event) == 100 + 256
    blank = [bytearray(event) for event in (ours, logged)]
    for blanked in blank:
        for start, length in ((16, 4), (56, 16), (88, 4), (116, 16), (244, 16)):
            blanked[start : start + length] = bytes(length)
    assert blank[0] == blank[1]


def test_the_identities_are_fixed() -> None:
    table = boot_partition_table(1)
    assert str(table.guid) == "d5acc000-0000-4000-8000-000000000000"
    assert [str(partition.guid) for partition in table.partitions] == [
        "d5acc000-0000-4000-8000-000000000002",
        "d5acc000-0000-4000-8000-000000000001",
    ]


def test_the_same_parts_make_the_same_disk_and_archive() -> None:
    first, second = hash_of(boot_disk()), hash_of(boot_disk())
    assert first == second
    assert first != hash_of(boot_disk(source_date_epoch=1_700_000_000))


def hash_of(image: DiskImage) -> str:
    digest = sha256()
    write_disk_archive(image, digest.update)
    return digest.hexdigest()


def test_the_system_partition_holds_the_uki_alone(disk_file: Path) -> None:
    with disk_file.open("rb") as file:
        first = read_partition_table(file).partitions[0]
        volume = FatVolume(FileRange(file, first.first * SECTOR, (first.last - first.first + 1) * SECTOR))
        assert volume.label == "DSTACKEFI"
        assert [path for path, entry in volume.entries.items() if not entry.is_directory] == [UKI_PATH]
        assert volume.read(UKI_PATH, 1 << 20) == UKI


def test_the_root_file_system_is_found_by_its_name(disk_file: Path) -> None:
    with disk_file.open("rb") as file:
        part = rootfs_partition(file)
        assert part.length == -(-len(ROOTFS) // MIB) * MIB
        assert part.read_at(0, len(ROOTFS)) == ROOTFS


def test_gdisk_finds_nothing_to_mend(disk_file: Path, tmp_path: Path) -> None:
    sgdisk = shutil.which("sgdisk") or shutil.which("sgdisk", path="/usr/sbin:/sbin")
    if sgdisk is None:
        pytest.skip("gdisk is not installed")
    data = tmp_path / "data.raw"
    data.write_bytes(b"".join(data_disk().chunks()))
    for path in (disk_file, data):
        shown = subprocess.run([sgdisk, "-v", str(path)], check=True, capture_output=True, text=True).stdout
        assert "No problems found" in shown


def test_the_data_disk_is_one_partition_that_the_guest_knows() -> None:
    image = b"".join(data_disk().chunks())
    (partition,) = read_partition_table(io.BytesIO(image)).partitions
    assert len(image) == 10 * MIB
    assert (partition.name, partition.type_guid) == ("dstack-data", LINUX_FILESYSTEM)


@pytest.mark.parametrize("size", [0, -1])
def test_refuses_an_empty_root_file_system(size: int) -> None:
    with refuses("boot_disk.rootfs", ConfigError):
        boot_partition_table(size)


def test_refuses_a_uki_that_does_not_fit() -> None:
    with refuses("fat.full", ConfigError):
        boot_disk(bytes(256 * MIB))


def test_refuses_a_uki_without_a_kernel() -> None:
    with refuses("pe.section"):
        measure_boot(boot_partition_table(1), io.BytesIO(make_pe([(b".text", b"x")])))


@pytest.mark.parametrize("count", [0, 2])
def test_refuses_a_disk_without_the_one_partition(count: int) -> None:
    partitions = [
        Partition(
            type_guid=LINUX_FILESYSTEM,
            guid=boot_partition_table(1).guid,
            first=2048 * (index + 1),
            last=2048 * (index + 1),
            name="dstack-rootfs",
        )
        for index in range(count)
    ]
    table = partition_table(boot_partition_table(1).guid, 10240, partitions)
    disk = io.BytesIO(b"".join(disk_image(10240 * SECTOR, table.extents()).chunks()))
    with refuses("boot_disk.rootfs"):
        rootfs_partition(disk)
    with refuses("boot_disk.efi"):
        measure_boot_disk(disk)


def test_refuses_a_system_partition_without_a_uki() -> None:
    table = boot_partition_table(1)
    volume = fat32_volume(256 * MIB, "DSTACKEFI", [FatFile("other", b"x")], serial=0, timestamp=0)
    extents = [Extent(MIB + extent.offset, extent.data) for extent in volume.extents]
    disk = io.BytesIO(b"".join(disk_image(table.sectors * SECTOR, extents + table.extents()).chunks()))
    with refuses("fat.missing"):
        measure_boot_disk(disk)
