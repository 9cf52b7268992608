"""What a subcommand works with: the guest that it runs in, its input and output, and the machine."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from enclave.compose.programs import GuestPrograms, Programs
from enclave.devices.detect import detect_platform
from enclave.devices.host_shared import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE
from enclave.dstack_util.host_api import HostApi, host_api_of
from enclave.dstack_util.machine import PRIVATE, PUBLIC, LinuxMachine, Machine, write_whole
from enclave.dstack_util.sys_config import parse_sys_config
from enclave.platform import Platform
from enclave.vsock.transport import AfVsock, VsockTransport
from shared.boot_info import SEV_SNP, TDX
from shared.compose.shared_files import SYS_CONFIG
from shared.errors import ConfigError, StorageError
from shared.hex import decode_hex
from shared.measurement.config_disk import MAX_BYTES

REPORT_DATA = 64


class Tools:
    """One run of `dstack-util`.

    `platform` is a simulator's; None is the guest that this process runs in, which is looked for when a
    command needs it.
    """

    def __init__(
        self,
        platform: Platform | None = None,
        *,
        machine: Machine | None = None,
        programs: Programs | None = None,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO | None = None,
    ) -> None:
        self._platform = platform
        self._is_simulated = platform is not None
        self._machine = machine
        self._programs = programs
        self._stdin = stdin
        self._stdout = stdout

    @property
    def platform(self) -> Platform:
        """The guest. Raises what `Platform.detect` does."""
        if self._platform is None:
            self._platform = Platform.detect()
        return self._platform

    @property
    def machine(self) -> Machine:
        """The machine that privileged steps are for.

        Raises `ConfigError("dstack_util.simulated")` for a simulated guest: the machine would be ours.
        """
        if self._machine is None and self._is_simulated:
            raise ConfigError(
                "dstack_util.simulated",
                "a simulated guest has no machine of its own: this one would be changed",
            )
        return self._machine or LinuxMachine()

    @property
    def programs(self) -> Programs:
        """What starts docker on the machine. Raises as `machine`."""
        _ = self.machine
        return self._programs or GuestPrograms()

    def host_api(self, url: str) -> HostApi | None:
        """Return the guest's host, at `url` or where its files say; None on clouds and where nobody is named.

        Raises `ConfigError("host_api.url")`, `UnavailableError("platform.device")`, and what reading the
        files does.
        """
        vsock: VsockTransport | None
        if self._platform is None or not self._is_simulated:
            # a cloud where no daemon of ours runs is told nothing either
            variant, vsock = str(detect_platform()), AfVsock()
            files = Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)
        else:
            tee = self._platform.tee
            variant, vsock = tee.variant, tee.vsock
            files = self._platform.writable_path(str(DEFAULT_DIRECTORY))
        if variant in (TDX, SEV_SNP) and not url:
            url = self._host_url(files / SYS_CONFIG)
        return host_api_of(variant, url, vsock)

    def _host_url(self, path: Path) -> str:
        if not path.exists():
            return ""
        return parse_sys_config(self.read_file(path, MAX_BYTES[SYS_CONFIG])).host_api_url

    def read_input(self, limit: int) -> bytes:
        """Return standard input to its end, `limit` + 1 bytes at most."""
        return (self._stdin or sys.stdin.buffer).read(limit + 1)

    def complain(self, text: str) -> None:
        """Write to standard error."""
        sys.stderr.write(text)

    def read_file(self, path: Path, limit: int) -> bytes:
        """Return a file. Raises `ConfigError`: `dstack_util.unreadable`, `dstack_util.size`."""
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise ConfigError("dstack_util.unreadable", f"cannot read {path}: {error.strerror}") from error
        if len(content) > limit:
            raise ConfigError("dstack_util.size", f"{path} is larger than {limit} bytes")
        return content

    def write(self, content: bytes, output: Path | None = None, *, private: bool = False) -> None:
        """Write to a file, whole or not at all, or to standard output without one.

        Raises `StorageError("dstack_util.write")`.
        """
        if output is None:
            stdout = self._stdout or sys.stdout.buffer
            stdout.write(content)
            stdout.flush()
            return
        try:
            write_whole(output, content, PRIVATE if private else PUBLIC)
        except OSError as error:
            raise StorageError(
                "dstack_util.write", f"{output} cannot be written: {error.strerror}"
            ) from error


Command = Callable[[argparse.Namespace, Tools], int | None]
"""Carries a subcommand out; None is success."""


def report_data_of(text: str) -> bytes:
    """Return report data of 64 bytes from hex digits of at most as many, zeros on the right.

    Raises `ConfigError("dstack_util.report_data")`, and `ProtocolError("hex.invalid")`.
    """
    given = decode_hex(text, what="report data")
    if len(given) > REPORT_DATA:
        raise ConfigError(
            "dstack_util.report_data", f"report data has {len(given)} bytes, at most {REPORT_DATA} are taken"
        )
    return given.ljust(REPORT_DATA, b"\0")
