"""The documents of an image: layout, index, manifest, configuration (spec measurement 3.2, 3.4).

All of them come from whoever made the image, so each is bounded, and each is believed for what its digest
pins only. A document that two readers could take for two things (an index with layers, another media type
than its descriptor's) is refused. Members that we do not use are ignored, as the OCI specification asks.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NoReturn

import msgspec

from shared.errors import ProtocolError
from shared.measurement.image_layers import Compression, Layer
from shared.measurement.image_reference import format_digest, match_digest
from shared.strict_json import decode_json

MAX_DOCUMENT: Final = 4 << 20
"""Of a manifest, index or configuration: what registries take for a manifest."""

MAX_BLOB: Final = 8 << 30
"""Of one layer as it is stored; more could not be unpacked within `image_layers.MAX_UNPACKED`."""

MAX_LAYERS: Final = 256
"""Docker stops at 127."""

MAX_MANIFESTS: Final = 1024
"""Of an index: platforms, and two statements about each of them."""

MAX_INDEX_DEPTH: Final = 3
"""An index in a layout's index is usual; the specification sets no end to it."""

MAX_ARGUMENTS: Final = 4096
"""Of argv and of env; Linux takes 2 MiB of both together (ARG_MAX's usual value)."""

MAX_ARGUMENT: Final = 128 * 1024
"""Of one argument, in bytes (MAX_ARG_STRLEN)."""

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_LAYERS: Final[dict[str, Compression]] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
}
_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
_FOREIGN: Final = ("nondistributable", "foreign")

