"""The TPM's byte pipe: one command in, one response out (spec attestation section 5.1)."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from shared.attestation.tcg_log import MAX_LOG
from shared.errors import ProtocolError, UnavailableError

# TPM2_PT_MAX_COMMAND_SIZE and MAX_RESPONSE_SIZE of every TPM 2.0 we know, and the kernel driver's buffer.
MAX_COMMAND = 4096
MAX_RESPONSE = 4096

# The kernel's resource manager first: it keeps our objects apart from those of other processes.
DEVICE_PATHS = ("/dev/tpmrm0", "/dev/tpm0")

BOOT_LOG_PATH = Path("/sys/kernel/security/tpm0/binary_bios_measurements")


class TpmDevice(Protocol):
    """One command in, one response out, both as TPM 2.0 lays them out."""

    def transact(self, command: bytes) -> bytes:
        """Return the TPM's response, whatever its return code.

        Raises `UnavailableError("tpm_device.*")` or `ProtocolError("tpm_device.*")`.
        """
        ...


class DevTpm:
    """The kernel's device node: the first of `paths` that exists.

    It is opened by the first command and stays open, for transient objects live as long as the descriptor.
    When the driver fails it is closed: the kernel then frees what our commands had loaded. It has room for
    three objects, and nobody could flush one whose handle was in a lost response.
    """

    def __init__(self, paths: Sequence[str] = DEVICE_PATHS) -> None:
        self._paths = paths
        self._descriptor: int | None = None
        self._lock = Lock()

    def transact(self, command: bytes) -> bytes:
        """Exchange one command with the driver.

        Raises `ProtocolError`: `tpm_device.command.size`; `UnavailableError`: `tpm_device.absent` when there
        is no node, `tpm_device.open` when it cannot be opened, `tpm_device.io` when the driver fails.
        """
        if len(command) > MAX_COMMAND:
            raise ProtocolError(
                "tpm_device.command.size",
                f"tpm command has {len(command)} bytes, at most {MAX_COMMAND} are taken",
            )
        with self._lock:
            descriptor = self._open()
            try:
                written = os.write(descriptor, command)
                response = os.read(descriptor, MAX_RESPONSE)
            except OSError as error:
                self._descriptor = None
                os.close(descriptor)
                raise UnavailableError("tpm_device.io", f"tpm driver failed: {error.strerror}") from error
        if written != len(command):
            raise UnavailableError(
                "tpm_device.io", f"tpm driver took {written} of {len(command)} command bytes"
            )
        return response

    def _open(self) -> int:
        if self._descriptor is None:
            for path in self._paths:
                try:
                    self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise UnavailableError(
                        "tpm_device.open", f"cannot open {path}: {error.strerror}"
                    ) from error
                break
            else:
                raise UnavailableError(
                    "tpm_device.absent", f"this machine has no tpm: none of {', '.join(self._paths)} exists"
                )
        return self._descriptor


def read_boot_log(path: Path = BOOT_LOG_PATH) -> bytes:
    """Return the log of what firmware and boot loader extended into the TPM, as the kernel shows it.

    Raises `UnavailableError("tpm_device.event_log")`, `ProtocolError("tpm_device.event_log.size")`.
    """
    try:
        with path.open("rb") as file:
            log = file.read(MAX_LOG + 1)
    except OSError as error:
        raise UnavailableError("tpm_device.event_log", f"cannot read {path}: {error.strerror}") from error
    if len(log) > MAX_LOG:
        raise ProtocolError("tpm_device.event_log.size", f"{path} is larger than {MAX_LOG} bytes")
    return log
