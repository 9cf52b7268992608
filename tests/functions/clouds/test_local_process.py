"""A process is found by its place, whoever has its number, and whoever was killed after starting it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from functions.clouds import local_process
from functions.clouds.local_process import PLACE, DetachedProcess, read_events
from shared.errors import CloudError
from tests.functions.clouds.local_deployments import wait_until
from tests.shared.refusal import refuses

READY = 'import sys; print(\'{"event": "ready", "n": 1}\', flush=True); print(\'hello\', file=sys.stderr)\n'
SLEEPING = [sys.executable, "-c", READY + "import signal; signal.pause()"]
DEAF = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "while True: signal.pause()",
]

Make = Callable[..., DetachedProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def process(name: str = "guest", directory: Path = tmp_path) -> DetachedProcess:
        made.append(DetachedProcess(directory, name))
        return made[-1]

    yield process
    for one in made:
        assert one.end(seconds=10, force=True)


def ready(process: DetachedProcess) -> None:
    wait_until(lambda: read_events(process.events_path, "ready"))


def test_it_runs_on_its_own_and_is_found_by_anybody(make: Make) -> None:
    pid = make().start(SLEEPING, environment=os.environ)
    another = make()
    ready(another)
    assert another.is_running()
    assert another.pids() == [pid]
    assert pid is not None
    assert os.getsid(pid) != os.getsid(0)
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" not in status
    assert another.end(seconds=10)
    assert not another.is_running()
    assert "hello" in another.console_path.read_text()


def test_it_is_started_once(make: Make) -> None:
    first = make()
    assert first.start(SLEEPING, environment=os.environ) is not None
    prepared: list[str] = []
    assert make().start(SLEEPING, environment=os.environ, prepare=lambda: prepared.append("again")) is None
    assert prepared == []
    assert len(first.pids()) == 1


def test_its_starter_may_die_before_it_knows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens once the shell has started it, the next one finds a process and starts no second."""

    def lose(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[call-overload]
        raise KeyboardInterrupt

    real = subprocess.run
    with monkeypatch.context() as patched:
        patched.setattr(local_process.subprocess, "run", lose)
        with pytest.raises(KeyboardInterrupt):
            make().start(SLEEPING, environment=os.environ)
    found = make()
    assert found.is_running()
    assert found.start(SLEEPING, environment=os.environ) is None
    assert len(found.pids()) == 1


def test_what_does_not_listen_is_ended_by_force(make: Make) -> None:
    process = make()
    process.start(DEAF, environment=os.environ)
    ready(process)
    assert not process.end(seconds=0.1)
    assert process.is_running()
    assert process.end(seconds=10, force=True)
    assert not process.is_running()


def test_a_stranger_is_never_signalled(make: Make, tmp_path: Path) -> None:
    """One without a place, one of another, one whose place only begins alike: all outlive it."""
    ours = make()
    ours.start(SLEEPING, environment=os.environ)
    environments: list[dict[str, str]] = [
        {},
        {PLACE: str(tmp_path / "other")},
        {PLACE: str(tmp_path / "guest2")},
    ]
    strangers = [
        subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | environment
        )
        for environment in environments
    ]
    assert ours.end(seconds=10, force=True)
    for stranger in strangers:
        assert stranger.poll() is None
        assert stranger.communicate(b"\n") == (None, None)


def test_a_number_that_changed_hands_is_not_signalled(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid was ours when it was listed, and somebody else's when its descriptor was opened."""
    ours = make()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        with monkeypatch.context() as patched:
            patched.setattr(DetachedProcess, "pids", lambda _self: [stranger.pid])
            ours.end(seconds=0)
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_children_end_with_it(make: Make) -> None:
    program = (
        "import subprocess, sys, signal\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        + READY
        + "signal.pause()"
    )
    process = make()
    process.start([sys.executable, "-c", program], environment={})
    ready(process)
    wait_until(lambda: len(process.pids()) == 2)
    assert process.end(seconds=10)
    assert process.pids() == []


def test_events_are_of_the_last_start_and_the_console_of_all(make: Make) -> None:
    process = make()
    for _ in range(2):
        process.start(SLEEPING, environment=os.environ)
        ready(process)
        wait_until(lambda: process.console_path.read_text().endswith("hello\n"))
        assert process.end(seconds=10)
    assert process.events_path.read_text().count("ready") == 1
    wait_until(lambda: process.console_path.read_text() == "hello\nhello\n")


def test_events_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert read_events(path, "ready") is None
    path.write_bytes(b'words\n{"event": "other"}\n[1]\n\xff\n{"event": "rea')
    assert read_events(path, "ready") is None
    path.write_bytes(path.read_bytes() + b'dy", "n": 3}\n')
    assert read_events(path, "ready") == {"event": "ready", "n": 3}


def test_a_directory_that_is_not_there_is_told(make: Make, tmp_path: Path) -> None:
    process = make("guest", tmp_path / "absent")
    assert not process.is_running()
    with pytest.raises(FileNotFoundError):
        process.start(SLEEPING, environment=os.environ)


def test_a_shell_that_fails_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    process = make()
    monkeypatch.setattr(local_process, "_DETACH", "exit 3")
    with refuses("local.process", CloudError):
        process.start(SLEEPING, environment=os.environ)
    assert not process.is_running()
