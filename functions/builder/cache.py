"""A cache of built images and downloaded boot files, by what they were made of.

An entry appears whole by one rename, is never changed, and is removed by one rename: processes that share the
directory see it whole or not at all. What is least recently used goes first when there is too much. Whoever
may write here decides what is built, so the directory must be its user's own.
"""

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shared.errors import ConfigError, StorageError

DEFAULT_MAX_BYTES = 8 << 30
"""Eight builds of a large image."""

_CHUNK = 1 << 20
_RECORD, _IMAGE, _BLOB = "build.json", "image.eif", "blob"
_MAX_RECORD = 1 << 20
_LOCK = ".lock"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept beside an image: its CRC-32, and what its builder has to say of it."""

    crc32: int
    build: msgspec.Raw


class BuildCache:
    """Entries below `directory`, up to `max_bytes` of them. Safe to share between threads and processes.

    Raises `StorageError("build.cache")` when files cannot be read or written; so do the methods. Raises
    `ConfigError("build.cache.owner")` for a directory that others may write.
    """

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._builds, self._blobs, self._work = (directory / name for name in ("builds", "blobs", "work"))
        self._max_bytes = max_bytes
        with _storage(directory):
            for path in (directory, self._builds, self._blobs, self._work):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
            if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
                raise ConfigError("build.cache.owner", f"cache {directory} may be written by others")

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Make an empty directory of the cache's file system, for as long as the block runs.

        What killed processes left there is removed first.
        """
        with _storage(self._work), self._locked():
            self._remove_abandoned()
            place = Path(tempfile.mkdtemp(dir=self._work))
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield place
        finally:
            with _storage(self._work), self._locked():
                shutil.rmtree(place, ignore_errors=True)
            os.close(lock)

    def fetch_build(self, key: bytes, output: Path) -> bytes | None:
        """Copy the image of `key` (32 bytes) to `output` and return what its builder recorded (JSON).

        None where the cache has none, or a damaged one, which is removed. `output` appears whole, or stays if
        it has these bytes already.
        """
        place = self._builds / key.hex()
        image = place / _IMAGE
        with _storage(place):
            try:
                record = _decode((place / _RECORD).read_bytes())
                if record is not None and (_is_copy(output, image) or _restored(image, record, output)):
                    os.utime(place)
                    return bytes(record.build)
            except FileNotFoundError:
                return None
            self._remove(place)
            return None

    def recorded(self, key: bytes) -> bytes | None:
        """Return what the builder of `key` recorded (JSON), for whoever needs no image.

        None where the cache has none. The image is not read again: it was measured when it was written.
        """
        place = self._builds / key.hex()
        with _storage(place):
            try:
                record = _decode((place / _RECORD).read_bytes())
                if record is not None and (place / _IMAGE).is_file():
                    os.utime(place)
                    return bytes(record.build)
            except FileNotFoundError:
                return None
            self._remove(place)
            return None

    def keep_build(self, key: bytes, image: Path, build: bytes) -> None:
        """Move the file `image` (of a workspace) into the cache, with what its builder says (JSON)."""
        with _storage(self._builds):
            record = msgspec.json.encode(_Record(_crc32(image), msgspec.Raw(build)))
            entry = Path(tempfile.mkdtemp(dir=image.parent))
            image.rename(entry / _IMAGE)
            (entry / _RECORD).write_bytes(record)
            self._publish(entry, self._builds / key.hex())

    def blob(self, digest: bytes) -> bytes | None:
        """Return the blob of that SHA-256, checked again; None where it is not here."""
        place = self._blobs / digest.hex()
        with _storage(place):
            try:
                content = (place / _BLOB).read_bytes()
            except FileNotFoundError:
                return None
            if not hmac.compare_digest(hashlib.sha256(content).digest(), digest):
                self._remove(place)
                return None
            os.utime(place)
            return content

    def keep_blob(self, digest: bytes, content: bytes) -> None:
        """Keep a blob whose SHA-256 was checked."""
        with self.workspace() as work, _storage(self._blobs):
            entry = work / "entry"
            entry.mkdir(mode=0o700)
            (entry / _BLOB).write_bytes(content)
            self._publish(entry, self._blobs / digest.hex())

    def _publish(self, entry: Path, place: Path) -> None:
        try:
            entry.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            return  # another process was faster, with the same bytes
        self._shrink(keep=place)

    def _shrink(self, keep: Path) -> None:
        """Remove the least recently used entries while all of them have more than `max_bytes`."""
        entries = []
        for place in (*self._builds.iterdir(), *self._blobs.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process removes too
                size = sum(file.stat().st_size for file in place.iterdir())
                entries.append((place.stat().st_mtime_ns, size, place))
        total = sum(size for _, size, _ in entries)
        for _, size, place in sorted(entries):
            if total <= self._max_bytes:
                return
            if place != keep:
                self._remove(place)
                total -= size

    def _remove(self, place: Path) -> None:
        """Move an entry away, then delete it: nobody sees a part of it."""
        with self._locked():
            gone = Path(tempfile.mkdtemp(dir=self._work))
            with contextlib.suppress(FileNotFoundError):
                place.rename(gone / "entry")
            shutil.rmtree(gone, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Remove the workspaces whose processes hold no lock on them any more."""
        for place in self._work.iterdir():
            if place.name == _LOCK:
                continue
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold what makes and removes directories of `work`: one half made looks abandoned."""
        lock = os.open(self._work / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that `target` appears whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        shutil.copyfile(source, partial)  # the kernel copies: three times as fast as reading and writing
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _crc32(file: Path) -> int:
    """Return the CRC-32 of a whole file: it tells of damage, not of intent."""
    crc32 = 0
    with file.open("rb", buffering=0) as content:
        while piece := content.read(_CHUNK):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def _restored(image: Path, record: _Record, output: Path) -> bool:
    if _crc32(image) != record.crc32:
        return False
    copy_file(image, output)
    return True


def _is_copy(file: Path, image: Path) -> bool:
    """Tell whether `file` has the bytes of `image`; no file has not."""
    if not file.is_file() or file.stat().st_size != image.stat().st_size:
        return False
    ours, theirs = bytearray(_CHUNK), bytearray(_CHUNK)
    with file.open("rb", buffering=0) as one, image.open("rb", buffering=0) as two:
        while (size := one.readinto(ours)) == two.readinto(theirs) and ours == theirs:
            if not size:
                return True
    return False


def _decode(raw: bytes) -> _Record | None:
    try:
        return msgspec.json.decode(raw, type=_Record) if len(raw) <= _MAX_RECORD else None
    except msgspec.MsgspecError:
        return None


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError("build.cache", f"cannot use {path}: {error.strerror or error}") from error
