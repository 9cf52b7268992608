"""TDX quotes through the kernel's configfs-tsm interface (spec attestation section 3.2)."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from shared.errors import ConfigError, ProtocolError, UnavailableError

REPORT_BASE = Path("/sys/kernel/config/tsm/report")
ENTRY_NAME = "com.intel.dcap"
ENTRY_VARIABLE = "DCAP_TDX_QUOTE_CONFIGFS_PATH"
# Intel's library has a buffer of 240 characters for this path.
_MAX_ENTRY_PATH = 239

PROVIDER = "tdx_guest"

# A quote of version 4 has 632 bytes before its signature, and the driver's buffer has 8 KiB.
MIN_QUOTE = 1021
MAX_QUOTE = 8191

# The host makes one quote at a time; another guest's quote is over within seconds.
BUSY_TRIES = 3
BUSY_PAUSE = 10.0
GENERATION_TIMEOUT = 5.0
GENERATION_PAUSE = 0.01

_MAX_TEXT = 64  # provider names and generation numbers are one short word
_READ_BUSY = {errno.EBUSY, errno.EINTR, errno.ETIMEDOUT}


T = TypeVar("T")


class ReportEntry:
    """The files of one entry. Every method may raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the entry's directory if it is missing; the kernel fills it."""
        self.path.mkdir(exist_ok=True)

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's first bytes, at most `limit`."""
        with (self.path / name).open("rb") as file:
            return file.read(limit)

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one piece and close it: the kernel takes the value when it is closed."""
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock on a file, against every other user of the entry."""
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class ConfigfsQuotes:
    """Quotes by one entry. `sleep` and `monotonic` take and give seconds."""

    def __init__(
        self,
        entry: ReportEntry,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entry = entry
        self._sleep = sleep
        self._monotonic = monotonic

    def quote(self, report_data: bytes) -> bytes:
        """Return the quote over 64 bytes.

        Raises `UnavailableError`: `tdx_device.configfs.absent`, `tdx_device.configfs.provider` when another
        technology answers there, `tdx_device.configfs.io`, `tdx_device.configfs.busy`,
        `tdx_device.configfs.generation` when another writer came between; `ProtocolError`:
        `tdx_device.quote.size`, `tdx_device.configfs.malformed`.
        """
        try:
            self._entry.create()
        except OSError as error:
            raise UnavailableError(
                "tdx_device.configfs.absent", f"cannot use {self._entry.path}: {error.strerror}"
            ) from error
        try:
            provider = self._entry.read("provider", _MAX_TEXT)
            if not provider.startswith(PROVIDER.encode()):
                raise UnavailableError(
                    "tdx_device.configfs.provider", f"reports come from {provider!r}, expected {PROVIDER}"
                )
            with self._entry.locked("inblob"):
                quote = self._exchange(report_data)
        except OSError as error:
            raise UnavailableError(
                "tdx_device.configfs.io", f"{self._entry.path} failed: {error.strerror}"
            ) from error
        if not MIN_QUOTE <= len(quote) <= MAX_QUOTE:
            raise ProtocolError(
                "tdx_device.quote.size",
                f"quote has {len(quote)} bytes or more, expected {MIN_QUOTE} to {MAX_QUOTE}",
            )
        return quote

    def _exchange(self, report_data: bytes) -> bytes:
        """Write the request and read its answer; the generation counts writes, and shows that it is ours."""
        expected = self._generation() + 1
        self._retried(lambda: self._entry.write("inblob", report_data), {errno.EBUSY})
        deadline = self._monotonic() + GENERATION_TIMEOUT
        while (generation := self._generation()) != expected:
            if generation > expected or self._monotonic() >= deadline:
                raise _overtaken(generation, expected)
            self._sleep(GENERATION_PAUSE)
        quote = self._retried(lambda: self._entry.read("outblob", MAX_QUOTE + 1), _READ_BUSY)
        if (generation := self._generation()) != expected:
            raise _overtaken(generation, expected)
        return quote

    def _generation(self) -> int:
        text = self._entry.read("generation", _MAX_TEXT).strip()
        if not text.isdigit():
            raise ProtocolError(
                "tdx_device.configfs.malformed", f"generation is {text!r}, expected a decimal number"
            )
        return int(text)

    def _retried(self, operation: Callable[[], T], busy: Container[int]) -> T:
        tries = 1
        while True:
            try:
                return operation()
            except OSError as error:
                if error.errno not in busy:
                    raise
                if tries == BUSY_TRIES:
                    raise UnavailableError(
                        "tdx_device.configfs.busy", f"quote was not made in {BUSY_TRIES} tries"
                    ) from error
            tries += 1
            self._sleep(BUSY_PAUSE)


def configfs_entry(environment: Mapping[str, str]) -> Path:
    """Return the entry's path: `DCAP_TDX_QUOTE_CONFIGFS_PATH`, or the default one.

    Raises `ConfigError("tdx_device.configfs.path")` for a relative or an overlong one.
    """
    named = environment.get(ENTRY_VARIABLE)
    if named is None:
        return REPORT_BASE / ENTRY_NAME
    if not named.startswith("/") or len(named) > _MAX_ENTRY_PATH:
        raise ConfigError(
            "tdx_device.configfs.path",
            f"{ENTRY_VARIABLE} is {named[:80]!r}, expected an absolute path of at most {_MAX_ENTRY_PATH}",
        )
    return Path(named)


def has_tdx_entry(base: Path) -> bool:
    """Tell whether any report entry below `base` answers for TDX."""
    try:
        entries = list(base.iterdir())
    except OSError:
        return False
    return any(_is_tdx(ReportEntry(entry)) for entry in entries)


def _is_tdx(entry: ReportEntry) -> bool:
    try:
        return entry.read("provider", _MAX_TEXT).startswith(PROVIDER.encode())
    except OSError:
        return False


def _overtaken(generation: int, expected: int) -> UnavailableError:
    return UnavailableError(
        "tdx_device.configfs.generation", f"generation is {generation}, expected {expected} for our request"
    )
