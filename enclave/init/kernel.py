"""What an enclave's kernel lacks when AWS's init hands over: mounts, a loopback, and entropy that we believe.

AWS's init mounts most of this already, and does not bring `lo` up (spec deploy section 5B.4). The kernel's
own entropy comes from a machine that the parent controls; the security module's does not.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, cast

import msgspec

from shared.errors import ConfigError, UnavailableError

SECRETS: Final = "/dstack"
"""Where the guest's files with secrets are: memory that root alone can read."""

_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # linux/mount.h
_IFF_UP = 1  # linux/if.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFREQ = struct.Struct("16sh14x")
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})

Ioctl = Callable[[int, int, bytes | int], object]
MountCall = Callable[[str, str, str, int, str], int]
"""source, target, type, flags, data -> 0, or an errno."""


class Mount(msgspec.Struct, frozen=True):
    """One file system: its type and where it belongs."""

    kind: str
    target: str
    flags: int
    data: str = ""


MOUNTS: Final = (
    Mount("proc", "/proc", _NOSUID | _NODEV | _NOEXEC),
    Mount("sysfs", "/sys", _NOSUID | _NODEV | _NOEXEC),
    Mount("tmpfs", "/run", _NOSUID | _NODEV, "mode=0755"),
    Mount("tmpfs", "/tmp", _NOSUID | _NODEV, "mode=1777"),  # noqa: S108 - the enclave's own, made here
    Mount("tmpfs", SECRETS, _NOSUID | _NODEV | _NOEXEC, "mode=0711,size=16m"),
)


class Kernel(Protocol):
    """The calls that need a kernel of one's own. All raise `UnavailableError("init.*")`."""

    def mounted(self) -> Mapping[str, str]:
        """Return the types of what is mounted, by where."""
        ...

    def mount(self, mount: Mount) -> None:
        """Mount one file system, and make its directory."""
        ...

    def raise_loopback(self) -> None:
        """Bring `lo` up; the kernel then gives it 127.0.0.1."""
        ...

    def add_entropy(self, random: bytes) -> None:
        """Mix random bytes into the kernel's, credit them, and make it use them at once."""
        ...


def prepare(kernel: Kernel, random: Callable[[], bytes]) -> None:
    """Mount what is missing, bring loopback up, and seed the kernel from `random`.

    Raises `ConfigError("init.mount.kind")` where something else is mounted in a place of ours: secrets are
    kept in memory or not at all. Raises what `Kernel` raises.
    """
    found = kernel.mounted()
    for mount in MOUNTS:
        kind = found.get(mount.target)
        if kind is None:
            kernel.mount(mount)
        elif kind != mount.kind and not {kind, mount.kind} <= _IN_MEMORY:
            raise ConfigError(
                "init.mount.kind", f"{mount.target} is of type {kind[:40]}, expected {mount.kind}"
            )
    kernel.raise_loopback()
    kernel.add_entropy(random())


class LinuxKernel:
    """The real one."""

    def __init__(
        self,
        *,
        ioctl: Ioctl | None = None,
        mount: MountCall | None = None,
        mounts: Path = Path("/proc/self/mounts"),
        random_device: str = "/dev/random",
    ) -> None:
        self._ioctl = ioctl or cast("Ioctl", fcntl.ioctl)
        self._mount = mount or _mount
        self._mounts = mounts
        self._random_device = random_device

    def mounted(self) -> Mapping[str, str]:
        """See `Kernel.mounted`. Without /proc nothing is known to be mounted, so /proc is mounted first."""
        try:
            lines = self._mounts.read_text().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UnavailableError("init.mount", f"cannot read {self._mounts}: {error.strerror}") from error
        rows = (line.split(" ") for line in lines)
        return {row[1]: row[2] for row in rows if len(row) > 2}  # of two in one place the later is seen

    def mount(self, mount: Mount) -> None:
        """See `Kernel.mount`."""
        try:
            os.makedirs(mount.target, mode=0o755, exist_ok=True)  # noqa: PTH103 - the type above has text
        except OSError as error:
            raise UnavailableError("init.mount", f"cannot make {mount.target}: {error.strerror}") from error
        failure = self._mount(mount.kind, mount.target, mount.kind, mount.flags, mount.data)
        if failure:
            raise UnavailableError("init.mount", f"cannot mount {mount.target}: {os.strerror(failure)}")

    def raise_loopback(self) -> None:
        """See `Kernel.raise_loopback`."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                answer = self._ioctl(sock.fileno(), _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
                _, flags = _IFREQ.unpack(answer if isinstance(answer, bytes) else b"")
                self._ioctl(sock.fileno(), _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
        except (OSError, struct.error) as error:
            raise UnavailableError("init.loopback", f"cannot bring lo up: {error}") from error

    def add_entropy(self, random: bytes) -> None:
        """See `Kernel.add_entropy`."""
        pool = struct.pack("ii", 8 * len(random), len(random)) + random
        try:
            descriptor = os.open(self._random_device, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, _RNDADDENTROPY, pool)
                self._ioctl(descriptor, _RNDRESEEDCRNG, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnavailableError("init.entropy", f"cannot seed the kernel: {error.strerror}") from error


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = (text.encode() for text in (source, target, kind))
    done = libc.mount(*texts, ctypes.c_ulong(flags), data.encode())
    return 0 if done == 0 else ctypes.get_errno()
