"""Boot files and builds for the tests of the builder."""

import hashlib
from pathlib import Path
from typing import Any

from functions.builder.blobs import BootBlob, BootBlobs
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import DEFAULT_CMDLINES, BuiltImage, build_nitro_image
from functions.builder.sources import ImageSource, OciLayoutSource
from shared.measurement.cpio import CpioEntry, read_cpio
from shared.measurement.eif import SectionFile, read_eif
from tests.shared.measurement.image_making import Layout


def blob(content: bytes) -> BootBlob:
    return BootBlob(content, hashlib.sha256(content).digest())


BOOT = BootBlobs(blob(b"kernel" * 100), blob(b"#!init"), blob(b"\x7fELF nsm"), DEFAULT_CMDLINES["x86_64"])


def build(source: ImageSource | Path, work: Path, blobs: BootBlobs = BOOT, **options: Any) -> BuiltImage:
    """Build `source` (a layout's directory, or any source) below `work`."""
    work.mkdir(parents=True, exist_ok=True)
    return build_nitro_image(
        OciLayoutSource(source) if isinstance(source, Path) else source,
        blobs,
        cache=options.pop("cache", None) or BuildCache(work / "cache"),
        output=work / "image.eif",
        **options,
    )


def build_layers(work: Path, *layers: bytes, level: int | None = 6, **run: Any) -> BuiltImage:
    return build(Layout(*layers, level=level, **run).write(work / "layout"), work)


def ramdisk(image: Path, index: int = -1) -> dict[str, tuple[CpioEntry, bytes]]:
    """Return the entries of a built image's ramdisk (the second one) with their data."""
    with image.open("rb") as file:
        section = read_eif(file).sections[index]
        return {
            entry.path.decode(): (entry, b"".join(data))
            for entry, data in read_cpio(SectionFile(file, section))
        }
