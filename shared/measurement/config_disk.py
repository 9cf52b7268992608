"""The disk that brings an app its configuration: FAT32, labelled DSTACKSHR (spec deploy 1.5 and 4)."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from shared.errors import ConfigError
from shared.measurement.disk_image import MIB, DiskImage
from shared.measurement.fat import FIRST_TIME, MIN_VOLUME, FatFile, fat32_volume

LABEL: Final = "DSTACKSHR"
"""What the guest looks for among the disks' labels."""

# The guest refuses a larger one, at boot.
MAX_BYTES: Final = {
    "app-compose.json": 50 * MIB,
    ".sys-config.json": 32 * 1024,
    ".instance_info": 10 * 1024,
    ".encrypted-env": 256 * 1024,
    ".user-config": 50 * MIB,
}
"""The files of the disk in their order, each with the guest's limit in bytes."""

REQUIRED: Final = ("app-compose.json", ".sys-config.json")

_SPARE: Final = 4 * MIB  # tables, and what the last cluster of each file wastes


def config_disk(files: Mapping[str, bytes]) -> DiskImage:
    """Return the disk with these files: a function of their names and bytes alone.

    Every entry is dated 1980-01-01, and the volume's serial number is taken from the files' hash. Raises
    `ConfigError`: `config_disk.file` for a name that the guest does not read, `config_disk.missing`,
    `config_disk.size` for more bytes than the guest takes.
    """
    if unknown := sorted(files.keys() - MAX_BYTES.keys()):
        raise ConfigError(
            "config_disk.file", f"{unknown[0][:80]!r} is no file of the disk, expected {', '.join(MAX_BYTES)}"
        )
    if missing := [name for name in REQUIRED if name not in files]:
        raise ConfigError("config_disk.missing", f"the disk lacks {', '.join(missing)}")
    digest = sha256()
    listed = []
    for name, limit in MAX_BYTES.items():
        if (data := files.get(name)) is None:
            continue
        if len(data) > limit:
            raise ConfigError(
                "config_disk.size", f"{name} has {len(data)} bytes, the guest takes at most {limit}"
            )
        digest.update(name.encode() + b"\0" + sha256(data).digest())
        listed.append(FatFile(name, data))
    serial = int.from_bytes(digest.digest()[:4], "little")
    size = config_disk_size(sum(len(data) for data in files.values()))
    return fat32_volume(size, LABEL, listed, serial=serial, timestamp=FIRST_TIME)


def config_disk_size(content: int) -> int:
    """Return the disk's size for files of `content` bytes in all: 4 MiB more, whole MiB, 33 MiB at least.

    The upstream tool makes 8 MiB at least, which Debian's mtools does not read as FAT32 (`fat.MIN_VOLUME`).
    What is more is a hole, and the cloud makes a disk of 1 GB of it anyway.
    """
    return max(MIN_VOLUME, -(-(content + _SPARE) // MIB) * MIB)
