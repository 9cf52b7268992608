"""Builds the demo's enclave images (EIF) with the builder that `dstack-cloud image build` runs."""

import hashlib
from pathlib import Path

from cli.demo.images import AppImage, KmsImage
from functions.builder.blobs import BootBlob, BootBlobs
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import DEFAULT_CMDLINES, BuiltImage, build_nitro_image
from functions.builder.sources import OciLayoutSource

_BOOT_FILES = ("simulated-kernel", "simulated-init", "simulated-nsm.ko")


class ImageBuilder:
    """Builds below `work`, a private directory; everything stays there.

    Kernel, init and nsm.ko are throw-away texts, as nothing boots here. `boot-files` holds them with their
    digests in SHA256SUMS.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._boot_files = _write_boot_files(work / "boot-files")
        self._cache = BuildCache(work / "build-cache")

    def build(self, name: str, image: KmsImage | AppImage) -> BuiltImage:
        """Write `image` as the OCI layout `NAME-oci`, and build NAME.eif from it.

        Raises what `build_nitro_image` does; `OSError` when the layout cannot be written.
        """
        layout = self._work / f"{name}-oci"
        digest = image.write_oci_layout(layout)
        return build_nitro_image(
            OciLayoutSource(layout, digest),
            self._boot_files,
            cache=self._cache,
            output=self._work / f"{name}.eif",
            name=name,
        )


def _write_boot_files(directory: Path) -> BootBlobs:
    directory.mkdir()
    blobs = []
    for name in _BOOT_FILES:
        content = f"{name}: nothing boots in this demo\n".encode()
        (directory / name).write_bytes(content)
        blobs.append(BootBlob(content, hashlib.sha256(content).digest()))
    sums = "".join(f"{blob.digest.hex()}  {name}\n" for blob, name in zip(blobs, _BOOT_FILES, strict=True))
    (directory / "SHA256SUMS").write_text(sums)
    kernel, init, nsm_ko = blobs
    return BootBlobs(kernel, init, nsm_ko, DEFAULT_CMDLINES["x86_64"])
