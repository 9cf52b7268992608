"""A TDX guest's own device: quotes, register extension, the firmware's event log (spec attestation 3.2)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from enclave.devices.tdx_configfs import ConfigfsQuotes, ReportEntry, configfs_entry, has_tdx_entry
from enclave.devices.tdx_guest import REPORT_DATA_LENGTH, TdxGuestNode
from enclave.devices.tdx_qgs import Connect, QgsQuotes
from shared.attestation.tcg_log import MAX_LOG
from shared.errors import ProtocolError, UnavailableError

RTMR_VARIABLE = "DCAP_TDX_RTMR_SYSFS_PATH"
RTMR_BASE = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
CCEL_VARIABLE = "DSTACK_CCEL_FILE"
CCEL_PATH = Path("/sys/firmware/acpi/tables/data/CCEL")

# The firmware's registers, 0 and 1, are over when a guest runs.
GUEST_RTMRS = (2, 3)
DIGEST_LENGTH = 48

# One quote or extension at a time in this process, through whichever object: the driver has one of each.
_PROCESS_LOCK = Lock()


class TdxDevice(Protocol):
    """A TDX guest's device. Methods raise `UnavailableError` or `ProtocolError`, `tdx_device.*`."""

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote over exactly 64 bytes."""
        ...

    def extend_rtmr(self, index: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3: new = sha384(old || digest), digest of 48 bytes."""
        ...

    def event_log(self) -> bytes:
        """Return the firmware's event log (CCEL), as in memory."""
        ...


class QuoteSource(Protocol):
    """One way to a quote; `UnavailableError` means that another way may work."""

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote over exactly 64 bytes."""
        ...


class LinuxTdx:
    """The kernel's interfaces.

    Quotes come from the first of `sources` that makes one; registers are extended through a file of
    `rtmr_base`, or `node` where the kernel has no such file.
    """

    def __init__(
        self,
        sources: Sequence[QuoteSource],
        node: TdxGuestNode,
        *,
        rtmr_base: Path = RTMR_BASE,
        ccel: Path = CCEL_PATH,
    ) -> None:
        self._sources = tuple(sources)
        self._node = node
        self._rtmr_base = rtmr_base
        self._ccel = ccel

    @classmethod
    def production(cls, environment: Mapping[str, str], connect: Connect) -> "LinuxTdx":
        """Return the device of this machine: configfs first, then the host's service over vsock.

        Raises `ConfigError("tdx_device.configfs.path")`.
        """
        node = TdxGuestNode()
        entry = ReportEntry(configfs_entry(environment))
        return cls(
            (ConfigfsQuotes(entry), QgsQuotes(node.report, connect)),
            node,
            rtmr_base=Path(environment.get(RTMR_VARIABLE) or RTMR_BASE),
            ccel=Path(environment.get(CCEL_VARIABLE) or CCEL_PATH),
        )

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote, by the first source that is available.

        Raises `ProtocolError("tdx_device.report_data.length")`, and the first source's error when all fail:
        the others are ways that most machines do not have.
        """
        if len(report_data) != REPORT_DATA_LENGTH:
            raise ProtocolError(
                "tdx_device.report_data.length",
                f"report data has {len(report_data)} bytes, expected {REPORT_DATA_LENGTH}",
            )
        errors: list[UnavailableError] = []
        with _PROCESS_LOCK:
            for source in self._sources:
                try:
                    return source.quote(report_data)
                except UnavailableError as error:
                    errors.append(error)
        raise errors[0]

    def extend_rtmr(self, index: int, digest: bytes) -> None:
        """Extend a register.

        Raises `ProtocolError`: `tdx_device.rtmr.index`, `tdx_device.digest.length`;
        `UnavailableError`: `tdx_device.rtmr.io`, `tdx_device.node`, `tdx_device.ioctl`.
        """
        if index not in GUEST_RTMRS:
            raise ProtocolError("tdx_device.rtmr.index", f"register is rtmr{index}, expected rtmr2 or rtmr3")
        if len(digest) != DIGEST_LENGTH:
            raise ProtocolError(
                "tdx_device.digest.length", f"digest has {len(digest)} bytes, expected {DIGEST_LENGTH}"
            )
        path = self._rtmr_base / f"rtmr{index}:sha384"
        with _PROCESS_LOCK:
            if not path.exists():
                self._node.extend(index, digest)
                return
            try:
                written = _write_once(path, digest)
            except OSError as error:
                raise UnavailableError(
                    "tdx_device.rtmr.io", f"cannot extend {path}: {error.strerror}"
                ) from error
        if written != len(digest):
            raise UnavailableError("tdx_device.rtmr.io", f"{path} took {written} of {len(digest)} bytes")

    def event_log(self) -> bytes:
        """Return the firmware's event log.

        Raises `UnavailableError("tdx_device.event_log")`, `ProtocolError("tdx_device.event_log.size")`.
        """
        try:
            with self._ccel.open("rb") as file:
                log = file.read(MAX_LOG + 1)
        except OSError as error:
            raise UnavailableError(
                "tdx_device.event_log", f"cannot read {self._ccel}: {error.strerror}"
            ) from error
        if len(log) > MAX_LOG:
            raise ProtocolError("tdx_device.event_log.size", f"{self._ccel} is larger than {MAX_LOG} bytes")
        return log


def tdx_present(root: Path = Path("/")) -> bool:
    """Tell whether this machine is a TDX guest: the driver's node, or a report entry that answers for TDX."""
    return (root / "dev/tdx_guest").exists() or has_tdx_entry(root / "sys/kernel/config/tsm/report")


def _write_once(path: Path, content: bytes) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.write(descriptor, content)
    finally:
        os.close(descriptor)
