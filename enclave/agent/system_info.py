"""What the guest's kernel says of its machine (spec guest-agent section 2.12).

Nothing here is attested. What cannot be read is empty or 0: a page about a guest must not fail by it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from shared.rpc import guest_api_pb2 as pb

MAX_FILE: Final = 4 * 1024 * 1024
"""/proc/cpuinfo of a machine with two thousand processors."""

_KIB: Final = 1024
_MHZ: Final = re.compile(r"[0-9]{1,7}")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")

StatVfs = Callable[[str], os.statvfs_result]


class SystemReader:
    """Reads files below `root`; `data_disks` are the mount points that are told of, absolute in the guest."""

    def __init__(
        self, data_disks: Iterable[str], *, root: Path = Path("/"), statvfs: StatVfs = os.statvfs
    ) -> None:
        self._data_disks = sorted(set(data_disks))
        self._root = root
        self._statvfs = statvfs

    def read(self) -> pb.SystemInfo:
        """Return what there is. Blocks: file systems may be slow."""
        release = self._pairs("etc/os-release", "=") or self._pairs("usr/lib/os-release", "=")
        memory = self._pairs("proc/meminfo", ":")
        total, free = _kib(memory, "MemTotal"), _kib(memory, "MemFree")
        available = min(_kib(memory, "MemAvailable"), total)
        swap, free_swap = _kib(memory, "SwapTotal"), _kib(memory, "SwapFree")
        loads = [_hundredths(word) for word in (*self._text("proc/loadavg").split()[:3], "", "", "")]
        processors = self._text("proc/cpuinfo").split("\n\n")
        return pb.SystemInfo(
            os_name=_unquoted(release.get("NAME", "")),
            os_version=_unquoted(release.get("VERSION_ID", "")),
            kernel_version=self._kernel_version(),
            cpu_model=_cpu_model(_split(processors[0], ":")),
            num_cpus=sum(one.lstrip().startswith("processor") for one in processors),
            total_memory=total,
            available_memory=available,
            used_memory=total - available,
            free_memory=free,
            total_swap=swap,
            used_swap=max(swap - free_swap, 0),
            free_swap=free_swap,
            uptime=_hundredths(self._text("proc/uptime").partition(" ")[0]) // 100,
            loadavg_one=loads[0],
            loadavg_five=loads[1],
            loadavg_fifteen=loads[2],
            disks=self._disks(),
        )

    def _kernel_version(self) -> str:
        words = self._text("proc/version").split()  # where the other is not to be read
        return self._text("proc/sys/kernel/osrelease").strip() or (words[2] if len(words) > 2 else "")

    def _disks(self) -> list[pb.DiskInfo]:
        devices = {}
        for line in self._text("proc/self/mounts").splitlines():
            words = line.split(" ")
            if len(words) > 1:
                devices[_unescaped(words[1])] = _unescaped(
                    words[0]
                )  # of several in one place the last is seen
        found = []
        for point in self._data_disks:
            if point not in devices:
                continue
            try:
                stat = self._statvfs(str(self._root / point.lstrip("/")))
            except OSError:
                continue
            found.append(
                pb.DiskInfo(
                    name=devices[point],
                    mount_point=point,
                    total_size=stat.f_blocks * stat.f_frsize,
                    free_size=stat.f_bavail * stat.f_frsize,
                )
            )
        return found

    def _pairs(self, path: str, separator: str) -> dict[str, str]:
        return _split(self._text(path), separator)

    def _text(self, path: str) -> str:
        return read_text(self._root / path)


def read_text(path: Path) -> str:
    """Return a file of the kernel's or the system's; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("utf-8", "replace")
    except OSError:
        return ""


def _split(text: str, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines())
    return {name.strip(): value.strip() for name, found, value in pairs if found}


def _cpu_model(processor: Mapping[str, str]) -> str:
    if not processor:
        return ""
    megahertz = _MHZ.match(processor.get("cpu MHz", ""))
    return f"{processor.get('model name', 'cpu0')} @{megahertz[0] if megahertz else 0} MHz"


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _kib(memory: Mapping[str, str], name: str) -> int:
    number = memory.get(name, "").partition(" ")[0]
    return int(number) * _KIB if number.isdecimal() and number.isascii() and len(number) < 16 else 0


def _hundredths(text: str) -> int:
    """Return 100 times a number with two decimals, without a binary fraction on the way."""
    whole, _, part = text.partition(".")
    digits = whole + (part + "00")[:2]
    return int(digits) if whole and digits.isdecimal() and digits.isascii() and len(digits) < 16 else 0


def _unescaped(word: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)
