"""The files that the host gives a guest, copied once and never read again (spec deploy section 6.3 step 1).

The host can write to the share while the guest reads it. So every file is opened once, without following a
link, judged by its descriptor and read from it; what was read is what is parsed, measured and kept (SECURITY
N-70).
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from enclave.dstack_util.machine import PRIVATE, PUBLIC, Machine, run_checked
from shared.compose.shared_files import APP_COMPOSE, SYS_CONFIG, USER_CONFIG
from shared.errors import ConfigError, StorageError
from shared.measurement.config_disk import LABEL, MAX_BYTES, REQUIRED

DEFAULT_MOUNT = "/tmp/.host-shared"  # noqa: S108 - upstream's own place, in a guest that has no users
DIRECTORY = ".host-shared"
"""Below the work directory: where the copies stay."""

_LABELS = "/dev/disk/by-label"
_TAG = "host-shared"
_OPTIONS = "ro,nosuid,nodev,noexec"
_CHUNK = 1 << 20
_PUBLIC_FILES = (APP_COMPOSE, SYS_CONFIG, USER_CONFIG)

Reader = Callable[[int, int], bytes]


def mount_share(machine: Machine, point: Path) -> None:
    """Mount the config disk read-only: by its label, else the hypervisor's 9p share.

    What an earlier attempt left mounted is unmounted first. Raises `StorageError("setup.share")` where there
    is neither, `StorageError("setup.write")`.
    """
    unmount_share(machine, point)
    try:
        point.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("setup.write", f"{point} cannot be made: {error.strerror}") from error
    device = machine.path(f"{_LABELS}/{LABEL}")
    if device.exists():
        attempt: tuple[str, ...] = ("mount", "-o", _OPTIONS, str(device), str(point))
    else:
        attempt = ("mount", "-t", "9p", "-o", f"{_OPTIONS},trans=virtio,version=9p2000.L", _TAG, str(point))
    if machine.run(*attempt).code != 0:
        raise StorageError(
            "setup.share", f"neither a disk labelled {LABEL} nor a share {_TAG} can be mounted"
        )


def unmount_share(machine: Machine, point: Path) -> None:
    """Unmount what is mounted there, if anything. Raises `StorageError("setup.command")`."""
    if machine.is_mounted(point):
        run_checked(machine, "umount", str(point))


def read_share(point: Path, read: Reader = os.read) -> dict[str, bytes]:
    """Return the files of the share by name: those that a guest knows, each read once.

    Raises `ConfigError`: `host_share.missing`, `host_share.unreadable`, `host_share.kind` for a link, a
    directory, a device or a pipe, `host_share.size`, `host_share.changed` for one that was written to
    meanwhile.
    """
    try:
        directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _failed("host_share.unreadable", str(point), error.strerror) from error
    try:
        found = {name: _read_file(directory, name, limit, read) for name, limit in MAX_BYTES.items()}
    finally:
        os.close(directory)
    files = {name: content for name, content in found.items() if content is not None}
    if missing := [name for name in REQUIRED if name not in files]:
        raise ConfigError("host_share.missing", f"the host share lacks {', '.join(missing)}")
    return files


def keep_share(machine: Machine, files: dict[str, bytes], work: Path) -> Path:
    """Write the files that were read below `work`, and return their directory."""
    directory = work / DIRECTORY
    for name in MAX_BYTES:
        if name in files:
            machine.write(directory / name, files[name], PUBLIC if name in _PUBLIC_FILES else PRIVATE)
        else:
            (directory / name).unlink(missing_ok=True)  # of an earlier attempt: the host took it away
    return directory


def _read_file(directory: int, name: str, limit: int, read: Reader) -> bytes | None:
    # O_NONBLOCK: a pipe would wait for a writer, and some devices for a carrier
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise _failed("host_share.kind", name, "is no regular file") from error
        raise _failed("host_share.unreadable", name, error.strerror) from error
    try:
        return _read_descriptor(descriptor, name, limit, read)
    except OSError as error:
        raise _failed("host_share.unreadable", name, error.strerror) from error
    finally:
        os.close(descriptor)


def _read_descriptor(descriptor: int, name: str, limit: int, read: Reader) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise _failed("host_share.kind", name, "is no regular file")
    content = bytearray()
    while chunk := read(descriptor, min(_CHUNK, limit + 1 - len(content))):
        content += chunk
        if len(content) > limit:
            raise _failed("host_share.size", name, f"is larger than {limit} bytes")
    after = os.fstat(descriptor)
    if len(content) != before.st_size or _version(before) != _version(after):
        raise _failed("host_share.changed", name, "was written to while it was read")
    return bytes(content)


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _failed(code: str, name: str, message: str | None) -> ConfigError:
    return ConfigError(code, f"host share: {name}: {message}")
