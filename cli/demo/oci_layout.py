"""Writes container images as OCI layouts: what `docker buildx` would push, with equal bytes each time."""

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from shared.measurement.oci import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PLATFORM = {"os": "linux", "architecture": "amd64"}


class ImageFile(msgspec.Struct, frozen=True):
    """A file of an image; `mode` is its permission bits."""

    content: bytes
    mode: int = 0o644


def write_oci_layout(directory: Path, files: Mapping[str, ImageFile], *, entrypoint: Sequence[str]) -> bytes:
    """Write an image of one layer, `files` by absolute path, and return its manifest's digest (32 bytes).

    `directory` must not exist. All files are root's, without a time.
    """
    layer = _layer(files)
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def write(media_type: str, blob: bytes) -> dict[str, object]:
        digest = hashlib.sha256(blob).hexdigest()
        (blobs / digest).write_bytes(blob)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(blob)}

    layers = [write(_LAYER, layer)]
    config = {
        **_PLATFORM,
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    described = write(OCI_CONFIG, msgspec.json.encode(config))
    manifest = msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": layers}
    )
    image = {**write(OCI_MANIFEST, manifest), "platform": _PLATFORM}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [image]}
    (directory / "index.json").write_bytes(msgspec.json.encode(index))
    (directory / "oci-layout").write_bytes(msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))
    return hashlib.sha256(manifest).digest()


def _layer(files: Mapping[str, ImageFile]) -> bytes:
    parents = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted({*parents, *files} - {"/"}):
            entry = tarfile.TarInfo(path.lstrip("/"))
            if path in files:
                entry.mode, entry.size = files[path].mode, len(files[path].content)
                tar.addfile(entry, io.BytesIO(files[path].content))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
    return made.getvalue()
