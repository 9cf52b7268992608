"""The TDX device as a whole, and its ioctls against a driver in this process."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave.devices.tdx import LinuxTdx, QuoteSource, tdx_present
from enclave.devices.tdx_guest import TdxGuestNode
from shared.attestation.tcg_log import MAX_LOG
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError

REPORT_DATA = bytes(range(64))
DIGEST = bytes(range(48))


class Driver:
    """The kernel's side of the ioctls."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.calls: list[tuple[int, bytes]] = []

    def __call__(self, descriptor: int, request: int, argument: bytearray, mutate: bool) -> int:  # noqa: FBT001
        assert mutate
        assert descriptor >= 0
        self.calls.append((request, bytes(argument)))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if request == 0xC4405401:
            argument[64:] = b"\x07" * 1024
        return 0


class Source:
    """A way to a quote."""

    def __init__(self, answer: bytes | DstackError) -> None:
        self.answer = answer
        self.asked: list[bytes] = []

    def quote(self, report_data: bytes) -> bytes:
        self.asked.append(report_data)
        if isinstance(self.answer, DstackError):
            raise self.answer
        return self.answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in the place of the device node."""
    node = tmp_path / "tdx_guest"
    node.touch()
    return node


def device(tmp_path: Path, *sources: QuoteSource, driver: Driver | None = None) -> LinuxTdx:
    node = TdxGuestNode(tmp_path / "tdx_guest", ioctl=driver or Driver())
    return LinuxTdx(sources, node, rtmr_base=tmp_path / "measurements", ccel=tmp_path / "CCEL")


def refused(call: Callable[[], object]) -> DstackError:
    with pytest.raises(DstackError) as caught:
        call()
    return caught.value


# --- the node ---


def test_asks_for_a_report_as_documented(path: Path) -> None:
    driver = Driver()
    assert TdxGuestNode(path, ioctl=driver).report(REPORT_DATA) == b"\x07" * 1024
    assert driver.calls == [(0xC4405401, REPORT_DATA + bytes(1024))]


def test_extends_as_documented(path: Path) -> None:
    driver = Driver()
    TdxGuestNode(path, ioctl=driver).extend(3, DIGEST)
    assert driver.calls == [(0x80315403, DIGEST + b"\x03")]


def test_reports_a_machine_without_the_node(tmp_path: Path) -> None:
    caught = refused(lambda: TdxGuestNode(tmp_path / "absent").report(REPORT_DATA))
    assert (caught.code, type(caught)) == ("tdx_device.node", UnavailableError)


def test_reports_a_failing_driver(path: Path) -> None:
    caught = refused(lambda: TdxGuestNode(path, ioctl=Driver(errno.ENOTTY)).extend(3, DIGEST))
    assert (caught.code, type(caught)) == ("tdx_device.ioctl", UnavailableError)


# --- quotes ---


def test_uses_the_first_source_that_answers(tmp_path: Path) -> None:
    first, second = Source(UnavailableError("tdx_device.configfs.absent", "no")), Source(b"quote")
    assert device(tmp_path, first, second, Source(b"another")).quote(REPORT_DATA) == b"quote"
    assert first.asked == second.asked == [REPORT_DATA]


def test_reports_the_first_sources_error_when_none_answers(tmp_path: Path) -> None:
    first, second = (Source(UnavailableError(f"tdx_device.{name}", "no")) for name in ("one", "two"))
    assert refused(lambda: device(tmp_path, first, second).quote(REPORT_DATA)).code == "tdx_device.one"


def test_does_not_work_around_a_source_that_answers_nonsense(tmp_path: Path) -> None:
    first, second = Source(ProtocolError("tdx_device.quote.size", "no")), Source(b"quote")
    caught = refused(lambda: device(tmp_path, first, second).quote(REPORT_DATA))
    assert caught.code == "tdx_device.quote.size"
    assert second.asked == []


@pytest.mark.parametrize("length", [0, 63, 65])
def test_refuses_report_data_of_another_length(tmp_path: Path, length: int) -> None:
    caught = refused(lambda: device(tmp_path, Source(b"quote")).quote(bytes(length)))
    assert caught.code == "tdx_device.report_data.length"


def test_one_call_at_a_time_in_a_process(tmp_path: Path, register: Path) -> None:
    """Through whichever object: the driver has one request at a time."""
    thread = threading.Thread(target=lambda: device(tmp_path).extend_rtmr(3, DIGEST))
    during: list[bytes] = []

    class Slow:
        def quote(self, _report_data: bytes) -> bytes:
            thread.start()
            thread.join(0.05)
            during.append(register.read_bytes())
            return b"quote"

    assert device(tmp_path, Slow()).quote(REPORT_DATA) == b"quote"
    thread.join(10)
    assert (during, register.read_bytes()) == ([b""], DIGEST)


# --- registers ---


@pytest.fixture
def register(tmp_path: Path) -> Path:
    """RTMR3's file, as kernels with the interface have it."""
    (tmp_path / "measurements").mkdir()
    file = tmp_path / "measurements" / "rtmr3:sha384"
    file.touch()
    return file


