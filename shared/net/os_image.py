"""OS images by their hash: downloaded, checked against their own checksum list, kept (spec attestation 7.4).

An image's hash is the hash of its list of checksums, so whoever serves it is believed in nothing. Registers
are not recomputed here (step 5): that needs QEMU's own tables.
"""

import hashlib
import hmac
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError, DstackError, ProtocolError, StorageError, UnavailableError
from shared.measurement.os_image import MAX_SUMS_BYTES, SUMS_NAME, os_image_hash, parse_sha256sums
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.fresh_cache import SingleFlight
from shared.net.image_archive import unpack
from shared.strict_json import decode_json

PLACEHOLDER = "{OS_IMAGE_HASH}"
DEFAULT_URL = f"https://download.dstack.org/os-images/mr_{PLACEHOLDER}.tar.gz"
DEFAULT_TIMEOUT = 300.0
"""Seconds for download, unpacking and checksums together."""

MAX_DOWNLOAD = 512 << 20  # what is measured of an image is some tens of MB, compressed
MAX_METADATA = 64 * 1024  # a real one has under 1 KB

_METADATA = "metadata.json"
_HASH_LENGTH = 32
_MAX_VERSION = 64  # `0.5.4` and the like; it is printed
_CHUNK = 1 << 20


class OsImage(msgspec.Struct, frozen=True):
    """An image on disk. Its files were checked when it was downloaded, list and metadata at each use.

    `is_dev` and `version` are what `metadata.json` says: without a word it is no development image, and of no
    known version.
    """

    directory: Path
    is_dev: bool
    version: str | None


class OsImageStore:
    """Images below `<cache>/images/<hex>/`; safe to share between threads, and a cache between processes.

    `url_template` holds `{OS_IMAGE_HASH}`. `timeout` is in seconds and for one image. Raises
    `ConfigError("os_image.url")`.
    """

    def __init__(
        self,
        cache: Path,
        *,
        url_template: str = DEFAULT_URL,
        timeout: float = DEFAULT_TIMEOUT,
        http: HttpClient | None = None,
    ) -> None:
        parts = urlsplit(url_template)
        if PLACEHOLDER not in parts.path + parts.query or parts.scheme not in {"http", "https"}:
            raise ConfigError(
                "os_image.url", f"the image url must be http or https and hold {PLACEHOLDER} in its path"
            )
        self._images = cache / "images"
        self._url_template = url_template
        self._timeout = timeout
        self._http = HttpClient(DirectDialer()) if http is None else http
        self._flights: SingleFlight[bytes, OsImage] = SingleFlight()

    def get(self, image_hash: bytes) -> OsImage:
        """Return the image whose hash is `image_hash` (32 bytes), downloading it unless it is here.

        Raises `ProtocolError`: `os_image.hash` (another image, or no list), `os_image.file` (a listed file
        is missing or another), `os_image.metadata` (and `os_image.metadata.*` for its JSON), those of
        `image_archive.unpack`; `InvalidEvidence("os_image.sums.*")`; `UnavailableError`: `os_image.status`,
        `os_image.timeout`; `StorageError("os_image.storage")`; `ConfigError("os_image.hash_length")`; what
        the HTTP client raises.
        """
        if len(image_hash) != _HASH_LENGTH:
            raise ConfigError("os_image.hash_length", f"image hash has {len(image_hash)} bytes, expected 32")
        return self._flights.run(image_hash, lambda: self._get(image_hash))

    def _get(self, image_hash: bytes) -> OsImage:
        place = self._images / image_hash.hex()
        try:
            if (place / _METADATA).exists():
                try:
                    return _load(place, image_hash)
                except DstackError:
                    self._discard(place)  # damaged on disk: what is downloaded takes its place
            return self._download(image_hash, place)
        except OSError as error:
            raise StorageError(
                "os_image.storage", f"cannot keep an image below {self._images}: {error.strerror or error}"
            ) from error

    def _download(self, image_hash: bytes, place: Path) -> OsImage:
        deadline = time.monotonic() + self._timeout
        with self._working_directory() as name:
            work = Path(name)
            archive, unpacked = work / "image.tar.gz", work / "image"
            with archive.open("xb") as file:
                self._fetch(image_hash, file.write)
            unpacked.mkdir(mode=0o700)
            check_time = _Timer(deadline)
            unpack(archive, work / "image.tar", unpacked, check_time)
            _check_files(unpacked, image_hash, check_time)
            image = _load(unpacked, image_hash)
            try:
                unpacked.rename(place)
            except OSError:
                if not (place / _METADATA).exists():
                    self._discard(place)
                    unpacked.rename(place)
                # else another process was faster, with the same files
        return msgspec.structs.replace(image, directory=place)

    def _fetch(self, image_hash: bytes, write: Callable[[bytes], object]) -> None:
        url = self._url_template.replace(PLACEHOLDER, image_hash.hex())

        def sink(part: bytes) -> None:
            try:
                write(part)
            except OSError as error:  # not the server's: the client would take it for a broken connection
                raise StorageError("os_image.storage", f"cannot write an image: {error.strerror}") from error

        response = self._http.download(url, sink, max_bytes=MAX_DOWNLOAD, timeout=self._timeout)
        if response.status != 200:
            raise UnavailableError(
                "os_image.status", f"got status {response.status} for the image {image_hash.hex()}"
            )

    def _working_directory(self) -> "tempfile.TemporaryDirectory[str]":
        below = self._images / "tmp"
        below.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=below)

    def _discard(self, place: Path) -> None:
        """Move a directory out of the way and delete it, so that nobody sees it half deleted."""
        with self._working_directory() as name:
            try:
                place.rename(Path(name) / "old")
            except FileNotFoundError:
                return


