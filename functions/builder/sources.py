"""Where an image comes from: an OCI layout (directory or tar), a `docker save` tar, or a registry.

Each source checks what it hands out against the digests that lead to it. A layer is read once, in order.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from shared.errors import ConfigError, ProtocolError, StorageError
from shared.measurement.cpio import Readable
from shared.measurement.image_layers import Layer
from shared.measurement.image_reference import (
    ImageReference,
    format_digest,
    match_digest,
    parse_reference,
    pinned_digest,
)
from shared.measurement.oci import (
    MANIFESTS,
    MAX_DOCUMENT,
    Arch,
    Descriptor,
    Image,
    ImageConfig,
    check_layout,
    checked_config,
    parse_config,
    resolve_image,
)
from shared.measurement.save_tar import (
    SavedFile,
    digest_in_name,
    layer_compression,
    list_files,
    parse_save_manifest,
)

if TYPE_CHECKING:  # a layout or a tar is read without the network's modules
    from shared.net.registry import RegistryClient


class StoredLayer(msgspec.Struct, frozen=True):
    """A layer as a source has it: its name there, size, digest (None in a saved tar), and how it unpacks."""

    name: str
    size: int
    digest: bytes | None
    layer: Layer


class SourceImage(msgspec.Struct, frozen=True):
    """One image of a source. `digest` (32 bytes) is its manifest's, or its configuration's in a saved tar."""

    digest: bytes
    is_manifest: bool
    config: ImageConfig
    layers: tuple[StoredLayer, ...]


class ImageSource(Protocol):
    """A source of one image. Errors are those of `shared.measurement` and `shared.net.registry`."""

    def identity(self, arch: Arch) -> str:
        """Return a text that is the same only for the same image: a cache's key."""
        ...

    def load(self, arch: Arch) -> SourceImage:
        """Return the image for `arch`, layers not read yet."""
        ...

    def open_layer(self, layer: StoredLayer, workspace: Path) -> AbstractContextManager[Readable]:
        """Open a layer of `load`; an error at the end of the block says that it was another."""
        ...


class OciLayoutSource:
    """An OCI layout, as a directory or as a tar of one. `pinned` is the digest that its image must have.

    Raises `ConfigError("image.source")` for a file that cannot be read; so do the methods.
    """

    def __init__(self, path: Path, pinned: bytes | None = None) -> None:
        self._files: _Files = _Directory(path) if _is_directory(path) else _Tar(path)
        self._pinned = pinned

    def identity(self, arch: Arch) -> str:
        """See `ImageSource.identity`; reads the documents, not the layers."""
        return _identity(self.load(arch), arch)

    def load(self, arch: Arch) -> SourceImage:
        """See `ImageSource.load`."""
        check_layout(self._files.read("oci-layout"))
        index = self._files.read("index.json")
        image = resolve_image(
            index, arch, lambda descriptor: self._files.read(_blob(descriptor.digest)), pinned=self._pinned
        )
        return _of_manifest(image)

    @contextmanager
    def open_layer(self, layer: StoredLayer, workspace: Path) -> Iterator[Readable]:
        """See `ImageSource.open_layer`."""
        del workspace
        with self._files.open(layer.name) as (file, size):
            reader = _CheckedReader(file, layer, size)
            yield reader
            reader.finish()


class SaveTarSource:
    """What `docker save` wrote, one image. `pinned` is the digest of its configuration (docker's image id).

    Raises `ConfigError("image.source")` for a file that cannot be read; so do the methods.
    """

    def __init__(self, path: Path, pinned: bytes | None = None) -> None:
        self._tar = _Tar(path)
        self._pinned = pinned

    def identity(self, arch: Arch) -> str:
        """See `ImageSource.identity`."""
        return _identity(self.load(arch), arch)

    def load(self, arch: Arch) -> SourceImage:
        """See `ImageSource.load`."""
        saved = parse_save_manifest(self._tar.read("manifest.json"))
        raw = self._tar.read(saved.config)
        digest = hashlib.sha256(raw).digest()
        for expected in (digest_in_name(saved.config), self._pinned):
            if expected is not None and not hmac.compare_digest(digest, expected):
                raise ProtocolError(
                    "image.blob",
                    f"configuration is {format_digest(digest)}, expected {format_digest(expected)}",
                )
        config = checked_config(parse_config(raw), arch, len(saved.layers))
        layers = []
        for name, diff_id in zip(saved.layers, config.diff_ids, strict=True):
            with self._tar.open(name) as (file, size):
                layer = Layer(layer_compression(file.read(4)), diff_id)
            layers.append(StoredLayer(name, size, None, layer))
        return SourceImage(digest, is_manifest=False, config=config, layers=tuple(layers))

    @contextmanager
    def open_layer(self, layer: StoredLayer, workspace: Path) -> Iterator[Readable]:
        """See `ImageSource.open_layer`; the layer's `diff_id` alone tells whether it is the one."""
        del workspace
        with self._tar.open(layer.name) as (file, _):
            yield file


