"""A real TPM 2.0 without hardware: the swtpm program over a socket pair."""

import shutil
import socket
import subprocess
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from enclave.devices.tpm_device import MAX_RESPONSE
from shared.errors import ProtocolError, UnavailableError

# Making an RSA key is the slowest command, some seconds on a busy machine.
_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0
_HEADER = 10
# It tests an algorithm at its first use, and asks for that command again.
_RC_RETRY = (0x922).to_bytes(4, "big")
_MAX_RETRIES = 20


def swtpm_installed() -> bool:
    """Tell whether the program is on the path (package `swtpm` of Debian and Fedora)."""
    return shutil.which("swtpm") is not None


class Swtpm:
    """One swtpm process with its state in `directory`; a `TpmDevice`.

    The same directory gives the same TPM again: seeds and NV indexes stay, registers start from zero. The
    process serves this object alone over an inherited socket, and ends with it: by `close`, at the end of a
    `with` block, or when this process dies and the socket closes.

    Raises `UnavailableError`: `swtpm.absent` when it is not installed, `swtpm.ended` when it stops answering.
    """

    def __init__(self, directory: Path) -> None:
        program = shutil.which("swtpm")
        if program is None:
            raise UnavailableError("swtpm.absent", "swtpm is not installed: install the package swtpm")
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_TIMEOUT)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed program, no shell
                [
                    *(program, "socket", "--tpm2", "--tpmstate", f"dir={directory}"),
                    *("--fd", str(theirs.fileno()), "--flags", "not-need-init,startup-clear"),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def transact(self, command: bytes) -> bytes:
        """Exchange one command; it is repeated when the TPM asks for that, as the kernel's driver does."""
        with self._lock:
            for _ in range(_MAX_RETRIES):
                if (response := self._exchange(command))[6:_HEADER] != _RC_RETRY:
                    break
            return response

    def _exchange(self, command: bytes) -> bytes:
        try:
            self._socket.sendall(command)
            header = self._receive(_HEADER)
            size = int.from_bytes(header[2:6], "big")
            if not _HEADER <= size <= MAX_RESPONSE:
                raise ProtocolError("tpm_device.response.size", f"swtpm announces {size} bytes")
            return header + self._receive(size - _HEADER)
        except OSError as error:
            raise UnavailableError("swtpm.ended", f"swtpm does not answer: {error}") from error

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            if not (piece := self._socket.recv(size - len(received))):
                raise UnavailableError("swtpm.ended", "swtpm closed its socket")
            received += piece
        return received

    def close(self) -> None:
        """Stop the process and wait for its end. A second call does nothing."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