def test_extends_through_the_file_where_there_is_one(tmp_path: Path, register: Path) -> None:
    driver = Driver()
    device(tmp_path, driver=driver).extend_rtmr(3, DIGEST)
    assert register.read_bytes() == DIGEST
    assert driver.calls == []


def test_extends_through_the_node_where_there_is_no_file(tmp_path: Path, path: Path) -> None:
    driver = Driver()
    device(tmp_path, driver=driver).extend_rtmr(2, DIGEST)
    assert path.read_bytes() == b""
    assert driver.calls == [(0x80315403, DIGEST + b"\x02")]


def test_does_not_extend_twice_when_the_file_fails(tmp_path: Path, register: Path) -> None:
    register.unlink()
    register.symlink_to("/dev/full")
    driver = Driver()
    caught = refused(lambda: device(tmp_path, driver=driver).extend_rtmr(3, DIGEST))
    assert (caught.code, type(caught)) == ("tdx_device.rtmr.io", UnavailableError)
    assert driver.calls == []


def test_reports_a_file_that_takes_half_a_digest(
    tmp_path: Path, register: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda _descriptor, _content: 24)
    assert register.exists()
    assert refused(lambda: device(tmp_path).extend_rtmr(3, DIGEST)).code == "tdx_device.rtmr.io"


@pytest.mark.parametrize("index", [-1, 0, 1, 4])
def test_refuses_a_register_that_is_not_the_guests(tmp_path: Path, index: int) -> None:
    assert refused(lambda: device(tmp_path).extend_rtmr(index, DIGEST)).code == "tdx_device.rtmr.index"


@pytest.mark.parametrize("length", [32, 47, 49])
def test_refuses_a_digest_of_another_length(tmp_path: Path, length: int) -> None:
    caught = refused(lambda: device(tmp_path).extend_rtmr(3, bytes(length)))
    assert caught.code == "tdx_device.digest.length"


# --- the firmware's log ---


def test_reads_the_firmwares_log(tmp_path: Path) -> None:
    (tmp_path / "CCEL").write_bytes(b"log")
    assert device(tmp_path).event_log() == b"log"


def test_reports_a_machine_without_a_log(tmp_path: Path) -> None:
    caught = refused(device(tmp_path).event_log)
    assert (caught.code, type(caught)) == ("tdx_device.event_log", UnavailableError)


def test_refuses_an_oversize_log(tmp_path: Path) -> None:
    with (tmp_path / "CCEL").open("wb") as file:
        file.truncate(MAX_LOG + 1)
    assert refused(device(tmp_path).event_log).code == "tdx_device.event_log.size"


# --- presence and assembly ---


def test_a_machine_with_the_node_is_a_guest(tmp_path: Path) -> None:
    assert not tdx_present(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "tdx_guest").touch()
    assert tdx_present(tmp_path)


def test_a_machine_with_a_tdx_report_entry_is_a_guest(tmp_path: Path) -> None:
    entry = tmp_path / "sys/kernel/config/tsm/report/com.intel.dcap"
    entry.mkdir(parents=True)
    (entry / "provider").write_text("tdx_guest\n")
    assert tdx_present(tmp_path)


def never(*_: object) -> None:
    raise AssertionError


def test_paths_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "ccel").write_bytes(b"log")
    (tmp_path / "rtmr3:sha384").touch()
    environment = {
        "DSTACK_CCEL_FILE": str(tmp_path / "ccel"),
        "DCAP_TDX_RTMR_SYSFS_PATH": str(tmp_path),
        "DCAP_TDX_QUOTE_CONFIGFS_PATH": str(tmp_path / "no" / "entry"),
    }
    tdx = LinuxTdx.production(environment, never)
    assert tdx.event_log() == b"log"
    tdx.extend_rtmr(3, DIGEST)
    assert (tmp_path / "rtmr3:sha384").read_bytes() == DIGEST
    assert refused(lambda: tdx.quote(REPORT_DATA)).code == "tdx_device.configfs.absent"


def test_refuses_a_relative_entry_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LinuxTdx.production({"DCAP_TDX_QUOTE_CONFIGFS_PATH": "tsm"}, never)
    assert caught.value.code == "tdx_device.configfs.path"
