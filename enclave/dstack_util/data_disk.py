"""The data disk: encrypted under the app's disk key, made at the first boot and opened at every later one.

(spec deploy section 6.3 steps 9 to 11). "Initialised" means that the disk begins with a LUKS header. A new
disk is therefore made whole before it gets one: cryptsetup formats a header in memory, the file system is
made behind it, and then the header is written to the disk, its first block last. A crash before that leaves
a disk that counts as empty, a crash after it one that is complete.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import msgspec

from enclave.dstack_util.luks_header import CIPHER, PAYLOAD_OFFSET, check_luks_header, has_luks_magic
from enclave.dstack_util.machine import Machine, run_checked
from shared.errors import ConfigError, StorageError

FileSystem = Literal["zfs", "ext4"]

MAPPING = "dstack_data_disk"
POOL = "dstack"
DATASET = f"{POOL}/data"

_SWAP_VOLUME = f"{POOL}/swap"
_SWAP_FILE = "swapfile"
_BLOCK = 4096
_SECTOR = 512
_WRONG_PASSPHRASE = 2  # cryptsetup's code for it
_FSCK_ACCEPTED = (0, 1)  # clean, and repaired
_OFF = frozenset({"0", "false", "no", "off"})
_SIZE = re.compile(r"([0-9]{1,18})\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_FACTORS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAX_SWAP = 1 << 42


class DiskOptions(msgspec.Struct, frozen=True):
    """What app-compose and the kernel's command line make of the disk. `swap` is in bytes."""

    file_system: FileSystem
    is_encrypted: bool = True
    swap: int = 0


def disk_options(
    machine: Machine, *, storage_fs: str | None, swap_size: int | str, cmdline: str
) -> DiskOptions:
    """Return the options: app-compose before the measured command line, before what the image can do.

    Where neither names a file system it is ZFS if the image has its tools, else ext4; the event `storage-fs`
    tells which. Raises `ConfigError`: `setup.storage_fs` for a name that is not known or cannot be made here,
    `setup.swap_size`.
    """
    words = dict(word.split("=", 1) for word in cmdline.split() if "=" in word)
    named = (storage_fs or words.get("dstack.storage_fs") or "").lower()
    has_zfs = machine.has("zpool") and machine.has("zfs")
    name = named or ("zfs" if has_zfs else "ext4")
    if name not in {"zfs", "ext4"} or (name == "zfs" and not has_zfs):
        raise ConfigError(
            "setup.storage_fs",
            f"the data disk cannot be {name[:40]!a} here, expected ext4, or zfs with tools",
        )
    return DiskOptions(
        file_system=cast("FileSystem", name),
        is_encrypted=words.get("dstack.storage_encrypted", "true").lower() not in _OFF,
        swap=_swap_bytes(swap_size),
    )


