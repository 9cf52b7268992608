"""Google Cloud's boot disk for an image, and what a vTPM measures of it (spec measurement 5.1 and 5.2).

The disk has a system partition with the unified kernel image (UKI) alone, and the root file system, whose
hash the UKI's command line names. PCR2 then follows whole: a separator, the partition table, the UKI, the
kernel inside it. A policy can pin the two digests that upstream does not check (`images.GcpBoot`).
"""

from hashlib import sha256
from typing import BinaryIO, Final
from uuid import UUID

import msgspec

from shared.errors import ConfigError, InvalidEvidence
from shared.measurement.authenticode import authenticode_digest, pe_section
from shared.measurement.disk_image import MIB, SECTOR, DiskImage, Extent, FileRange, disk_image, range_of
from shared.measurement.fat import FIRST_TIME, FatFile, fat32_volume
from shared.measurement.fat_reader import FatVolume
from shared.measurement.gpt import (
    EFI_SYSTEM,
    LINUX_FILESYSTEM,
    Partition,
    PartitionTable,
    partition_table,
    read_partition_table,
)
from shared.measurement.tdx_registers import BootEvent

UKI_PATH: Final = "EFI/BOOT/BOOTX64.EFI"
"""What UEFI firmware starts from a system partition without being told."""

ROOTFS_NAME: Final = "dstack-rootfs"
DATA_NAME: Final = "dstack-data"

_DISK_GUID: Final = UUID("d5acc000-0000-4000-8000-000000000000")
_ROOTFS_GUID: Final = UUID("d5acc000-0000-4000-8000-000000000001")
_EFI_GUID: Final = UUID("d5acc000-0000-4000-8000-000000000002")
_DATA_DISK_GUID: Final = UUID("d5acc000-0000-4000-8000-000000000010")
_DATA_GUID: Final = UUID("d5acc000-0000-4000-8000-000000000011")

_EFI_NAME: Final = "EFI System Partition"
_EFI_LABEL: Final = "DSTACKEFI"
_EFI_BYTES: Final = 256 * MIB
_EFI_SERIAL: Final = 0xD5AC_C000
_DATA_BYTES: Final = 10 * MIB
_PER_MIB: Final = MIB // SECTOR
_KERNEL_SECTION: Final = b".linux"


class GcpBootMeasurement(msgspec.Struct, frozen=True):
    """What a vTPM shows of a boot disk; all digests are SHA-256, 32 bytes.

    `events` are PCR2's four in order, and `pcr2` their replay. `uki_auth` is the third of them: what
    measurement.gcp.cbor holds.
    """

    uki_auth: bytes
    events: tuple[BootEvent, ...]
    pcr2: bytes


def gcp_boot_disk(
    uki: BinaryIO | FileRange, rootfs: BinaryIO | FileRange, *, source_date_epoch: int = 0
) -> DiskImage:
    """Return the boot disk of a UKI and a root file system, which is squashfs with its verity tree.

    `source_date_epoch` (unix seconds) dates the files of the system partition; 1980 is the earliest. The
    disk's bytes depend on nothing else. Raises `ConfigError`: `boot_disk.rootfs` for an empty one, `fat.full`
    for a UKI over 250 MiB.
    """
    rootfs = range_of(rootfs)
    table = boot_partition_table(rootfs.length)
    esp = fat32_volume(
        _EFI_BYTES,
        _EFI_LABEL,
        [FatFile(UKI_PATH, range_of(uki))],
        serial=_EFI_SERIAL,
        timestamp=max(source_date_epoch, FIRST_TIME),
    )
    extents = [Extent(MIB + extent.offset, extent.data) for extent in esp.extents]
    extents.append(Extent(MIB + _EFI_BYTES, rootfs))
    return disk_image(table.sectors * SECTOR, extents + table.extents())


