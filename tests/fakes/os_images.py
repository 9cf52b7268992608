"""A small dstack OS image that is whole: a boot disk that firmware would measure, and its documents."""

from hashlib import sha256
from pathlib import Path
from uuid import UUID

from shared.measurement.boot_disk import UKI_PATH, measure_boot_disk
from shared.measurement.disk_image import MIB, SECTOR, DiskImage, Extent, disk_image
from shared.measurement.documents import gcp_measurement_document
from shared.measurement.fat import FIRST_TIME, MIN_VOLUME, FatFile, fat32_volume
from shared.measurement.gpt import EFI_SYSTEM, Partition, partition_table
from tests.shared.measurement.made_disks import make_uki

_GUID = UUID("00000000-0000-4000-8000-000000000001")
_EFI_LAST = (MIB + MIN_VOLUME) // SECTOR - 1


def boot_disk(kernel: bytes | None = None) -> DiskImage:
    """Return a disk of 35 MiB with a system partition, in which a UKI lies, and nothing else."""
    esp = fat32_volume(
        MIN_VOLUME, "ESP", [FatFile(UKI_PATH, make_uki(kernel))], serial=1, timestamp=FIRST_TIME
    )
    partition = Partition(
        type_guid=EFI_SYSTEM, guid=_GUID, first=MIB // SECTOR, last=_EFI_LAST, name="EFI System Partition"
    )
    table = partition_table(_GUID, (MIN_VOLUME + 2 * MIB) // SECTOR, (partition,))
    shifted = [Extent(MIB + extent.offset, extent.data) for extent in esp.extents]
    return disk_image(table.sectors * SECTOR, shifted + table.extents())


def write_whole_os_image(
    directory: Path, name: str = "dstack-0.6.0", *, kernel: bytes | None = None
) -> bytes:
    """Write the image `name` below `directory`, disk.raw included, and return its os_image_hash."""
    image = directory / name
    image.mkdir(parents=True)
    with (image / "disk.raw").open("w+b") as file:
        boot_disk(kernel).write_to(file)
        sums, measurement, digest = gcp_measurement_document(measure_boot_disk(file).uki_auth)
    assert sha256(sums).digest() == digest
    (image / "sha256sum.txt").write_bytes(sums)
    (image / "measurement.gcp.cbor").write_bytes(measurement)
    (image / "digest.txt").write_text(digest.hex() + "\n")
    return digest
