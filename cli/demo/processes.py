"""The demo's processes: started one by one, watched through their JSON lines, stopped in reverse."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from cli.devchain.child import with_parent
from shared.errors import UnavailableError

STOP_SECONDS = 5.0
LAST_LINES = 5


class Process:
    """One child. Each JSON line of its standard output is an event; everything goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._stderr = log.with_suffix(".err").open("wb")
        self._child = subprocess.Popen(  # noqa: S603 - our own programs
            with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops its children in order
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, timeout: float = 30.0, **fields: object) -> dict[str, Any]:
        """Return the first event named `event` that has these fields, waiting for it.

        Raises `UnavailableError`: `demo.process.ended`, `demo.process.silent`.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for found in self._events:
                    if found.get("event") == event and fields.items() <= found.items():
                        return found
                if self._ended:
                    raise UnavailableError("demo.process.ended", f"{self.name} ended: {self.last_words()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise UnavailableError(
                        "demo.process.silent", f"{self.name} did not report {event} in {timeout:.0f} seconds"
                    )

    def wait_exit(self, timeout: float = 30.0) -> int:
        """Return the exit code. Raises `UnavailableError("demo.process.silent")`."""
        try:
            code = self._child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError("demo.process.silent", f"{self.name} did not end") from error
        self._reader.join(timeout)
        return code

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far."""
        with self._changed:
            return list(self._events)

    def ended(self) -> bool:
        """Tell whether the child has ended."""
        return self._child.poll() is not None

    def last_words(self) -> str:
        """Return the last lines of standard error, for an error's text."""
        lines = self._log.with_suffix(".err").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-LAST_LINES:]) or f"exit code {self._child.poll()}"

    def stop(self) -> None:
        """End the child: politely, then not."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._reader.join(STOP_SECONDS)
        self._stderr.close()

    def _read(self) -> None:
        stream = self._child.stdout
        if stream is None:
            raise TypeError("standard output is not a pipe")
        with stream, self._log.open("wb") as log:
            for line in stream:
                log.write(line)
                log.flush()
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    with self._changed:
                        self._events.append(event)
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class ProcessGroup:
    """All children of one demo. Leaving the block stops them, newest first."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir()
        self._logs = logs
        self._running: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._running:
            self._running.pop().stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a program; `name` also names its log files."""
        process = Process(name, command, self._logs / f"{name}.log", environment or {})
        self._running.append(process)
        return process

    def python(
        self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start `python -m module arguments`."""
        return self.start(name, [sys.executable, "-m", module, *arguments], environment)
