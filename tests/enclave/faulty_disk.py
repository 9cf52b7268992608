"""A disk that fails at one call of a test's choice, and a machine that loses its power there."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest

CALLS = ("open", "write", "fchmod", "fsync", "mkdir", "rename", "link", "unlink", "rmdir")

Moment = Literal["before", "after", "lost", "error", "late error"]
"""`before` and `after` the call took effect the power fails; `lost`: after it, without what was not synced.
An `error` comes instead of the effect, a `late error` beside it."""


class Crash(BaseException):
    """The power fails: nothing in the program handles this."""


class FaultyDisk:
    """Lets `left` calls through, and fails at the next one. `calls` are the names of what went through."""

    def __init__(self, left: int, moment: Moment, number: int = errno.EIO) -> None:
        self.left = left
        self.moment = moment
        self.calls: list[tuple[str, str]] = []
        self.failed = False
        self._number = number
        self._real = {name: getattr(os, name) for name in CALLS}
        self._unsynced_entries: list[tuple[str, Callable[[], object]]] = []
        self._unsynced_content: dict[int, int] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Put this disk below the program, for the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._guarded(name))
            try:
                yield
            finally:
                for descriptor in self._unsynced_content.values():
                    os.close(descriptor)

    def _guarded(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.failed and self.moment not in {"error", "late error"}:
                raise Crash
            if self.failed or self.left:
                self.left -= not self.failed
                return self._take_effect(name, arguments, options)
            self.failed = True
            if self.moment in {"before", "error"}:
                raise self._failure()
            result = self._take_effect(name, arguments, options)
            if name == "open":
                os.close(result)
            if self.moment == "lost":
                self._lose()
            raise self._failure()

        return call

    def _failure(self) -> BaseException:
        if self.moment in {"error", "late error"}:
            return OSError(self._number, os.strerror(self._number))
        return Crash()

    def _take_effect(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name == "fsync":
            self._note_sync(arguments[0])
            return None  # no real one: what is lost without it is simulated
        if name == "open" and arguments[1] & os.O_CREAT:
            return self._create(arguments, options)
        result = self._real[name](*arguments, **options)
        match name:
            case "mkdir":
                self._note_entry(arguments[0], lambda: shutil.rmtree(arguments[0]))
            case "link":
                self._note_entry(arguments[1], lambda: self._real["unlink"](arguments[1]))
            case "rename":
                self._note_entry(arguments[1], lambda: self._real["rename"](arguments[1], arguments[0]))
        self.calls.append((name, str(arguments[-1])))
        return result

    def _create(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> int:
        descriptor: int = self._real["open"](*arguments, **options)
        self._unsynced_content[os.fstat(descriptor).st_ino] = os.dup(descriptor)
        self._note_entry(arguments[0], lambda: self._real["unlink"](arguments[0]))
        self.calls.append(("open", str(arguments[0])))
        return descriptor

    def _note_entry(self, path: Any, undo: Callable[[], object]) -> None:
        self._unsynced_entries.append((str(Path(path).parent.resolve()), undo))

    def _note_sync(self, descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        self.calls.append(("fsync", path))
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            self._unsynced_entries = [entry for entry in self._unsynced_entries if entry[0] != path]
        elif (kept := self._unsynced_content.pop(state.st_ino, None)) is not None:
            os.close(kept)

    def _lose(self) -> None:
        """Take back what was not synced: contents, and entries of directories, the newest first."""
        for descriptor in self._unsynced_content.values():
            os.ftruncate(descriptor, 0)
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._real[name])
            for _, undo in reversed(self._unsynced_entries):
                with suppress(OSError):
                    undo()
