"""Which disk is the data disk, where nobody says (spec deploy section 6.3)."""

from collections.abc import Mapping
from pathlib import Path

from enclave.dstack_util.luks_header import has_luks_magic
from enclave.dstack_util.machine import Machine, run_checked
from shared.errors import ConfigError, StorageError

LABEL = "dstack-data"
VARIABLE = "DSTACK_DATA_DEVICE"

_WORD = "dstack.data_device="
_LAST_RESORT = "/dev/vdb"
_LOOKED_AT = 1 << 20  # bytes of a disk that has to be empty: tables and headers begin here
_BY = {"PARTLABEL": "/dev/disk/by-partlabel", "PARTUUID": "/dev/disk/by-partuuid"}


def choose_device(machine: Machine, environment: Mapping[str, str]) -> Path:
    """Return the data disk: the measured command line's, the environment's, the labelled, or the second disk.

    The second disk is taken whole when it is a LUKS volume, gets one partition when it is empty, and is
    refused otherwise: what is on it is not ours to destroy. Raises `ConfigError`: `setup.device.name`,
    `setup.device.absent`, `setup.device.taken`; `StorageError`: `setup.unreadable`, `setup.command`.
    """
    named = _from_command_line(machine) or environment.get(VARIABLE, "")
    if named:
        return _named(machine, named)
    labelled = machine.path(f"{_BY['PARTLABEL']}/{LABEL}")
    if labelled.exists():
        return labelled
    disk = machine.path(_LAST_RESORT)
    if not disk.exists():
        raise ConfigError(
            "setup.device.absent", f"there is no partition labelled {LABEL} and no {_LAST_RESORT}"
        )
    start = _read(disk)
    if has_luks_magic(start):
        return disk
    if any(start):
        raise ConfigError(
            "setup.device.taken", f"{_LAST_RESORT} holds something and has no partition labelled {LABEL}"
        )
    run_checked(machine, "sfdisk", "--quiet", str(disk), stdin=f'label: gpt\nname="{LABEL}"\n'.encode())
    run_checked(machine, "udevadm", "settle")
    return machine.path(f"{_LAST_RESORT}1")


def _from_command_line(machine: Machine) -> str:
    try:
        words = machine.path("/proc/cmdline").read_text("ascii", "replace").split()
    except OSError as error:
        raise StorageError("setup.unreadable", f"/proc/cmdline cannot be read: {error.strerror}") from error
    return next((word.removeprefix(_WORD) for word in words if word.startswith(_WORD)), "")


def _named(machine: Machine, name: str) -> Path:
    kind, _, value = name.partition("=")
    if kind in _BY and value and "/" not in value:
        device = machine.path(f"{_BY[kind]}/{value}")
    elif name.startswith("/dev/") and ".." not in Path(name).parts:
        device = machine.path(name)
    else:
        raise ConfigError(
            "setup.device.name",
            f"data device is {name[:80]!a}, expected /dev/NAME, PARTLABEL=NAME or PARTUUID=ID",
        )
    if not device.exists():
        raise ConfigError("setup.device.absent", f"there is no data device {name[:80]}")
    return device


def _read(disk: Path) -> bytes:
    try:
        with disk.open("rb") as file:
            return file.read(_LOOKED_AT)
    except OSError as error:
        raise StorageError("setup.unreadable", f"{disk} cannot be read: {error.strerror}") from error
