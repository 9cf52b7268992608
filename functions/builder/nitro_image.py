"""An enclave image (EIF) from a container image and boot files: same inputs, same bytes (spec measurement 3).

The steps:

1. ask the cache by what the image is made of;
2. check each layer against its digests, and inflate it into a file;
3. merge the layers into a tree, which holds no data;
4. write the bootstrap ramdisk, and the tree as the second one: sorted, all times the epoch's;
5. write the EIF, measured on the way.

What the output depends on: the merged tree's paths, types, modes, owners and contents, the image's argv and
env, the boot files, the command line, architecture and epoch. The registers depend on nothing else. The
file's metadata also names the image's digest, so its bytes follow that one too. Order and times of a layer's
entries, how a layer is compressed, how files are spread over layers, and extended attributes do not count.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from functions.builder.blobs import BootBlob, BootBlobs
from functions.builder.cache import BuildCache, copy_file
from functions.builder.sources import ImageSource, SourceImage
from shared.compose.enclave_toml import ENCLAVE_TOML, MAX_ENCLAVE_TOML
from shared.errors import StorageError
from shared.measurement.cpio import CpioEntry
from shared.measurement.eif import EifMeasurement, write_eif
from shared.measurement.eif_metadata import BuildMetadata, EifMetadata, build_time
from shared.measurement.enclave_ramdisks import (
    DataSource,
    bootstrap_entries,
    customer_entries,
    write_ramdisk,
)
from shared.measurement.image_layers import Unpacking, apply_layers
from shared.measurement.image_reference import format_digest
from shared.measurement.image_tree import Node
from shared.measurement.oci import Arch

BUILDER = "dstack-cloud content/1"
"""Who made an image, in its metadata and in the cache's keys. The number changes when equal inputs would give
other bytes."""

DEFAULT_CMDLINES: dict[Arch, bytes] = {
    "x86_64": b"reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp"
    b" i8042.dumbkbd random.trust_cpu=on",
    "aarch64": b"reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0",
}
"""What nitro-cli ships with its kernels (spec 1.6)."""

ArgvMode = Literal["oci", "nitro-cli"]

_CHUNK = 1 << 20


class BuildInputs(msgspec.Struct, frozen=True):
    """What an image was made of; digests are `sha256:<hex>`. `image` is how the source names it."""

    image: str
    kernel: str
    init: str
    nsm_ko: str
    cmdline: str
    arch: Arch
    argv_mode: ArgvMode
    epoch: int
    name: str
    builder: str = BUILDER


class Built(msgspec.Struct, frozen=True):
    """What a build found. `argv` and `env` are what the enclave runs; `warnings` what it leaves out.

    `enclave_toml` is the text of `/etc/dstack/enclave.toml` in the image, empty where it has none.
    """

    measurement: EifMeasurement
    inputs: BuildInputs
    argv: tuple[str, ...]
    env: tuple[str, ...]
    entries: int
    warnings: tuple[str, ...]
    enclave_toml: str


class BuiltImage(msgspec.Struct, frozen=True):
    """An image at `path`; `is_cached` says that it was built before."""

    path: Path
    built: Built
    is_cached: bool

    @property
    def measurement(self) -> EifMeasurement:
        """The registers and OS_IMAGE_HASH."""
        return self.built.measurement

    @property
    def inputs(self) -> BuildInputs:
        """What it was made of."""
        return self.built.inputs


def build_nitro_image(
    source: ImageSource,
    blobs: BootBlobs,
    *,
    cache: BuildCache,
    output: Path,
    arch: Arch = "x86_64",
    argv_mode: ArgvMode = "oci",
    epoch: int = 0,
    name: str = "enclave",
) -> BuiltImage:
    """Build the EIF of `source` at `output`, or take it from `cache`.

    `epoch` (unix seconds) is the time of every file and of the metadata; `name` is the metadata's ImageName.
    `output` appears whole, and only when everything was checked. Raises what the source, the layers
    (`image.layer.*`), the ramdisks (`ramdisk.*`, `cpio.*`), the EIF (`eif.*`) and the cache refuse;
    `StorageError("build.storage")` where our own files fail.
    """
    inputs = _inputs(source, blobs, arch, argv_mode, epoch, name)
    key = _key(inputs)
    kept = _decode(cache.fetch_build(key, output))
    if kept is not None:
        return BuiltImage(output, kept, is_cached=True)
    return BuiltImage(output, _build_and_keep(source, blobs, inputs, cache, output), is_cached=False)


def measure_nitro_image(
    source: ImageSource,
    blobs: BootBlobs,
    *,
    cache: BuildCache,
    arch: Arch = "x86_64",
    argv_mode: ArgvMode = "oci",
    epoch: int = 0,
    name: str = "enclave",
) -> Built:
    """Return what `build_nitro_image` would build, and leave the image in `cache`: nothing is copied.

    Raises as `build_nitro_image`.
    """
    inputs = _inputs(source, blobs, arch, argv_mode, epoch, name)
    kept = _decode(cache.recorded(_key(inputs)))
    return _build_and_keep(source, blobs, inputs, cache, None) if kept is None else kept


def _inputs(
    source: ImageSource, blobs: BootBlobs, arch: Arch, argv_mode: ArgvMode, epoch: int, name: str
) -> BuildInputs:
    return BuildInputs(
        image=source.identity(arch),
        kernel=format_digest(blobs.kernel.digest),
        init=format_digest(blobs.init.digest),
        nsm_ko=format_digest(blobs.nsm_ko.digest),
        cmdline=blobs.cmdline.decode("latin-1"),
        arch=arch,
        argv_mode=argv_mode,
        epoch=epoch,
        name=name,
    )


def _key(inputs: BuildInputs) -> bytes:
    return hashlib.sha256(msgspec.json.encode(inputs)).digest()


def _build_and_keep(
    source: ImageSource, blobs: BootBlobs, inputs: BuildInputs, cache: BuildCache, output: Path | None
) -> Built:
    with cache.workspace() as work:
        try:
            built = _build(source, blobs, inputs, work)
            if output is not None:
                copy_file(work / "eif", output)
        except OSError as error:
            raise StorageError(
                "build.storage", f"cannot build below {work.parent}: {error.strerror or error}"
            ) from error
        cache.keep_build(_key(inputs), work / "eif", msgspec.json.encode(built))
    return built


def _decode(kept: bytes | None) -> Built | None:
    try:
        return None if kept is None else msgspec.json.decode(kept, type=Built)
    except msgspec.MsgspecError:  # whatever it is, we did not write it
        return None


def _build(source: ImageSource, blobs: BootBlobs, inputs: BuildInputs, work: Path) -> Built:
    image = source.load(inputs.arch)
    argv, env = image.config.argv(inputs.argv_mode), image.config.env
    with ExitStack() as files:
        layers = _unpack_layers(source, image, work, files)
        merged = apply_layers(layers)
        attributes, entries = merged.attributes, merged.tree.entries()
        count = len(entries)
        enclave_toml = _enclave_toml(entries, layers)
        del merged  # a tree of 100,000 files has tens of megabytes
        customer = files.enter_context((work / "customer").open("w+b", buffering=_CHUNK))
        nodes = _ramdisk_nodes(entries, layers)
        write_ramdisk(customer_entries(nodes, argv=argv, env=env, mtime=inputs.epoch), customer.write)
        customer.seek(0)
        bootstrap = BytesIO()
        write_ramdisk(bootstrap_entries(_in_memory(blobs.init), _in_memory(blobs.nsm_ko)), bootstrap.write)
        bootstrap.seek(0)
        eif = files.enter_context((work / "eif").open("w+b", buffering=_CHUNK))
        measurement = write_eif(
            eif,
            kernel=BytesIO(blobs.kernel.content),
            cmdline=blobs.cmdline,
            ramdisks=(bootstrap, customer),
            metadata=_metadata(image, inputs),
            arch=inputs.arch,
        )
    warnings = image.config.warnings
    if attributes:
        warnings += (f"{attributes} extended attributes are left out: a ramdisk cannot hold them",)
    return Built(measurement, inputs, argv, env, count, warnings, enclave_toml)


def _enclave_toml(entries: list[tuple[bytes, Node]], layers: list[BinaryIO]) -> str:
    """Return the file's text; empty for one that is absent, a link, or larger than any real one."""
    path = ENCLAVE_TOML.encode()
    node = next((node for found, node in entries if found == path), None)
    if node is None or not stat.S_ISREG(node.mode) or node.size > MAX_ENCLAVE_TOML:
        return ""
    return b"".join(_Content(node, layers)()).decode(errors="replace")


