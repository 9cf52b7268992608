"""Quotes by configfs-tsm, against a directory that behaves as the kernel's does, or does not."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave.devices.tdx_configfs import (
    BUSY_PAUSE,
    GENERATION_TIMEOUT,
    MAX_QUOTE,
    MIN_QUOTE,
    ConfigfsQuotes,
    ReportEntry,
    configfs_entry,
    has_tdx_entry,
)
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError

REPORT_DATA = bytes(range(64))
QUOTE = b"\x04\x00" + bytes(5000)


class Kernel(ReportEntry):
    """An entry on a real file system: a write to inblob raises the generation and makes a quote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.quote = QUOTE
        self.busy_writes: list[int] = []
        self.busy_reads: list[int] = []
        self.step = 1
        self.after_read: Callable[[], None] = lambda: None

    def create(self) -> None:
        super().create()
        for name, content in (("provider", b"tdx_guest\n"), ("generation", b"7\n"), ("inblob", b"")):
            if not (self.path / name).exists():
                (self.path / name).write_bytes(content)

    def write(self, name: str, content: bytes) -> None:
        if self.busy_writes:
            raise OSError(self.busy_writes.pop(0), "busy")
        super().write(name, content)
        self.advance(self.step)
        (self.path / "outblob").write_bytes(self.quote)

    def read(self, name: str, limit: int) -> bytes:
        if name == "outblob" and self.busy_reads:
            raise OSError(self.busy_reads.pop(0), "busy")
        content = super().read(name, limit)
        if name == "outblob":
            self.after_read()
        return content

    def advance(self, step: int) -> None:
        path = self.path / "generation"
        path.write_text(f"{int(path.read_text()) + step}\n")


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []
        self.on_nap: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds
        self.on_nap()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "com.intel.dcap")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def quotes(entry: ReportEntry, clock: Clock) -> ConfigfsQuotes:
    return ConfigfsQuotes(entry, sleep=clock.sleep, monotonic=clock.monotonic)


def refused(entry: ReportEntry, clock: Clock) -> DstackError:
    with pytest.raises(DstackError) as caught:
        quotes(entry, clock).quote(REPORT_DATA)
    return caught.value


def test_returns_the_quote_over_what_was_written(kernel: Kernel, clock: Clock) -> None:
    assert quotes(kernel, clock).quote(REPORT_DATA) == QUOTE
    assert (kernel.path / "inblob").read_bytes() == REPORT_DATA
    assert clock.naps == []


def test_holds_the_lock_while_it_waits(kernel: Kernel, clock: Clock) -> None:
    locked = []

    def probe() -> None:
        descriptor = os.open(kernel.path / "inblob", os.O_WRONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked.append(True)
        finally:
            os.close(descriptor)

    kernel.after_read = probe
    quotes(kernel, clock).quote(REPORT_DATA)
    assert locked == [True]


def test_waits_for_another_users_lock(kernel: Kernel, clock: Clock) -> None:
    kernel.create()
    descriptor = os.open(kernel.path / "inblob", os.O_WRONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(quotes(kernel, clock).quote(REPORT_DATA)))
    thread.start()
    assert result == []
    assert (kernel.path / "inblob").read_bytes() == b""
    os.close(descriptor)
    thread.join(10)
    assert result == [QUOTE]


def test_polls_a_generation_that_comes_late(kernel: Kernel, clock: Clock) -> None:
    kernel.step = 0
    clock.on_nap = lambda: kernel.advance(1) if len(clock.naps) == 3 else None
    assert quotes(kernel, clock).quote(REPORT_DATA) == QUOTE
    assert clock.naps == [0.01] * 3


def test_gives_up_on_a_generation_that_does_not_come(kernel: Kernel, clock: Clock) -> None:
    kernel.step = 0
    caught = refused(kernel, clock)
    assert (caught.code, type(caught)) == ("tdx_device.configfs.generation", UnavailableError)
    assert sum(clock.naps) == pytest.approx(GENERATION_TIMEOUT, abs=0.02)


def test_refuses_the_quote_of_another_writer(kernel: Kernel, clock: Clock) -> None:
    kernel.step = 2
    assert refused(kernel, clock).code == "tdx_device.configfs.generation"


def test_refuses_a_quote_that_was_overtaken_while_it_was_read(kernel: Kernel, clock: Clock) -> None:
    kernel.after_read = lambda: kernel.advance(1)
    assert refused(kernel, clock).code == "tdx_device.configfs.generation"


def test_tries_a_busy_write_again(kernel: Kernel, clock: Clock) -> None:
    kernel.busy_writes = [errno.EBUSY] * 2
    assert quotes(kernel, clock).quote(REPORT_DATA) == QUOTE
    assert clock.naps == [BUSY_PAUSE] * 2


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EINTR, errno.ETIMEDOUT])
def test_tries_a_busy_read_again(kernel: Kernel, clock: Clock, error: int) -> None:
    kernel.busy_reads = [error] * 2
    assert quotes(kernel, clock).quote(REPORT_DATA) == QUOTE
    assert clock.naps == [BUSY_PAUSE] * 2