class _Timer:
    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self) -> None:
        if time.monotonic() > self._deadline:
            raise UnavailableError("os_image.timeout", "the image was not unpacked and checked in time")


def _check_files(directory: Path, image_hash: bytes, check_time: Callable[[], None]) -> None:
    """Check each listed file, and remove what is not listed."""
    sums = _sums(directory, image_hash)
    for name, digest in sums.items():
        if not hmac.compare_digest(_digest(directory / name, check_time), digest):
            raise ProtocolError(
                "os_image.file", f"file {name} of the image is not the one that its list names"
            )
    for entry in list(directory.iterdir()):
        if entry.name == SUMS_NAME or entry.name in sums:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _load(directory: Path, image_hash: bytes) -> OsImage:
    """Read what is used of an image, checked again: a cache may stand where others write."""
    sums = _sums(directory, image_hash)
    raw = _small_file(directory, _METADATA, MAX_METADATA)
    if raw is None or sums.get(_METADATA) != hashlib.sha256(raw).digest():
        raise ProtocolError("os_image.metadata", f"image has no {_METADATA} that its list names")
    metadata: Any = decode_json(raw, what=_METADATA, code="os_image.metadata", max_bytes=MAX_METADATA)
    if not isinstance(metadata, dict):
        raise ProtocolError("os_image.metadata", f"{_METADATA} is not an object")
    is_dev, version = metadata.get("is_dev", False), metadata.get("version")
    if not isinstance(is_dev, bool) or not (version is None or _is_plain(version)):
        raise ProtocolError(
            "os_image.metadata", f"is_dev or version in {_METADATA} is not a truth value or a short text"
        )
    return OsImage(directory, is_dev, version)


def _is_plain(version: object) -> bool:
    return isinstance(version, str) and len(version) <= _MAX_VERSION and version.isascii()


def _sums(directory: Path, image_hash: bytes) -> dict[str, bytes]:
    raw = _small_file(directory, SUMS_NAME, MAX_SUMS_BYTES)
    if raw is None or not hmac.compare_digest(os_image_hash(raw), image_hash):
        raise ProtocolError("os_image.hash", f"image has no {SUMS_NAME} whose sha256 is {image_hash.hex()}")
    return parse_sha256sums(raw)


def _small_file(directory: Path, name: str, limit: int) -> bytes | None:
    path = directory / name
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(limit + 1)
    return raw if len(raw) <= limit else None


def _digest(path: Path, check_time: Callable[[], None]) -> bytes:
    if not path.is_file():
        return b""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            check_time()
    return digest.digest()