class RegistrySource:
    """An image in a registry, by digest. Raises `ConfigError("image.reference.unpinned")`."""

    def __init__(self, reference: ImageReference, client: "RegistryClient") -> None:
        self._digest = pinned_digest(reference)
        self._client = client

    def identity(self, arch: Arch) -> str:
        """See `ImageSource.identity`; asks nobody."""
        return f"{arch} {format_digest(self._digest)}"

    def load(self, arch: Arch) -> SourceImage:
        """See `ImageSource.load`."""
        root, raw = self._client.manifest(self._digest)

        def read(descriptor: Descriptor) -> bytes:
            if descriptor == root:
                return raw
            if descriptor.media_type in MANIFESTS:
                return self._client.manifest(descriptor.digest)[1]
            blob = bytearray()
            self._client.blob(descriptor, blob.extend)
            return bytes(blob)

        return _of_manifest(resolve_image(root, arch, read))

    @contextmanager
    def open_layer(self, layer: StoredLayer, workspace: Path) -> Iterator[Readable]:
        """See `ImageSource.open_layer`; the blob lies in `workspace` while it is open."""
        if layer.digest is None:
            raise AssertionError("a manifest names every layer by its digest")
        place = workspace / "pulled"
        try:
            with place.open("xb") as file:
                self._client.blob(Descriptor("", layer.digest, layer.size), file.write)
            with place.open("rb") as file:
                yield file
        finally:
            place.unlink(missing_ok=True)


def open_source(text: str, connect: "Callable[[ImageReference], RegistryClient]") -> ImageSource:
    """Return the source that `text` names.

    An existing directory is an OCI layout, an existing file a tar (a layout, or what `docker save` wrote),
    both with an optional `@sha256:...` at the end; all else is a reference, which `connect` takes. Raises
    `ConfigError`: `image.source`, `image.reference.*`, `image.digest`; for a tar, what `list_files` raises.
    """
    head, at, tail = text.rpartition("@")
    pinned = match_digest(tail) if at else None
    path = Path(text if pinned is None else head)
    if _is_directory(path):
        return OciLayoutSource(path, pinned)
    if path.exists():
        if _Tar(path).has("oci-layout"):
            return OciLayoutSource(path, pinned)
        return SaveTarSource(path, pinned)
    if text.startswith((".", "/")):
        raise ConfigError("image.source", f"there is no image at {text[:200]!r}")
    reference = parse_reference(text)
    pinned_digest(reference)
    return RegistrySource(reference, connect(reference))


class _Files(Protocol):
    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> AbstractContextManager[tuple[Readable, int]]: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes:
        with self.open(name) as (file, size):
            return _small(file, size, name)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Readable, int]]:
        with _opened(self._path / name) as file:
            size = file.seek(0, 2)
            file.seek(0)
            yield file, size


class _Tar:
    """The files of a tar, which is listed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as file:
            self._files = list_files(file)

    def has(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> bytes:
        with self.open(name) as (file, size):
            return _small(file, size, name)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Readable, int]]:
        found = self._files.get(name)
        if found is None:
            raise ProtocolError("image.source.missing", f"image has no file {name[:200]!r}, or it is a link")
        with _opened(self._path) as file:
            yield _Slice(file, found), found.size


class _Slice:
    """A part of a file, read in order."""

    def __init__(self, file: BinaryIO, part: SavedFile) -> None:
        file.seek(part.offset)
        self._file = file
        self._left = part.size

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(min(size, self._left))
        self._left -= len(piece)
        return piece


class _CheckedReader:
    """A blob that is hashed as it is read."""

    def __init__(self, file: Readable, layer: StoredLayer, size: int) -> None:
        if size != layer.size:
            raise ProtocolError("image.blob", f"{layer.name} has {size} bytes, expected {layer.size}")
        self._file = file
        self._layer = layer
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece

    def finish(self) -> None:
        digest = self._digest.digest()
        if self._layer.digest is None or not hmac.compare_digest(digest, self._layer.digest):
            raise ProtocolError("image.blob", f"{self._layer.name} is {format_digest(digest)}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # a named pipe or a device would block, or have no end
        file = path.open("rb") if path.is_file() else None
    except OSError as error:
        raise _unreadable(path, error) from error
    if file is None:
        raise ConfigError("image.source", f"{str(path)[:200]} is no file")
    with file:
        yield file


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long, or in a directory that we may not enter
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError("image.source", f"cannot read {str(path)[:200]}: {error.strerror}")


def _small(file: Readable, size: int, name: str) -> bytes:
    if size > MAX_DOCUMENT:
        raise ProtocolError(
            "image.source.size", f"{name[:200]} has {size} bytes, expected up to {MAX_DOCUMENT}"
        )
    raw = file.read(size)
    if len(raw) != size:
        raise StorageError("image.source.changed", f"{name[:200]} changed while it was read")
    return raw


def _blob(digest: bytes) -> str:
    return f"blobs/sha256/{digest.hex()}"


def _of_manifest(image: Image) -> SourceImage:
    layers = tuple(
        StoredLayer(_blob(stored.digest), stored.size, stored.digest, layer) for stored, layer in image.layers
    )
    return SourceImage(image.descriptor.digest, is_manifest=True, config=image.config, layers=layers)


def _identity(image: SourceImage, arch: Arch) -> str:
    kind = "" if image.is_manifest else "config "
    return f"{arch} {kind}{format_digest(image.digest)}"