@pytest.mark.parametrize("name", ["busy_writes", "busy_reads"])
def test_gives_up_after_three_tries(kernel: Kernel, clock: Clock, name: str) -> None:
    setattr(kernel, name, [errno.EBUSY] * 3)
    caught = refused(kernel, clock)
    assert (caught.code, type(caught)) == ("tdx_device.configfs.busy", UnavailableError)
    assert clock.naps == [BUSY_PAUSE] * 2


@pytest.mark.parametrize(("name", "error"), [("busy_writes", errno.EINTR), ("busy_reads", errno.EIO)])
def test_does_not_try_again_after_another_error(kernel: Kernel, clock: Clock, name: str, error: int) -> None:
    setattr(kernel, name, [error])
    caught = refused(kernel, clock)
    assert (caught.code, type(caught)) == ("tdx_device.configfs.io", UnavailableError)
    assert clock.naps == []


@pytest.mark.parametrize("length", [MIN_QUOTE - 1, MAX_QUOTE + 1])
def test_refuses_a_quote_of_an_impossible_size(kernel: Kernel, clock: Clock, length: int) -> None:
    kernel.quote = bytes(length)
    caught = refused(kernel, clock)
    assert (caught.code, type(caught)) == ("tdx_device.quote.size", ProtocolError)


@pytest.mark.parametrize("length", [MIN_QUOTE, MAX_QUOTE])
def test_takes_a_quote_at_the_limits(kernel: Kernel, clock: Clock, length: int) -> None:
    """More than 1020 and less than 8192 bytes."""
    assert (MIN_QUOTE, MAX_QUOTE) == (1021, 8191)
    kernel.quote = bytes(length)
    assert quotes(kernel, clock).quote(REPORT_DATA) == bytes(length)


def test_refuses_reports_of_another_technology(kernel: Kernel, clock: Clock) -> None:
    kernel.create()
    (kernel.path / "provider").write_bytes(b"sev_guest\n")
    assert refused(kernel, clock).code == "tdx_device.configfs.provider"


def test_refuses_a_generation_that_is_no_number(kernel: Kernel, clock: Clock) -> None:
    kernel.create()
    (kernel.path / "generation").write_bytes(b"-1\n")
    assert refused(kernel, clock).code == "tdx_device.configfs.malformed"


def test_reports_a_kernel_without_the_interface(tmp_path: Path, clock: Clock) -> None:
    caught = refused(ReportEntry(tmp_path / "no" / "entry"), clock)
    assert (caught.code, type(caught)) == ("tdx_device.configfs.absent", UnavailableError)


def test_uses_intels_entry_unless_told_otherwise() -> None:
    assert configfs_entry({}) == Path("/sys/kernel/config/tsm/report/com.intel.dcap")
    assert configfs_entry({"DCAP_TDX_QUOTE_CONFIGFS_PATH": "/run/tsm/one"}) == Path("/run/tsm/one")


@pytest.mark.parametrize("path", ["", "run/tsm", "/" + "a" * 239])
def test_refuses_a_path_that_intels_library_would_refuse(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configfs_entry({"DCAP_TDX_QUOTE_CONFIGFS_PATH": path})
    assert caught.value.code == "tdx_device.configfs.path"


def test_finds_an_entry_that_answers_for_tdx(tmp_path: Path) -> None:
    assert not has_tdx_entry(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "provider").write_bytes(b"sev_guest\n")
    assert not has_tdx_entry(tmp_path)
    Kernel(tmp_path / "ours").create()
    assert has_tdx_entry(tmp_path)
