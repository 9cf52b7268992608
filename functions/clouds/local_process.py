"""Processes that outlive whoever started them, and are found again without remembering a number.

A process here is a place, `<directory>/<name>`, not a pid. The kernel keeps all that is to be known of it:

- a lock on `<name>.lock`, which the process inherits and holds for life, so that it is never started twice;
- its environment, which names the place. So it is found even by the successor of somebody who was killed
  right after starting it, and a stranger who got the pid of a dead one is never taken for it.

It needs Linux: /proc, and file descriptors of processes.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from shared.errors import CloudError

PLACE: Final = "DSTACK_SIMULATED_PROCESS"
"""The environment variable that names a process's place; its children have it too."""

_PROC: Final = Path("/proc")
# Leaves the started process to init, so that nobody has to wait for it, and prints its pid.
_DETACH: Final = 'events=$1 console=$2; shift 2; "$@" </dev/null >"$events" 2>>"$console" & echo $!'
_START_SECONDS: Final = 30.0


class DetachedProcess:
    """One process. Its events (standard output) are those since its last start, its console grows."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = Path(os.path.abspath(directory))  # noqa: PTH100 - as written, links unresolved
        self._name = name
        self._lock = self._directory / f"{name}.lock"
        self._place = f"{PLACE}={self._directory / name}".encode()

    @property
    def events_path(self) -> Path:
        """Where its standard output goes."""
        return self._directory / f"{self._name}.events"

    @property
    def console_path(self) -> Path:
        """Where its standard error goes."""
        return self._directory / f"{self._name}.log"

    def is_running(self) -> bool:
        """Tell whether the process itself is alive; its children may outlive it by a moment."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        prepare: Callable[[], object] = lambda: None,
    ) -> int | None:
        """Start it in its directory, and return its pid; None where it runs already.

        It gets `environment` and nothing else, beside the name of its place. `prepare` is called once nobody
        else can start it. Raises `CloudError("local.process")`.
        """
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            prepare()
            return self._spawn(command, environment, descriptor)
        finally:
            os.close(descriptor)  # the process has inherited it, and the lock with it

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], lock: int) -> int:
        variable, _, place = self._place.decode().partition("=")
        shell = ["/bin/sh", "-c", _DETACH, "sh", str(self.events_path), str(self.console_path), *command]
        try:
            done = subprocess.run(  # noqa: S603 - our own program, and no text of others in the script
                shell,
                cwd=self._directory,
                env={**environment, variable: place},
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a hang-up or Ctrl-C of the terminal does not reach it
                timeout=_START_SECONDS,
                check=False,
            )
        except OSError as error:
            raise CloudError("local.process", f"cannot start {self._name}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise CloudError("local.process", f"{self._name} did not start in time") from error
        if done.returncode != 0:
            raise CloudError("local.process", f"cannot start {self._name}: the shell said {done.returncode}")
        return int(done.stdout)

    def pids(self) -> list[int]:
        """Return the pids of the process and its children that are alive; zombies are not."""
        return [pid for pid in _numbers() if self._is_ours(pid)]

    def end(self, *, seconds: float, force: bool = False) -> bool:
        """Ask all of it to end, or with `force` end it, and tell whether nothing is left after `seconds`."""
        with contextlib.ExitStack() as opened:
            waiting = []
            for descriptor in self._descriptors(opened):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL if force else signal.SIGTERM)
                waiting.append(descriptor)
            return _all_end(waiting, seconds) and not self.pids()

    def _descriptors(self, opened: contextlib.ExitStack) -> Iterator[int]:
        for pid in self.pids():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            opened.callback(os.close, descriptor)
            # asked again: until the descriptor was open, the number could become somebody else's
            if self._is_ours(pid):
                yield descriptor

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:  # it ended, or is another user's
            return False
        return self._place in environment.split(b"\0")


def read_events(path: Path, name: str) -> dict[str, object] | None:
    """Return the first event of this name that a process wrote, None where it wrote none yet."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        try:
            event = msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # the line that is being written, or a word of a library's
        if event.get("event") == name:
            return event
    return None


def _numbers() -> Iterator[int]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _all_end(descriptors: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    left = set(descriptors)
    poll = select.poll()
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return False
        for descriptor, _ in ready:
            poll.unregister(descriptor)
            left.discard(descriptor)
    return True
