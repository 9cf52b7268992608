"""The processes of an enclave: our services and the app, under one that reaps them and forwards signals.

Our init is process 1, or whatever AWS's init made of it: orphans become its children, and when it ends the
enclave ends. Services are forked, so what they need to know is handed over in memory: not in arguments, nor
in the environment, nor in a file.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from enclave.init.account import Account
from enclave.log import log_event
from enclave.process import end_with_parent
from shared.errors import ConfigError, DstackError, ExitCode, UnavailableError

GRACE_SECONDS: Final = 10.0
"""What processes get between SIGTERM and SIGKILL."""

FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
MAX_READY: Final = 64
"""Bytes that a service says when it is ready."""

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_BY_SIGNAL: Final = 128  # a shell's way to tell what signal ended a process

Ready = Callable[[str], None]
Work = Callable[[Ready], int]
"""Runs a service until it is stopped and returns its exit code; calls `ready` once, with a word."""


class Supervisor:
    """Starts services, then the app, then waits. Use it as a context manager, in a process's one thread."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        self._grace = grace
        self._services: dict[int, str] = {}
        self._app = 0
        self._is_booting = True
        self._status: int | None = None
        self._failed = ""
        self._is_ending = False
        self._pending: list[signal.Signals] = []
        self._wake, self._woken = socket.socketpair()

    def __enter__(self) -> Self:
        """Take over the signals."""
        for end in (self._wake, self._woken):
            end.setblocking(False)
        # handlers, not a mask: a mask would be inherited by the app
        for number in FORWARDED:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever still runs, and give the signals back."""
        self._end_services()
        self._restore_signals()
        self._wake.close()
        self._woken.close()

    def start_service(self, name: str, work: Work) -> str:
        """Fork a process for `work`, and return the word that it is ready with.

        Raises `UnavailableError("init.service.start")` where it ends first.
        """
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(self._child(name, work, writer))
        os.close(writer)
        self._services[pid] = name
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.readline(MAX_READY)
        if not said.endswith(b"\n"):
            raise UnavailableError("init.service.start", f"{name} ended before it was ready")
        return said[:-1].decode()

    def start_app(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        account: Account | None,
        directory: str,
    ) -> None:
        """Start the app, which alone gets `environment`. Raises `ConfigError("init.app.start")`."""
        sys.stdout.flush()
        self._is_booting = False  # already: a signal that comes while it starts is for the app
        try:
            app = subprocess.Popen(  # noqa: S603 - the measured image names it, and no shell reads it
                list(command),
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else (),
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigError("init.app.start", f"cannot start {command[0]}: {reason}") from None
        app.returncode = 0  # it is reaped here, like every other child
        self._app = app.pid

    def wait(self) -> int:
        """Wait until the app ends, and return its exit code: 128 and the number where a signal ended it.

        A service that ends first takes the app with it: an app that nobody can attest to must not go on.
        Raises `UnavailableError("init.service.ended")` then.
        """
        deadline: float | None = None
        while True:
            self._reap()
            if self._status is not None:
                break
            if self._failed and deadline is None:
                deadline = time.monotonic() + self._grace
                self._signal(self._app, signal.SIGTERM)
            if deadline is not None and time.monotonic() >= deadline:
                self._signal(self._app, signal.SIGKILL)
            self._sleep(deadline)
            pending, self._pending = self._pending, []
            for number in pending:
                self._signal(self._app, number)
        if self._failed:
            raise UnavailableError("init.service.ended", f"{self._failed} ended while the app was running")
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else _BY_SIGNAL - code

    def _child(self, name: str, work: Work, writer: int) -> int:
        end_with_parent()
        self._restore_signals()
        self._services.clear()
        code: int = ExitCode.FAILED

        def ready(word: str) -> None:
            os.write(writer, word.encode() + b"\n")
            os.close(writer)

        try:
            code = work(ready)
        except DstackError as error:
            log_event("init.service_failed", service=name, code=error.code, message=error.message)
        except BaseException as error:  # noqa: BLE001 - a fork must not run its parent's code
            log_event("init.service_failed", service=name, code=type(error).__name__)
        finally:
            sys.stdout.flush()
        return code

    def _note(self, number: int, _frame: object) -> None:
        if self._is_booting and number in _ENDING:
            raise SystemExit(_BY_SIGNAL + number)  # nothing to forward it to: the boot ends
        self._pending.append(signal.Signals(number))

    def _restore_signals(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _reap(self) -> None:
        """Take note of every child that ended; strangers are orphans that the kernel handed over."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._app:
                    self._status = status
                name = self._services.pop(pid, "")
                if name and not self._is_ending:
                    self._failed = self._failed or name
                    log_event("init.service_ended", service=name, exit_code=os.waitstatus_to_exitcode(status))

    def _sleep(self, deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with contextlib.suppress(InterruptedError):
            select.select([self._wake], [], [], left)
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(64):
                pass

    def _end_services(self) -> None:
        self._is_ending = True
        deadline = time.monotonic() + self._grace
        for pid in self._services:
            self._signal(pid, signal.SIGTERM)
        while self._services:
            self._reap()
            if not self._services:
                break
            if time.monotonic() >= deadline:
                for pid in self._services:
                    self._signal(pid, signal.SIGKILL)
                deadline = time.monotonic() + self._grace
            self._sleep(deadline)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
