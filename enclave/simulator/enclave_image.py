"""What a hypervisor and AWS's init make of an enclave image (EIF): registers, and the root file system.

A kernel, its command line and the bootstrap count for the registers alone: no kernel is booted here.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.errors import ConfigError
from shared.measurement.cpio import CpioEntry, read_cpio
from shared.measurement.eif import SectionFile, measure_eif, read_eif
from shared.measurement.eif_registers import SectionKind
from shared.measurement.enclave_ramdisks import ROOT

_RAMDISKS = 2
"""The bootstrap and the customer's. An enclave would merge more, in an order that nothing here needs."""


def read_registers(image: BinaryIO) -> dict[int, bytes]:
    """Return PCR0 to PCR2 of an image, and PCR8 of a signed one (48 bytes each); hashes the whole file.

    Raises `InvalidEvidence("eif.*")` as `measure_eif`.
    """
    measured = measure_eif(image)
    signer = {} if measured.pcr8 is None else {8: measured.pcr8}
    return {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2, **signer}


def unpack_root(image: BinaryIO, directory: Path) -> None:
    """Write the customer's root file system of an image into `directory`, which must not exist.

    Modes, owners and times were measured and are not applied: files are read here, never run. Links lead
    where they do in the enclave, whose root is `directory`; one that leads out of it is refused, as whoever
    follows it would read what nobody measured.

    Raises `ConfigError`: `simulator.image.ramdisks`, `simulator.image.root` (none, or no directory),
    `simulator.image.entry` for devices and pipes, `simulator.image.link`; `InvalidEvidence`: `eif.*`,
    `cpio.*`; `OSError`.
    """
    ramdisks = [section for section in read_eif(image).sections if section.kind is SectionKind.RAMDISK]
    if len(ramdisks) != _RAMDISKS:
        raise ConfigError(
            "simulator.image.ramdisks", f"image has {len(ramdisks)} ramdisks, expected {_RAMDISKS}"
        )
    directory.mkdir(mode=0o700, parents=True)
    links: list[Path] = []
    has_root = False
    for entry, data in read_cpio(SectionFile(image, ramdisks[1])):
        # the reader takes no path that leads elsewhere, and nothing below what is no directory
        first, _, path = entry.path.partition(b"/")
        if first != ROOT:
            continue
        if not path:
            has_root = stat.S_ISDIR(entry.mode)
            continue
        place = directory / os.fsdecode(path)
        if stat.S_ISLNK(entry.mode):
            place.symlink_to(os.fsdecode(_target(path, b"".join(data))))
            links.append(place)
        else:
            _write(entry, data, place)
    if not has_root:
        raise ConfigError("simulator.image.root", f"image's second ramdisk has no directory {ROOT.decode()}")
    root = Path(os.path.realpath(directory))
    for link in links:
        # realpath, as `Path.resolve` fails for links that lead to each other
        if not Path(os.path.realpath(link)).is_relative_to(root):
            raise ConfigError("simulator.image.link", f"{link.name!a} leads out of the image")


def _write(entry: CpioEntry, data: Iterator[bytes], place: Path) -> None:
    if stat.S_ISDIR(entry.mode):
        place.mkdir(exist_ok=True)  # an archive may name it twice
    elif stat.S_ISREG(entry.mode):
        with place.open("xb") as file:
            file.writelines(data)
    else:
        raise ConfigError(
            "simulator.image.entry", f"{place} is neither a directory, a file nor a symbolic link"
        )


def _target(path: bytes, target: bytes) -> bytes:
    """Return a link's target as it leads from `path`'s place: an absolute one starts at the image's root."""
    if b"\0" in target:
        raise ConfigError("simulator.image.link", f"{os.fsdecode(path)!a} leads to a path with a NUL")
    return b"../" * path.count(b"/") + (target.lstrip(b"/") or b".") if target.startswith(b"/") else target
