"""Runtime events: register first, log second, one writer at a time, and nothing lost in silence."""

import errno
import hashlib
import json
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import pytest

from enclave.devices.runtime_events import (
    MAX_LOG,
    MAX_NAME,
    MAX_PAYLOAD,
    EventRegister,
    Pcr14,
    Rtmr3,
    RuntimeEventLog,
)
from enclave.devices.tpm import Tpm
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.event_log import Algorithm, event_digest, replay
from shared.errors import DstackError, ProtocolError, StorageError, UnavailableError

LADDER = (
    ("system-preparing", b""),
    ("app-id", b"\x11" * 20),
    ("compose-hash", b"\x22" * 32),
    ("instance-id", b"\x33" * 20),
    ("boot-mr-done", b""),
    ("key-provider", b'{"name":"none","id":""}'),
    ("storage-fs", b"zfs"),
    ("system-ready", b""),
)


class Register:
    """A register that remembers, and fails on demand."""

    def __init__(self, algorithm: Algorithm = "sha384") -> None:
        self.algorithm = algorithm
        self.digests: list[bytes] = []
        self.on_extend: Callable[[], None] = lambda: None

    def extend(self, digest: bytes) -> None:
        self.on_extend()
        self.digests.append(digest)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "log"


def log_at(directory: Path, *registers: EventRegister, version: Literal[1, 2] = 1) -> RuntimeEventLog:
    log = RuntimeEventLog(registers, directory)
    log.set_version(version)
    return log


def refused(call: Callable[[], object]) -> DstackError:
    with pytest.raises(DstackError) as caught:
        call()
    return caught.value


def test_google_guests_extend_rtmr3_and_pcr14_alike(directory: Path) -> None:
    """Trap 11: two registers, two hashes, one order; the values are the specification's."""
    tdx, tpm = SimulatedTdx(SimulatedIntel.create()), Tpm(SoftwareTpm())
    log = log_at(directory, Rtmr3(tdx), Pcr14(tpm, "sha256"))
    for name, payload in LADDER:
        log.emit(name, payload)
    assert tdx.rtmrs[3].hex().startswith("c0b5f2e230f7c59b03b7d0772fd15864d66e7a05f3e6569a0f843f51b6590260")
    assert tpm.pcr_read("sha256", [14])[14].hex() == (
        "fbf34f914d21a175e263e50f3b2a402256f4d53e17168b021ba52b548c1094b9"
    )
    assert replay(log.read(), "sha384") == tdx.rtmrs[3]


def test_an_ec2_guest_extends_the_sha384_bank(directory: Path) -> None:
    tpm = Tpm(SoftwareTpm())
    log_at(directory, Pcr14(tpm, "sha384")).emit("system-preparing", b"")
    digest = bytes.fromhex(
        "f9974020ef507068183313d0ca808e0d1ca9b2d1ad0c61f5784e7157c362c06536f5ddacdad4451693f48fcc72fff624"
    )
    assert tpm.pcr_read("sha384", [14]) == {14: hashlib.sha384(bytes(48) + digest).digest()}
    assert tpm.pcr_read("sha256", [14]) == {14: bytes(32)}


def test_an_enclave_without_a_register_only_logs(directory: Path) -> None:
    event = log_at(directory).emit("app-id", b"\x11" * 20)
    assert RuntimeEventLog((), directory).read() == (event,)


def test_writes_the_documented_lines(directory: Path) -> None:
    log = log_at(directory)
    log.emit("app-id", b"\xff" * 5)
    log.emit("system-ready", b"")
    assert (directory / "runtime_events.log").read_bytes() == (
        b'{"event":"app-id","payload":"//////8="}\n{"event":"system-ready","payload":""}\n'
    )


def test_version_2_is_in_every_line(directory: Path) -> None:
    register = Register()
    event = log_at(directory, register, version=2).emit("compose-hash", b"\xab\xcd")
    line = (directory / "runtime_events.log").read_text()
    assert json.loads(line) == {"event": "compose-hash", "payload": "q80=", "version": 2}
    assert event == RuntimeEvent("compose-hash", b"\xab\xcd", 2)
    assert register.digests[0].hex().startswith("9dde1673f544faa94b92182520959")


def test_only_the_owner_may_read_and_write(directory: Path) -> None:
    log_at(directory).emit("app-id", b"")
    for name in ("runtime_events.log", "runtime_event_version", "runtime_event.lock"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600


def test_the_log_comes_after_the_registers(directory: Path) -> None:
    first, second = Register(), Register("sha256")
    second.on_extend = lambda: seen.append((len(first.digests), (directory / "runtime_events.log").exists()))
    seen: list[tuple[int, bool]] = []
    log_at(directory, first, second).emit("app-id", b"")
    assert seen == [(1, False)]
    event = RuntimeEvent("app-id", b"")
    assert first.digests == [event_digest(event, "sha384")]
    assert second.digests == [event_digest(event, "sha256")]


def test_an_event_whose_register_failed_is_not_logged(directory: Path) -> None:
    def fail() -> None:
        raise UnavailableError("tdx_device.rtmr.io", "no")

    register = Register()
    register.on_extend = fail
    log = log_at(directory, register)
    assert refused(lambda: log.emit("app-id", b"")).code == "tdx_device.rtmr.io"
    assert log.read() == ()


# --- versions ---


def test_refuses_to_emit_before_a_version_is_set(directory: Path) -> None:
    register = Register()
    caught = refused(lambda: RuntimeEventLog([register], directory).emit("app-id", b""))
    assert (caught.code, type(caught)) == ("runtime_events.version.unset", StorageError)
    assert register.digests == []


def test_a_version_is_set_once_per_boot(directory: Path) -> None:
    log = log_at(directory, version=2)
    log.set_version(2)
    assert refused(lambda: log.set_version(1)).code == "runtime_events.version.fixed"
    assert (directory / "runtime_event_version").read_bytes() == b"2"


def test_takes_a_version_that_a_shell_wrote(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "runtime_event_version").write_bytes(b"2\n")
    assert RuntimeEventLog((), directory).emit("app-id", b"").version == 2


@pytest.mark.parametrize("content", [b"", b"3", b"1 2", b"\xff"])
def test_refuses_a_version_that_does_not_exist(directory: Path, content: bytes) -> None:
    log = log_at(directory)
    (directory / "runtime_event_version").write_bytes(content)
    assert refused(lambda: log.emit("app-id", b"")).code == "runtime_events.version.malformed"


# --- what is refused before a register moves ---


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "\x00", "é", "\ud800", "a" * (MAX_NAME + 1)])
def test_refuses_a_name(directory: Path, name: str) -> None:
    register = Register()
    log = log_at(directory, register)
    caught = refused(lambda: log.emit(name, b""))
    assert (caught.code, type(caught)) == ("runtime_events.name", ProtocolError)
    assert register.digests == []


