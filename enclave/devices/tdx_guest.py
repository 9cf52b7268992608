"""The driver's node /dev/tdx_guest: reports and register extension (spec attestation section 3.2)."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from shared.errors import UnavailableError

DEVICE_PATH = Path("/dev/tdx_guest")

GET_REPORT0 = 0xC4405401  # _IOWR('T', 1, 1088): report data, room for the report
EXTEND_RTMR = 0x80315403  # _IOR('T', 3, 49): digest, index

REPORT_DATA_LENGTH = 64
REPORT_LENGTH = 1024

Ioctl = Callable[[int, int, bytearray, bool], int]


class TdxGuestNode:
    """The node, opened for each call. `UnavailableError`: `tdx_device.node`, `tdx_device.ioctl`."""

    def __init__(self, path: Path = DEVICE_PATH, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path = path
        self._ioctl = ioctl

    def report(self, report_data: bytes) -> bytes:
        """Return the TDREPORT (1024 bytes) over 64 bytes. Only this machine can check a report."""
        argument = bytearray(report_data + bytes(REPORT_LENGTH))
        self._call(GET_REPORT0, argument, "make a report")
        return bytes(argument[REPORT_DATA_LENGTH:])

    def extend(self, index: int, digest: bytes) -> None:
        """Extend an RTMR by 48 bytes; for kernels that have this call and no sysfs file."""
        self._call(EXTEND_RTMR, bytearray(digest + bytes([index])), f"extend rtmr{index}")

    def _call(self, request: int, argument: bytearray, what: str) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(
                "tdx_device.node", f"cannot open {self._path}: {error.strerror}"
            ) from error
        try:
            self._ioctl(descriptor, request, argument, True)
        except OSError as error:
            raise UnavailableError(
                "tdx_device.ioctl", f"tdx driver did not {what}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)
