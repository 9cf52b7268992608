"""Events that the guest reports: into a register first, then into a log (spec attestation 3.3, 3.4, 5.4).

The register is what a quote covers; the log is what lets a verifier recompute the register. An event whose
register was extended and whose line is missing can never be verified again, so whatever can be checked is
checked before the register moves, and a log that does not replay is never quoted (see `attestor`).
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from enclave.devices.tdx import TdxDevice
from enclave.devices.tpm import Tpm
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.event_log import RUNTIME_RTMR, Algorithm, event_digest
from shared.errors import ProtocolError, StorageError

DEFAULT_DIRECTORY = Path("/run/log/dstack")

RUNTIME_PCR = 14

# An envelope takes 10 MiB, and a line is a third longer than its event.
MAX_LOG = 8 * 1024 * 1024
# Payloads are hashes and small JSON texts; a name is a word or two.
MAX_PAYLOAD = 1024 * 1024
MAX_NAME = 256

_LOG = "runtime_events.log"
_VERSION = "runtime_event_version"
_LOCK = "runtime_event.lock"
_PRIVATE = 0o600


class EventRegister(Protocol):
    """One register of a platform that every event extends."""

    @property
    def algorithm(self) -> Algorithm:
        """The hash of its event digests."""
        ...

    def extend(self, digest: bytes) -> None:
        """Extend the register. Raises the device's errors."""
        ...


class Rtmr3:
    """RTMR3 of a TDX guest."""

    algorithm: Algorithm = "sha384"

    def __init__(self, device: TdxDevice) -> None:
        self._device = device

    def extend(self, digest: bytes) -> None:
        """Extend RTMR3."""
        self._device.extend_rtmr(RUNTIME_RTMR, digest)


class Pcr14:
    """PCR14 of a vTPM, in one bank: `sha256` on Google Cloud, `sha384` on an EC2 guest's NitroTPM."""

    def __init__(self, tpm: Tpm, algorithm: Algorithm) -> None:
        self._tpm = tpm
        self.algorithm = algorithm

    def extend(self, digest: bytes) -> None:
        """Extend PCR14 of the bank."""
        self._tpm.pcr_extend(RUNTIME_PCR, {self.algorithm: digest})


class _Line(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    event: str
    payload: bytes
    version: int = 1


class RuntimeEventLog:
    """The log of one boot, shared by all its processes through a lock file.

    `registers` are the platform's, extended in this order; a Nitro Enclave has none.

    Methods raise `StorageError`: `runtime_events.io` when a file cannot be read or written,
    `runtime_events.version.unset`, `runtime_events.version.malformed`, `runtime_events.size`,
    `runtime_events.torn` for a last line without its end (a crash while it was written: the register holds
    an event that the log lost, and only a reboot helps), `runtime_events.line` for a line of another shape.
    """

    def __init__(self, registers: Sequence[EventRegister], directory: Path = DEFAULT_DIRECTORY) -> None:
        self._registers = tuple(registers)
        self._directory = directory

    def set_version(self, version: Literal[1, 2]) -> None:
        """Fix the event version of this boot, before the first event. Setting the same again is fine.

        Raises `StorageError("runtime_events.version.fixed")` when another one is set already.
        """
        with self._locked():
            present = self._read_file(_VERSION, 16)
            if present is None:
                self._append(_VERSION, str(version).encode())
            elif self._parse_version(present) != version:
                raise StorageError(
                    "runtime_events.version.fixed",
                    f"event version of this boot is {present.decode()}, and cannot become {version}",
                )

    def emit(self, name: str, payload: bytes) -> RuntimeEvent:
        """Extend the registers by an event, append it to the log, and return it.

        Raises `ProtocolError`: `runtime_events.name`, `runtime_events.payload`; and the devices' errors.
        """
        _check(name, payload)
        with self._locked():
            present = self._read_file(_VERSION, 16)
            if present is None:
                raise StorageError(
                    "runtime_events.version.unset", "no event version is set for this boot, expected 1 or 2"
                )
            event = RuntimeEvent(name, payload, self._parse_version(present))
            line = msgspec.json.encode(_Line(event.event, event.payload, event.version)) + b"\n"
            log = self._read_log()
            if len(log) + len(line) > MAX_LOG:
                raise StorageError(
                    "runtime_events.size", f"event log would pass its limit of {MAX_LOG} bytes"
                )
            for register in self._registers:
                register.extend(event_digest(event, register.algorithm))
            self._append(_LOG, line)
        return event

    def read(self) -> tuple[RuntimeEvent, ...]:
        """Return the events so far, in order."""
        with self.held() as events:
            return events

    @contextmanager
    def held(self) -> Iterator[tuple[RuntimeEvent, ...]]:
        """Give the events so far and keep other processes from emitting until the block ends.

        No method of the same directory's logs may be called inside: it would wait for itself.
        """
        with self._locked():
            yield tuple(map(_decode_line, self._read_log().split(b"\n")[:-1]))

    def _read_log(self) -> bytes:
        log = self._read_file(_LOG, MAX_LOG) or b""
        if log and not log.endswith(b"\n"):
            raise StorageError(
                "runtime_events.torn", "event log ends inside a line: an event was lost, reboot to start anew"
            )
        return log

    def _parse_version(self, content: bytes) -> int:
        if content.strip() not in {b"1", b"2"}:
            raise StorageError(
                "runtime_events.version.malformed", f"{self._directory / _VERSION} holds neither 1 nor 2"
            )
        return int(content)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        except OSError as error:
            raise _failed(self._directory / _LOCK, error) from error
        try:
            _lock(descriptor, self._directory / _LOCK)
            yield
        finally:
            os.close(descriptor)

    def _read_file(self, name: str, limit: int) -> bytes | None:
        path = self._directory / name
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, error) from error
        if len(content) > limit:
            raise StorageError("runtime_events.size", f"{path} is larger than {limit} bytes")
        return content

    def _append(self, name: str, content: bytes) -> None:
        path = self._directory / name
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            with open(os.open(path, flags, _PRIVATE), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                written = file.write(content)
        except OSError as error:
            raise _failed(path, error) from error
        if written != len(content):
            raise StorageError("runtime_events.io", f"{path} took {written} of {len(content)} bytes")


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise _failed(path, error) from error


def _check(name: str, payload: bytes) -> None:
    # The preimage of version 1 joins name and payload by a colon: with one in the name, the same register
    # value would also stand for a shorter name with a longer payload.
    encodable = name.isprintable() and name.isascii() and ":" not in name
    if not encodable or not 0 < len(name) <= MAX_NAME:
        raise ProtocolError(
            "runtime_events.name",
            f"got event name {name[:80]!r}, expected 1 to {MAX_NAME} printable ascii characters, no colon",
        )
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(
            "runtime_events.payload", f"payload has {len(payload)} bytes, at most {MAX_PAYLOAD} are taken"
        )


def _decode_line(line: bytes) -> RuntimeEvent:
    try:
        decoded = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageError(
            "runtime_events.line", "event log has a line that is not an event's json"
        ) from error
    if decoded.version not in {1, 2}:
        raise StorageError(
            "runtime_events.line", f"event log has an event of version {decoded.version}, expected 1 or 2"
        )
    return RuntimeEvent(decoded.event, decoded.payload, decoded.version)


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError("runtime_events.io", f"{path}: {error.strerror}")