def test_refuses_an_oversize_payload(directory: Path) -> None:
    register = Register()
    log = log_at(directory, register)
    assert refused(lambda: log.emit("a", bytes(MAX_PAYLOAD + 1))).code == "runtime_events.payload"
    assert register.digests == []


def test_refuses_an_event_that_would_overfill_the_log(directory: Path) -> None:
    register = Register()
    log = log_at(directory, register)
    line = json.dumps({"event": "a", "payload": "A" * (MAX_LOG - 100)}) + "\n"
    (directory / "runtime_events.log").write_text(line)
    assert refused(lambda: log.emit("b", bytes(100))).code == "runtime_events.size"
    assert register.digests == []


def test_refuses_a_log_beyond_its_limit(directory: Path) -> None:
    log = log_at(directory)
    with (directory / "runtime_events.log").open("wb") as file:
        file.truncate(MAX_LOG + 1)
    assert refused(log.read).code == "runtime_events.size"


def test_refuses_a_torn_line_and_does_not_build_on_it(directory: Path) -> None:
    """After a crash between the register and the end of the line."""
    register = Register()
    log = log_at(directory, register)
    log.emit("app-id", b"")
    path = directory / "runtime_events.log"
    path.write_bytes(path.read_bytes() + b'{"event":"comp')
    caught = refused(log.read)
    assert (caught.code, type(caught)) == ("runtime_events.torn", StorageError)
    assert refused(lambda: log.emit("next", b"")).code == "runtime_events.torn"
    assert len(register.digests) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"event":"a"}',
        b'{"event":"a","payload":"!"}',
        b'{"event":"a","payload":"","more":1}',
        b'{"event":"a","payload":"","version":3}',
        b'{"event":"\xff","payload":""}',
    ],
)
def test_refuses_a_line_of_another_shape(directory: Path, line: bytes) -> None:
    log = log_at(directory)
    (directory / "runtime_events.log").write_bytes(line + b"\n")
    assert refused(log.read).code == "runtime_events.line"


# --- files that fail ---


def test_reports_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    caught = refused(RuntimeEventLog((), tmp_path / "file" / "log").read)
    assert (caught.code, type(caught)) == ("runtime_events.io", StorageError)


def test_reports_a_file_system_without_locks(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", fails)
    assert refused(RuntimeEventLog((), directory).read).code == "runtime_events.io"


def test_reports_a_log_that_cannot_be_read(directory: Path) -> None:
    (directory / "runtime_events.log").mkdir(parents=True)
    assert refused(RuntimeEventLog((), directory).read).code == "runtime_events.io"


def test_reports_a_log_that_cannot_be_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_at(directory)
    (directory / "runtime_events.log").symlink_to("/dev/full")
    monkeypatch.setattr(log, "_read_log", lambda: b"")
    assert refused(lambda: log.emit("app-id", b"")).code == "runtime_events.io"


def test_reports_a_line_that_was_written_in_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_at(directory)

    class Short:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, _content: bytes) -> int:
            return 3

    def opened(descriptor: int, *_: object, **__: object) -> Short:
        os.close(descriptor)
        return Short()

    monkeypatch.setattr("builtins.open", opened)
    assert refused(lambda: log.emit("app-id", b"")).code == "runtime_events.io"


# --- several writers ---


def test_nobody_emits_while_the_log_is_held(directory: Path) -> None:
    log = log_at(directory)
    log.emit("first", b"")
    thread = threading.Thread(target=lambda: RuntimeEventLog((), directory).emit("second", b""))
    with log.held() as events:
        thread.start()
        assert [event.event for event in events] == ["first"]
        assert (directory / "runtime_events.log").read_bytes().count(b"\n") == 1
    thread.join(10)
    assert [event.event for event in log.read()] == ["first", "second"]


def _emit_some(directory: Path, name: str, count: int) -> None:
    log = RuntimeEventLog((), directory)
    for number in range(count):
        log.emit(name, bytes([number]))


def test_processes_share_the_log(directory: Path) -> None:
    log_at(directory)
    spawned = multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=_emit_some, args=(directory, name, 20)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    events = RuntimeEventLog((), directory).read()
    for name in ("a", "b"):
        assert [event.payload[0] for event in events if event.event == name] == list(range(20))