def boot_partition_table(rootfs_size: int) -> PartitionTable:
    """Return the table of a boot disk whose root file system has `rootfs_size` bytes.

    Partitions start and end at whole MiB; one more is left for the table's second copy. Raises
    `ConfigError("boot_disk.rootfs")` for an empty root file system.
    """
    if rootfs_size <= 0:
        raise ConfigError("boot_disk.rootfs", f"root file system has {rootfs_size} bytes")
    efi_end = (MIB + _EFI_BYTES) // SECTOR
    rootfs_end = efi_end + -(-rootfs_size // MIB) * _PER_MIB
    partitions = (
        Partition(type_guid=EFI_SYSTEM, guid=_EFI_GUID, first=_PER_MIB, last=efi_end - 1, name=_EFI_NAME),
        Partition(
            type_guid=LINUX_FILESYSTEM,
            guid=_ROOTFS_GUID,
            first=efi_end,
            last=rootfs_end - 1,
            name=ROOTFS_NAME,
        ),
    )
    return partition_table(_DISK_GUID, rootfs_end + _PER_MIB, partitions)


def data_disk() -> DiskImage:
    """Return the empty disk of 10 MiB that a guest's data disk is made from: one partition, `dstack-data`."""
    sectors = _DATA_BYTES // SECTOR
    partition = Partition(
        type_guid=LINUX_FILESYSTEM,
        guid=_DATA_GUID,
        first=_PER_MIB,
        last=sectors - _PER_MIB - 1,
        name=DATA_NAME,
    )
    return disk_image(_DATA_BYTES, partition_table(_DATA_DISK_GUID, sectors, (partition,)).extents())


def rootfs_partition(source: BinaryIO | FileRange) -> FileRange:
    """Return the root file system within an image's `rootfs.img.parted.verity` or boot disk.

    Raises `InvalidEvidence("boot_disk.rootfs")` unless exactly one partition is called `dstack-rootfs`, and
    `gpt.*`.
    """
    disk = range_of(source)
    found = [p for p in read_partition_table(disk).partitions if p.name == ROOTFS_NAME]
    return _only(disk, found, "boot_disk.rootfs", f"called {ROOTFS_NAME}")


def measure_boot_disk(source: BinaryIO | FileRange) -> GcpBootMeasurement:
    """Return what a vTPM measures of a `disk.raw`, whoever made it.

    Raises `InvalidEvidence`: `boot_disk.efi` unless it has one system partition, `gpt.*`, `fat.*`, `pe.*`,
    `file.truncated`.
    """
    return measure_boot(*read_boot_disk(source))


def read_boot_disk(source: BinaryIO | FileRange) -> tuple[PartitionTable, FileRange]:
    """Return a boot disk's partition table and its UKI; raises as `measure_boot_disk`, but for `pe.*`."""
    disk = range_of(source)
    table = read_partition_table(disk)
    found = [p for p in table.partitions if p.type_guid == EFI_SYSTEM]
    esp = _only(disk, found, "boot_disk.efi", "that firmware boots from")
    return table, FatVolume(esp).file_range(UKI_PATH)


def uki_kernel(uki: BinaryIO | FileRange) -> FileRange:
    """Return the kernel inside a UKI. Raises `InvalidEvidence("pe.*")`."""
    return pe_section(uki, _KERNEL_SECTION)


def measure_boot(table: PartitionTable, uki: BinaryIO | FileRange) -> GcpBootMeasurement:
    """Return what a vTPM measures of a partition table and a UKI.

    Raises `InvalidEvidence("pe.*")` for a UKI whose digest is not certain, or that has no kernel inside.
    """
    uki_auth = authenticode_digest(uki, "sha256")
    events = (
        BootEvent("separator", sha256(bytes(4)).digest()),
        BootEvent("partition table", sha256(table.boot_event()).digest()),
        BootEvent("unified kernel image", uki_auth),
        BootEvent("kernel", authenticode_digest(uki_kernel(uki), "sha256")),
    )
    pcr2 = bytes(32)
    for event in events:
        pcr2 = sha256(pcr2 + event.digest).digest()
    return GcpBootMeasurement(uki_auth, events, pcr2)


def _only(disk: FileRange, found: list[Partition], code: str, which: str) -> FileRange:
    if len(found) != 1:
        raise InvalidEvidence(code, f"disk has {len(found)} partitions {which}, expected one")
    return disk.part(found[0].first * SECTOR, (found[0].last - found[0].first + 1) * SECTOR)