class DataDisk:
    """One boot's data disk: `device` is mounted at `mount_point`, `memory` is a directory in memory.

    `passphrase` is the hex text of the app's disk key, and reaches commands through their input alone.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        device: Path,
        mount_point: Path,
        memory: Path,
        passphrase: bytes,
        options: DiskOptions,
    ) -> None:
        self._machine = machine
        self._device = device
        self._mount_point = mount_point
        self._header = memory / ".luks-header"
        self._passphrase = passphrase
        self._options = options

    def prepare(self) -> None:
        """Open or make the disk, and mount it. A disk that this boot mounted already is left alone.

        Raises `InvalidEvidence("luks.*")` for a header that is not this guest's own, `StorageError`:
        `setup.disk.key` for a disk of another key, `setup.disk.unreadable`, `setup.disk.write`,
        `setup.command`.
        """
        if self._machine.is_mounted(self._mount_point):
            return
        try:
            self._mount_point.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._mount_point, error) from error
        if self._options.is_encrypted:
            self._prepare_encrypted()
        elif self._run("blkid", "-o", "value", "-s", "TYPE", str(self._device), accepted=(0, 2)).strip():
            self._open_file_system(self._device)
        else:
            self._make_file_system(self._device)
            self._mount(self._device)

    def _prepare_encrypted(self) -> None:
        header = self._read_header()
        self._close_leftover()
        with self._in_memory():
            if has_luks_magic(header):
                check_luks_header(header)
                self._write_header(self._header, header)
                self._open_file_system(self._unlock())
                return
            self._write_header(self._header, b"")
            self._format()
            check_luks_header(made := self._read(self._header))
            block = self._unlock()
            self._make_file_system(block)
            self._run("sync")
            self._write_header(self._device, made)
            self._mount(block)  # last: what is mounted is a disk that will be found again

    def make_swap(self) -> None:
        """Make the swap space anew, on the encrypted disk: what an earlier boot swapped out is gone.

        Raises `StorageError("setup.command")`.
        """
        if self._options.file_system == "zfs":
            place = f"/dev/zvol/{_SWAP_VOLUME}"
            self._machine.run("swapoff", place)  # a failure means that it is not in use
            if self._machine.run("zfs", "list", _SWAP_VOLUME).code == 0:
                self._run("zfs", "destroy", _SWAP_VOLUME)
            if not self._options.swap:
                return
            size = str(self._options.swap)
            self._run("zfs", "create", "-V", size, "-b", str(_BLOCK), "-o", "compression=off", _SWAP_VOLUME)
            self._run("udevadm", "settle")
        else:
            place = str(self._mount_point / _SWAP_FILE)
            self._machine.run("swapoff", place)
            self._run("rm", "-f", place)
            if not self._options.swap:
                return
            self._run("fallocate", "-l", str(self._options.swap), place)
            self._run("chmod", "600", place)
        self._run("mkswap", place)
        self._run("swapon", place)

    def _close_leftover(self) -> None:
        """Close what an attempt that did not end well left open; nothing of it is mounted."""
        if self._options.file_system == "zfs" and self._machine.run("zpool", "list", POOL).code == 0:
            self._run("zpool", "export", POOL)
        if self._machine.path(f"/dev/mapper/{MAPPING}").exists():
            self._run("cryptsetup", "luksClose", MAPPING)

    def _format(self) -> None:
        self._run(
            *("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2"),
            *("--offset", str(PAYLOAD_OFFSET // _SECTOR), "--cipher", CIPHER, "--key-size", "512"),
            *("--pbkdf", "pbkdf2", "--header", str(self._header), "--key-file", "-", str(self._device)),
            stdin=self._passphrase,
        )

    def _unlock(self) -> Path:
        argv = ("cryptsetup", "luksOpen", "--header", str(self._header), "--key-file", "-")
        done = self._machine.run(*argv, str(self._device), MAPPING, stdin=self._passphrase)
        if done.code == _WRONG_PASSPHRASE:
            raise StorageError(
                "setup.disk.key",
                "the data disk opens with another key: it is another instance's, or of another key provider",
            )
        if done.code != 0:
            words = done.stderr.decode("utf-8", "replace").strip()[:200].rstrip(".")
            raise StorageError("setup.command", f"cryptsetup luksOpen ended with {done.code}: {words!a}")
        return self._machine.path(f"/dev/mapper/{MAPPING}")

    def _make_file_system(self, block: Path) -> None:
        if self._options.file_system == "ext4":
            self._run("mkfs.ext4", "-F", "-q", str(block))
            return
        self._run("zpool", "create", "-f", "-o", "autoexpand=on", "-m", "none", POOL, str(block))
        options = (f"mountpoint={self._mount_point}", "canmount=noauto", "atime=off", "checksum=blake3")
        self._run("zfs", "create", *(word for option in options for word in ("-o", option)), DATASET)

    def _open_file_system(self, block: Path) -> None:
        if self._options.file_system == "ext4":
            self._run("e2fsck", "-f", "-p", str(block), accepted=_FSCK_ACCEPTED)
            self._mount(block)
            self._run("resize2fs", str(block))
            return
        self._run("zpool", "import", "-f", "-N", "-d", str(block), POOL)
        self._run("zpool", "online", "-e", POOL, str(block))
        self._mount(block)

    def _mount(self, block: Path) -> None:
        if self._options.file_system == "ext4":
            self._run("mount", "-t", "ext4", str(block), str(self._mount_point))
        else:
            self._run("zfs", "mount", DATASET)

    def _run(self, *argv: str, stdin: bytes = b"", accepted: tuple[int, ...] = (0,)) -> bytes:
        return run_checked(self._machine, *argv, stdin=stdin, accepted=accepted)

    def _read_header(self) -> bytes:
        return self._read(self._device)

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(PAYLOAD_OFFSET)
        except OSError as error:
            raise StorageError("setup.disk.unreadable", f"{path} cannot be read: {error.strerror}") from error

    def _write_header(self, path: Path, header: bytes) -> None:
        """Write all but the first block, then that one: a header that begins is a header that is whole."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if path == self._header else 0)
        try:
            with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
                if path == self._header:
                    file.truncate(PAYLOAD_OFFSET)
                for at, part in ((_BLOCK, header[_BLOCK:]), (0, header[:_BLOCK])):
                    file.seek(at)
                    _write_all(file.fileno(), part)
                    os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from error

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._header.unlink(missing_ok=True)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _swap_bytes(size: int | str) -> int:
    """Read a number of bytes, or text like `2G` with powers of 1024."""
    found = _SIZE.fullmatch(str(size).strip())
    count = int(found[1]) * _FACTORS.get((found[2] or "").lower(), 1) if found else -1
    if not 0 <= count <= _MAX_SWAP:
        raise ConfigError(
            "setup.swap_size", f"swap_size is {str(size)[:40]!a}, expected bytes, or text such as 2G"
        )
    return count // _BLOCK * _BLOCK


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError("setup.disk.write", f"{path} cannot be written: {error.strerror}")