def _unpack_layers(source: ImageSource, image: SourceImage, work: Path, files: ExitStack) -> list[BinaryIO]:
    unpacking = Unpacking()
    layers: list[BinaryIO] = []
    for number, stored in enumerate(image.layers):
        file = files.enter_context((work / f"layer-{number}").open("w+b", buffering=_CHUNK))
        with source.open_layer(stored, work) as blob:
            unpacking.unpack_layer(blob, stored.size, stored.layer, file.write)
        file.flush()
        layers.append(file)
    return layers


def _ramdisk_nodes(
    entries: list[tuple[bytes, Node]], layers: list[BinaryIO]
) -> Iterator[tuple[CpioEntry, DataSource]]:
    """Yield the entries for the ramdisk, last first, and empty the list: its taker keeps what it needs."""
    while entries:
        path, node = entries.pop()
        size = node.size if stat.S_ISREG(node.mode) else len(node.target)
        yield CpioEntry(path, node.mode, node.uid, node.gid, size=size), _Content(node, layers)


class _Content(msgspec.Struct, frozen=True):
    """A node's data when its turn comes; a third of a closure's size, and there is one for each file."""

    node: Node
    layers: list[BinaryIO]

    def __call__(self) -> Iterable[bytes]:
        if self.node.target:
            return (self.node.target,)
        descriptor = self.layers[self.node.layer].fileno()
        return _read_part(descriptor, self.node.offset, self.node.size)


def _read_part(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    while size and (piece := os.pread(descriptor, min(size, _CHUNK), offset)):
        offset += len(piece)
        size -= len(piece)
        yield piece


def _in_memory(blob: BootBlob) -> tuple[int, DataSource]:
    def data() -> Iterable[bytes]:
        return (blob.content,)

    return len(blob.content), data


def _metadata(image: SourceImage, inputs: BuildInputs) -> EifMetadata:
    digest = format_digest(image.digest)
    return EifMetadata(
        image_name=inputs.name,
        image_version=image.digest.hex(),
        build_metadata=BuildMetadata(
            build_time=build_time(inputs.epoch),
            build_tool=BUILDER.partition(" ")[0],
            build_tool_version=BUILDER.partition(" ")[2],
            operating_system="Linux",
            kernel_version=inputs.kernel,
        ),
        docker_info=None,
        custom_metadata={
            "oci_manifest" if image.is_manifest else "oci_config": digest,
            "argv_mode": inputs.argv_mode,
            "kernel": inputs.kernel,
            "init": inputs.init,
            "nsm_ko": inputs.nsm_ko,
        },
    )
