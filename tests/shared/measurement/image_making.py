"""Container images made to order: layers, OCI layouts, saved tars."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.measurement.oci import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = f"{LAYER_TAR}+gzip"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Entry(tarfile.TarInfo):
    """A tar entry with its data."""

    data: bytes = b""


def file(name: str, data: bytes = b"", **fields: Any) -> Entry:
    info = _entry(name, tarfile.REGTYPE, 0o644, fields)
    info.data, info.size = data, len(data)
    return info


def directory(name: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.DIRTYPE, 0o755, fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.SYMTYPE, 0o777, {"linkname": target, **fields})


def hard_link(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.LNKTYPE, 0o644, {"linkname": target, **fields})


def special(name: str, kind: bytes, **fields: Any) -> Entry:
    return _entry(name, kind, 0o644, fields)


def _entry(name: str, kind: bytes, mode: int, fields: dict[str, Any]) -> Entry:
    info = Entry(name)
    info.type, info.mode, info.mtime = kind, mode, 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def layer_tar(*entries: Entry, kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an uncompressed layer."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as tar:
        for one in entries:
            tar.addfile(one, io.BytesIO(one.data))
    return made.getvalue()


def config_json(layers: Sequence[bytes], *, architecture: str = "amd64", **run: Any) -> bytes:
    """Return a configuration for `layers` (uncompressed); `run` is what it says of running."""
    return json.dumps(
        {
            "created": "2024-01-01T00:00:00Z",
            "os": "linux",
            "architecture": architecture,
            "config": {"Entrypoint": ["/app"], "Cmd": ["serve"], "Env": ["PATH=/usr/bin:/bin"], **run},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


class Layout:
    """The files of an OCI layout with one image, by name; `root` is its manifest's digest."""

    def __init__(
        self, *layers: bytes, level: int | None = 6, architecture: str = "amd64", **run: Any
    ) -> None:
        config = config_json(layers, architecture=architecture, **run)
        stored = [layer if level is None else gzip.compress(layer, level, mtime=0) for layer in layers]
        media_type = LAYER_TAR if level is None else LAYER_GZIP
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(OCI_CONFIG, config),
                "layers": [descriptor(media_type, one) for one in stored],
            }
        ).encode()
        platform = {"os": "linux", "architecture": architecture}
        self.root = sha256(self.manifest)
        self.index = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [descriptor(OCI_MANIFEST, self.manifest, platform=platform)],
            }
        ).encode()
        self.blobs = {sha256(blob): blob for blob in (self.manifest, config, *stored)}

    @property
    def files(self) -> dict[str, bytes]:
        blobs = {f"blobs/sha256/{digest[7:]}": blob for digest, blob in self.blobs.items()}
        return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": self.index, **blobs}

    def write(self, path: Path) -> Path:
        for name, data in self.files.items():
            place = path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return path

    def tar(self) -> bytes:
        return layer_tar(*(file(name, data) for name, data in self.files.items()))


def save_tar(*layers: bytes, stored: Sequence[bytes] | None = None, **run: Any) -> bytes:
    """Return what `docker save` writes; `stored` are the layers as they lie in it."""
    config = config_json(layers, **run)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{sha256(config)[7:]}.json", "RepoTags": ["app:1"], "Layers": names}]
    parts = dict(zip(names, layers if stored is None else stored, strict=True))
    return layer_tar(
        file("manifest.json", json.dumps(manifest).encode()),
        file(f"{sha256(config)[7:]}.json", config),
        *(file(name, data) for name, data in parts.items()),
        kind=tarfile.GNU_FORMAT,
    )


SMALL_LAYERS = (
    layer_tar(
        directory("usr"),
        directory("usr/bin"),
        file("usr/bin/app", b"#!/bin/sh\n" * 300, mode=0o755),
        symlink("app", "usr/bin/app"),
        directory("etc"),
        file("etc/secret", b"old", mode=0o600),
        file("etc/motd", b"hello\n"),
        directory("tmp", mode=0o1777),
    ),
    layer_tar(
        file("etc/.wh.secret"),
        file("etc/motd", b"hello again\n", uid=1000, gid=1000),
        hard_link("etc/motd.link", "etc/motd"),
        file("srv/data/number", b"7"),
    ),
)
"""An image in two layers: a whiteout, a replaced file, a hard link, parents that no layer names."""
