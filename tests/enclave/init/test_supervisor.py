"""Reaping, signals and ends, each in a process of its own: the supervisor takes over its signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE = 30

PROGRAM = """
import os, signal, subprocess, sys, time
from enclave.init.account import Account
from enclave.init.supervisor import Supervisor
from shared.errors import DstackError

def say(word):  # in one piece: the app writes to the same pipe
    print(f"{{word}}\\n", end="", flush=True)

def app(supervisor, code, environment=None, directory="/", account=None):
    command = [sys.executable, "-I", "-c", code]
    supervisor.start_app(command, environment=environment or {{}}, account=account, directory=directory)

def waiting(ready):
    ready("up")
    signal.pause()
    return 0

try:
{body}
except DstackError as error:
    say(error.code)
    sys.exit(9)
"""

SUPERVISED = """with Supervisor(grace={grace}) as supervisor:
{body}
    sys.exit(supervisor.wait())
"""


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


def program(body: str, *, grace: float = PATIENCE) -> list[str]:
    supervised = SUPERVISED.format(grace=grace, body=_indented(body))
    return [sys.executable, "-P", "-c", PROGRAM.format(body=_indented(supervised))]


def run(body: str, *, grace: float = PATIENCE) -> tuple[int, list[str]]:
    done = subprocess.run(
        program(body, grace=grace), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@contextmanager
def running(body: str, *, grace: float = PATIENCE) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(program(body, grace=grace), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("code", "status"),
    [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)
def test_exits_with_the_apps_status(code: str, status: int) -> None:
    assert run(f"app(supervisor, {code!r})")[0] == status


def test_a_service_says_when_it_is_ready_and_ends_with_the_app() -> None:
    body = """
say(supervisor.start_service("one", waiting))
say(supervisor.start_service("two", waiting))
app(supervisor, "")
"""
    code, lines = run(body)
    assert code == 0
    assert lines[:2] == ["up", "up"]


def test_a_service_that_fails_at_its_start_ends_the_boot() -> None:
    body = """
def broken(ready):
    raise ValueError("hunter2")
supervisor.start_service("one", broken)
"""
    code, lines = run(body)
    assert (code, lines[-1]) == (9, "init.service.start")
    failed = json.loads(lines[0])
    assert (failed["event"], failed["code"]) == ("init.service_failed", "ValueError")
    assert "hunter2" not in "".join(lines)


def test_a_service_that_ends_takes_the_app_with_it() -> None:
    body = """
def short(ready):
    ready("")
    sys.stdin.read()
    return 0
supervisor.start_service("one", short)
app(supervisor, "import signal; signal.pause()")
"""
    code, lines = run(body)
    assert (code, lines[-1]) == (9, "init.service.ended")


def test_an_app_that_stays_when_its_service_ended_is_killed() -> None:
    body = """
def short(ready):
    ready("")
    return 0
app(supervisor, "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()")
supervisor.start_service("one", short)
"""
    assert run(body, grace=0.01)[0] == 9


def test_a_service_that_stays_when_the_app_ended_is_killed() -> None:
    body = """
def stubborn(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready("")
    while True:
        signal.pause()
supervisor.start_service("one", stubborn)
app(supervisor, "")
"""
    assert run(body, grace=0.01)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_forwards_signals_to_the_app(number: signal.Signals) -> None:
    code = f"""
import signal, sys
def end(number, frame):
    sys.exit(40)
signal.signal({int(number)}, end)
print("app is up", flush=True)
signal.pause()
"""
    with running(f"app(supervisor, {code!r})") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "app is up\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 40


def test_forwards_a_signal_that_comes_while_the_app_is_being_started() -> None:
    """The app may be up, and be told to end, before the call that starts it has returned."""
    code = """
import signal, sys
signal.signal(15, lambda number, frame: sys.exit(40))
print("app is up", flush=True)
signal.pause()
"""
    body = f"""
popen, note, noted = subprocess.Popen, signal.getsignal(15), []
def take_note(number, frame):
    noted.append(number)
    note(number, frame)
signal.signal(15, take_note)
def preempted(*command, **options):
    started = popen(*command, **options)
    while not noted:  # a call that waits for a signal would miss one that came just before it
        time.sleep(0.01)
    return started
subprocess.Popen = preempted
app(supervisor, {code!r})
"""
    with running(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "app is up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 40


def test_a_signal_before_the_app_ends_the_boot_and_its_services() -> None:
    body = """
supervisor.start_service("one", waiting)
say("booting")
signal.pause()
"""
    with running(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "booting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + 15


def test_reaps_orphans() -> None:
    """Here they are handed to a subreaper, in an enclave to process 1: the same code sees both."""
    orphaning = """
import os
reader, writer = os.pipe()
if os.fork() == 0:
    orphan = os.fork()
    if orphan:
        os.write(writer, str(orphan).encode())
    os._exit(0)
os.wait()
orphan = os.read(reader, 20).decode()
while os.path.exists("/proc/" + orphan):  # a zombie is there until somebody reaps it
    pass
"""
    body = f"""
import ctypes
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
app(supervisor, {orphaning!r})
"""
    assert run(body) == (0, [])


@pytest.mark.parametrize(
    "start",
    [
        'supervisor.start_app(["/absent"], environment={}, account=None, directory="/")',
        'app(supervisor, "", directory="/absent")',
        'app(supervisor, "", environment={"A": "hunter2\\0"})',
    ],
)
def test_an_app_that_cannot_start_ends_the_boot_and_shows_no_value(start: str) -> None:
    code, lines = run(start)
    assert (code, lines) == (9, ["init.app.start"])


def test_n74_the_app_alone_gets_its_environment() -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"
    body = f"""
def show(ready):
    ready(os.environ.get("TOKEN", "nothing"))
    signal.pause()
app(supervisor, {code!r}, environment={{"TOKEN": "hunter2"}})
say(supervisor.start_service("one", show))
say(open("/proc/self/cmdline").read().count("hunter3"))
"""
    status, lines = run(body)
    assert status == 0
    shown: dict[str, Any] = next(
        json.loads(line) for line in lines if line.startswith('{"') and "TOKEN" in line
    )
    assert shown["TOKEN"] == "hunter2"
    assert "nothing" in lines


def test_the_app_inherits_no_descriptor_and_no_blocked_signal() -> None:
    code = """
import os, signal
held = [int(name) for name in os.listdir("/proc/self/fd")]
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(sorted(held)[:3], len([one for one in held if one > 3]), len(blocked), flush=True)
"""
    body = f"""
supervisor.start_service("one", waiting)
app(supervisor, {code!r})
"""
    _, lines = run(body)
    assert lines[-1] == "[0, 1, 2] 0 0"


def test_runs_the_app_as_its_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: no other user can be taken")
    body = """
command = ["/bin/sh", "-c", "id -u; id -g; id -G"]
supervisor.start_app(command, environment={}, account=Account(12345, 23456), directory="/")
"""
    assert run(body) == (0, ["12345", "23456", "23456"])