Arch = Literal["x86_64", "aarch64"]
_ARCHITECTURES: Final[dict[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}
# 64-bit ARM has one variant that images are made for, and most do not name it.
_VARIANTS: Final = {"amd64": {None, "", "v1"}, "arm64": {None, "", "v8"}}


class Descriptor(msgspec.Struct, frozen=True):
    """What one document says of another: media type, SHA-256 (32 bytes), size in bytes."""

    media_type: str
    digest: bytes
    size: int


class PlatformDescriptor(msgspec.Struct, frozen=True):
    """An entry of an index. `os` and the rest are None where it names no platform."""

    descriptor: Descriptor
    os: str | None
    architecture: str | None
    variant: str | None
    is_statement: bool
    """Whether it is about another entry (provenance, a signature) rather than an image."""


class Manifest(msgspec.Struct, frozen=True):
    """An image's configuration and layers, lowest first; `compressions` go with the layers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    compressions: tuple[Compression, ...]


class ImageConfig(msgspec.Struct, frozen=True):
    """What an image says of itself. `entrypoint` and `cmd` are empty where it has none."""

    os: str
    architecture: str
    variant: str | None
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    user: str
    diff_ids: tuple[bytes, ...]

    def argv(self, mode: Literal["oci", "nitro-cli"]) -> tuple[str, ...]:
        """Return what the enclave runs: `oci` is Entrypoint + Cmd, as everywhere but in `nitro-cli`.

        That one takes Cmd alone, and Entrypoint only where there is no Cmd (trap 5).
        """
        if mode == "oci":
            return self.entrypoint + self.cmd
        return self.cmd or self.entrypoint

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the image asks for and does not get: AWS's init runs everything as root in `/`."""
        found = []
        if self.user not in {"", "0", "root", "0:0", "root:root"}:
            found.append(f"User {self.user[:80]!r} is ignored: the enclave's init runs the program as root")
        if self.working_dir not in {"", "/"}:
            found.append(f"WorkingDir {self.working_dir[:80]!r} is ignored: the program starts in /")
        return tuple(found)


class Image(msgspec.Struct, frozen=True):
    """One image of one platform: its manifest's descriptor, manifest and configuration, checked together."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def layers(self) -> tuple[tuple[Descriptor, Layer], ...]:
        """The layers, lowest first, each as it is stored and as it unpacks."""
        return tuple(
            (stored, Layer(compression, diff_id))
            for stored, compression, diff_id in zip(
                self.manifest.layers, self.manifest.compressions, self.config.diff_ids, strict=True
            )
        )


def check_layout(raw: bytes) -> None:
    """Check the file `oci-layout`. Raises `ProtocolError`: `image.layout`, `image.layout.*` for its JSON."""
    document = _document(raw, "oci-layout", "image.layout")
    version = document.get("imageLayoutVersion")
    if version != "1.0.0":
        raise ProtocolError("image.layout", f"oci-layout has the version {version!r}, expected '1.0.0'")


def resolve_image(
    root: Descriptor | bytes, arch: Arch, read: Callable[[Descriptor], bytes], *, pinned: bytes | None = None
) -> Image:
    """Find the image of `arch` below `root`: a descriptor, or the bytes of a layout's `index.json`.

    `read` returns what a descriptor names, at most `MAX_DOCUMENT` bytes, and is called up to
    `MAX_INDEX_DEPTH` + 2 times; what it returns is checked here. `pinned` is the digest that the image, or an
    index above it, must have. Raises `ProtocolError`: `image.blob` (size or digest), `image.media_type`,
    `image.index`, `image.manifest`, `image.config`, each with `.*` for JSON, `image.platform` (none, or
    several), `image.depth`, `image.pinned`, `image.layer.zstd`, `image.layer.foreign`.
    """
    if isinstance(root, bytes):
        entries = parse_index(root)
        if pinned is not None:
            entries = tuple(one for one in entries if one.descriptor.digest == pinned) or entries
        at = choose(entries, arch)
    else:
        at = root
    is_pinned = pinned is None or at.digest == pinned
    for _ in range(MAX_INDEX_DEPTH):
        raw = check_blob(read(at), at)
        if at.media_type not in INDEXES:
            break
        at = choose(parse_index(raw, at.media_type), arch)
        is_pinned = is_pinned or at.digest == pinned
    else:
        raise ProtocolError("image.depth", f"an index lies in more than {MAX_INDEX_DEPTH} others")
    if pinned is not None and not is_pinned:
        raise ProtocolError("image.pinned", f"found no image with the digest {format_digest(pinned)}")
    manifest = parse_manifest(raw, at.media_type)
    config = parse_config(check_blob(read(manifest.config), manifest.config))
    return Image(at, manifest, checked_config(config, arch, len(manifest.layers)))


def checked_config(config: ImageConfig, arch: Arch, layers: int) -> ImageConfig:
    """Return `config` if it is for `arch` and has a digest for each of its layers.

    Raises `ProtocolError`: `image.platform`, `image.config`.
    """
    if (config.os, config.architecture) != ("linux", _ARCHITECTURES[arch]):
        raise ProtocolError(
            "image.platform",
            f"image is for {config.os[:40]!r} on {config.architecture[:40]!r}, expected linux on"
            f" {_ARCHITECTURES[arch]}",
        )
    if len(config.diff_ids) != layers:
        raise ProtocolError(
            "image.config", f"configuration has {len(config.diff_ids)} diff_ids, the image {layers} layers"
        )
    return config


def check_blob(raw: bytes, descriptor: Descriptor) -> bytes:
    """Return `raw` if it is what `descriptor` names. Raises `ProtocolError("image.blob")`."""
    if len(raw) != descriptor.size:
        raise ProtocolError(
            "image.blob",
            f"{format_digest(descriptor.digest)} has {len(raw)} bytes, expected {descriptor.size}",
        )
    digest = hashlib.sha256(raw).digest()
    if not hmac.compare_digest(digest, descriptor.digest):
        raise ProtocolError(
            "image.blob", f"got {format_digest(digest)}, expected {format_digest(descriptor.digest)}"
        )
    return raw


def parse_index(raw: bytes, media_type: str | None = None) -> tuple[PlatformDescriptor, ...]:
    """Parse an index or manifest list. Raises `ProtocolError`: `image.index`, `image.index.*` for JSON."""
    document = _document(raw, "index", "image.index")
    _check_kind(document, media_type, INDEXES, foreign=("layers", "config", "fsLayers"), code="image.index")
    manifests = document.get("manifests")
    if not isinstance(manifests, list) or len(manifests) > MAX_MANIFESTS:
        raise ProtocolError("image.index", f"index has no list of at most {MAX_MANIFESTS} manifests")
    return tuple(_platform_descriptor(one) for one in manifests)


def choose(entries: Sequence[PlatformDescriptor], arch: Arch) -> Descriptor:
    """Return the one image for Linux on `arch`; an entry alone may leave its platform to its configuration.

    Raises `ProtocolError("image.platform")` for none and for several.
    """
    images = [one for one in entries if not one.is_statement]
    architecture = _ARCHITECTURES[arch]
    fitting = [
        one
        for one in images
        if (one.os, one.architecture) == ("linux", architecture) and one.variant in _VARIANTS[architecture]
    ]
    if not fitting and len(images) == 1 and images[0].architecture is None:
        fitting = images
    if len(fitting) != 1:
        raise ProtocolError(
            "image.platform",
            f"index has {len(fitting)} images for linux on {architecture} among {len(images)}, expected one:"
            " give its digest",
        )
    return fitting[0].descriptor


def parse_manifest(raw: bytes, media_type: str | None = None) -> Manifest:
    """Parse a manifest.

    Raises `ProtocolError`: `image.manifest`, `image.manifest.*` for JSON, `image.media_type`,
    `image.layer.zstd`, `image.layer.foreign`.
    """
    document = _document(raw, "manifest", "image.manifest")
    _check_kind(document, media_type, MANIFESTS, foreign=("manifests", "fsLayers"), code="image.manifest")
    config = _descriptor(document.get("config"), "image.manifest", MAX_DOCUMENT)
    if config.media_type not in CONFIGS:
        _refuse_media_type("configuration", config.media_type)
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise ProtocolError("image.manifest", f"manifest has no list of at most {MAX_LAYERS} layers")
    descriptors = tuple(_descriptor(layer, "image.manifest", MAX_BLOB) for layer in layers)
    return Manifest(config, descriptors, tuple(_compression(one.media_type) for one in descriptors))


def parse_config(raw: bytes) -> ImageConfig:
    """Parse an image's configuration. Raises `ProtocolError`: `image.config`, `image.config.*` for JSON."""
    document = _document(raw, "configuration", "image.config")
    run = _member(document, "config", dict, {})
    rootfs = _member(document, "rootfs", dict, {})
    diff_ids = [match_digest(one) for one in _member(rootfs, "diff_ids", list, [])]
    if rootfs.get("type") != "layers" or len(diff_ids) > MAX_LAYERS or None in diff_ids:
        raise ProtocolError("image.config", f"rootfs is no list of at most {MAX_LAYERS} sha256 diff_ids")
    return ImageConfig(
        os=_member(document, "os", str, ""),
        architecture=_member(document, "architecture", str, ""),
        variant=_member(document, "variant", str, "") or None,
        env=_strings(run, "Env"),
        entrypoint=_strings(run, "Entrypoint"),
        cmd=_strings(run, "Cmd"),
        working_dir=_member(run, "WorkingDir", str, ""),
        user=_member(run, "User", str, ""),
        diff_ids=tuple(one for one in diff_ids if one is not None),
    )


def _document(raw: bytes, what: str, code: str) -> dict[str, Any]:
    document = decode_json(raw, what=what, code=code, max_bytes=MAX_DOCUMENT)
    if not isinstance(document, dict):
        raise ProtocolError(code, f"{what} is not a json object")
    return document


def _check_kind(
    document: dict[str, Any],
    media_type: str | None,
    expected: frozenset[str],
    *,
    foreign: Sequence[str],
    code: str,
) -> None:
    """Refuse a document that could pass as another kind of document too."""
    version = document.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        raise ProtocolError(code, f"document has the schemaVersion {str(version)[:40]!r}, expected 2")
    own = document.get("mediaType", media_type)
    if media_type is not None and (media_type not in expected or own != media_type):
        _refuse_media_type(f"document described as {media_type[:80]!r}", own)
    if own is not None and own not in expected:
        _refuse_media_type("document", own)
    for name in foreign:
        if name in document:
            raise ProtocolError(code, f"document has {name} too, which belongs to another kind of document")


def _platform_descriptor(value: object) -> PlatformDescriptor:
    descriptor = _descriptor(value, "image.index", MAX_DOCUMENT)
    assert isinstance(value, dict)  # noqa: S101 - `_descriptor` refused anything else
    platform = _member(value, "platform", dict, {}, code="image.index")
    names = {
        name: _member(platform, name, str, "", code="image.index") or None
        for name in ("os", "architecture", "variant")
    }
    is_image = descriptor.media_type in INDEXES | MANIFESTS and "artifactType" not in value
    return PlatformDescriptor(
        descriptor,
        names["os"],
        names["architecture"],
        names["variant"],
        # buildkit keeps its statements under a platform that does not exist
        is_statement=not is_image or names["architecture"] == "unknown",
    )


def _descriptor(value: object, code: str, max_size: int) -> Descriptor:
    if not isinstance(value, dict):
        raise ProtocolError(code, "a descriptor is no object")
    media_type, size = value.get("mediaType"), value.get("size")
    digest = match_digest(value.get("digest"))
    if not isinstance(media_type, str) or digest is None:
        raise ProtocolError(code, "a descriptor has no media type, or no digest of sha256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= max_size:
        raise ProtocolError(code, f"a descriptor has the size {str(size)[:40]!r}, expected 0 to {max_size}")
    return Descriptor(media_type, digest, size)


def _compression(media_type: str) -> Compression:
    if media_type == _ZSTD:
        raise ProtocolError(
            "image.layer.zstd",
            "layer is compressed with zstd, which this builder cannot read: push the image with gzip",
        )
    if any(word in media_type for word in _FOREIGN):
        raise ProtocolError("image.layer.foreign", f"layer of type {media_type[:80]!r} lies elsewhere")
    if media_type not in _LAYERS:
        _refuse_media_type("layer", media_type)
    return _LAYERS[media_type]


def _member(
    document: dict[str, Any],
    name: str,
    kind: type[Any],
    default: object,
    *,
    code: str = "image.config",
) -> Any:  # noqa: ANN401 - it is of `kind`
    value = document.get(name)
    if value is None:  # absent, or the null that Go writes for what is empty
        return default
    if not isinstance(value, kind):
        raise ProtocolError(code, f"{name} is of the wrong type")
    return value


def _strings(document: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of texts that the enclave's `cmd` and `env`, one line each, can express."""
    values = _member(document, name, list, [])
    if len(values) > MAX_ARGUMENTS:
        raise ProtocolError(
            "image.config", f"{name} has {len(values)} texts, expected at most {MAX_ARGUMENTS}"
        )
    for value in values:
        if not isinstance(value, str) or len(value) > MAX_ARGUMENT:
            raise ProtocolError("image.config", f"{name} is no list of texts of at most {MAX_ARGUMENT} bytes")
        if "\n" in value or "\0" in value:
            raise ProtocolError(
                "image.config", f"{name} has a newline or NUL, which an enclave cannot be given"
            )
    return tuple(values)


def _refuse_media_type(what: str, got: object) -> NoReturn:
    raise ProtocolError(
        "image.media_type", f"{what} has the media type {str(got)[:80]!r}, which is not taken"
    )
