"""What `docker save` writes: a tar whose `manifest.json` names a configuration and layers (spec 3.2).

The same reader finds the files of an OCI layout that was packed into a tar. Only regular files are found: old
versions of docker wrote a layer that occurs twice as a link, which nothing here follows.
"""

from typing import Any, BinaryIO, Final

import msgspec

from shared.errors import ProtocolError
from shared.measurement.image_layers import Compression
from shared.measurement.image_reference import match_digest
from shared.measurement.oci import MAX_DOCUMENT, MAX_LAYERS
from shared.measurement.tar_stream import REGULAR, read_tar
from shared.strict_json import decode_json

MAX_FILES: Final = 4096
"""Of a saved tar, in blocks of headers: three for each layer of old versions, and a layout's blobs."""

_CODE: Final = "image.save"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class SavedFile(msgspec.Struct, frozen=True):
    """A file of the tar: where its bytes begin, and how many there are."""

    offset: int
    size: int


class SavedImage(msgspec.Struct, frozen=True):
    """One image: the files of its configuration and its layers, lowest first."""

    config: str
    layers: tuple[str, ...]


def list_files(tar: BinaryIO) -> dict[str, SavedFile]:
    """Return the regular files of `tar` by name.

    Raises `ProtocolError`: `image.save.archive`, `image.save.entry`, `image.save.entries`.
    """
    found: dict[str, SavedFile | None] = {}
    for entry in read_tar(tar, code=_CODE, what="saved image", max_blocks=MAX_FILES):
        name = entry.name.removeprefix(b"./").rstrip(b"/").decode("utf-8", "replace")
        if name in found:
            raise ProtocolError("image.save.entry", f"saved image has {name[:200]!r} twice")
        found[name] = SavedFile(entry.offset, entry.size) if entry.kind == REGULAR else None
    return {name: part for name, part in found.items() if part is not None}


def parse_save_manifest(raw: bytes) -> SavedImage:
    """Parse `manifest.json`, which must name exactly one image.

    Raises `ProtocolError`: `image.save.manifest`, `image.save.manifest.*` for JSON.
    """
    document: Any = decode_json(raw, what="manifest.json", code="image.save.manifest", max_bytes=MAX_DOCUMENT)
    if not isinstance(document, list) or len(document) != 1 or not isinstance(document[0], dict):
        raise ProtocolError(
            "image.save.manifest", "saved tar does not hold exactly one image: save one alone"
        )
    config, layers = document[0].get("Config"), document[0].get("Layers")
    if not isinstance(config, str) or not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise ProtocolError(
            "image.save.manifest", f"image has no Config, or no list of at most {MAX_LAYERS} Layers"
        )
    if not all(isinstance(layer, str) for layer in layers):
        raise ProtocolError("image.save.manifest", "image has a layer that is no name")
    return SavedImage(config, tuple(layers))


def digest_in_name(name: str) -> bytes | None:
    """Return the digest that a configuration's name carries: `<hex>.json`, or `blobs/sha256/<hex>`."""
    last = name.rpartition("/")[2].removesuffix(".json")
    return match_digest(f"sha256:{last}")


def layer_compression(head: bytes) -> Compression:
    """Tell by its first bytes how a layer is stored: the tar says nothing about it.

    Raises `ProtocolError("image.layer.zstd")`.
    """
    if head.startswith(_ZSTD):
        raise ProtocolError(
            "image.layer.zstd", "layer is compressed with zstd, which this builder cannot read: use gzip"
        )
    return "gzip" if head.startswith(_GZIP) else "none"
