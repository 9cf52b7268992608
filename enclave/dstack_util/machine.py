"""What `setup` does to the machine that it runs on, behind one small interface.

Everything privileged goes through here: commands, mounts and files of the system. Tests put a machine in its
place that records what it is asked and fails where they say.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from shared.errors import StorageError, UnavailableError

PRIVATE = 0o600
PUBLIC = 0o644

_COMMAND_SECONDS = 600.0  # making a file system on a large disk, checking one after a crash
_SHOWN = 300  # characters of a command's own words
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Completed(msgspec.Struct, frozen=True):
    """How a command ended: its exit code, and what it printed."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""


class Machine(Protocol):
    """One machine. Methods raise `StorageError` or `UnavailableError`, with codes `setup.*`."""

    def path(self, absolute: str) -> Path:
        """Return where a file of the system, named by its absolute path, is."""
        ...

    def has(self, tool: str) -> bool:
        """Tell whether a command is installed."""
        ...

    def run(self, *argv: str, stdin: bytes = b"") -> Completed:
        """Run a command to its end. Secrets go in through `stdin`, never through `argv` (SECURITY N-74)."""
        ...

    def is_mounted(self, point: Path) -> bool:
        """Tell whether something is mounted at a directory."""
        ...

    def write(self, path: Path, content: bytes, mode: int) -> None:
        """Write a file whole, or not at all; missing directories are made."""
        ...

    def link(self, path: Path, target: Path) -> None:
        """Make `path` a symbolic link to `target`, in place of whatever link was there."""
        ...


def run_checked(machine: Machine, *argv: str, stdin: bytes = b"", accepted: Sequence[int] = (0,)) -> bytes:
    """Run a command that has to end with an accepted code, and return what it printed.

    Raises `StorageError("setup.command")`, with the command's words but never its input.
    """
    done = machine.run(*argv, stdin=stdin)
    if done.code not in accepted:
        words = done.stderr.decode("utf-8", "replace").strip()[:_SHOWN].encode("ascii", "replace").decode()
        raise StorageError(
            "setup.command", f"{' '.join(argv[:2])} ended with {done.code}: {words.rstrip('.') or 'no words'}"
        )
    return done.stdout


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write next to `path` and rename, so that a reader sees all of it or nothing.

    Raises `OSError`.
    """
    staged = path.with_name(path.name + ".new")
    try:
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


class LinuxMachine:
    """The machine that this process runs on; `root` is another place for the system's files."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, absolute: str) -> Path:
        """See `Machine.path`."""
        return self._root / absolute.lstrip("/")

    def has(self, tool: str) -> bool:
        """See `Machine.has`."""
        return shutil.which(tool, path=_ENVIRONMENT["PATH"]) is not None

    def run(self, *argv: str, stdin: bytes = b"") -> Completed:
        """See `Machine.run`. Raises `UnavailableError`: `setup.tool`, `setup.command.timeout`."""
        try:
            done = subprocess.run(  # noqa: S603 - our own words, and paths; no shell
                argv,
                input=stdin,
                capture_output=True,
                check=False,
                env=_ENVIRONMENT,
                timeout=_COMMAND_SECONDS,
            )
        except OSError as error:
            raise UnavailableError("setup.tool", f"cannot run {argv[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            # no cause: it holds the command's input
            raise UnavailableError(
                "setup.command.timeout", f"{argv[0]} did not end within {_COMMAND_SECONDS:g} seconds"
            ) from None
        return Completed(done.returncode, done.stdout, done.stderr)

    def is_mounted(self, point: Path) -> bool:
        """See `Machine.is_mounted`."""
        return os.path.ismount(point)

    def write(self, path: Path, content: bytes, mode: int) -> None:
        """See `Machine.write`. Raises `StorageError("setup.write")`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, mode)
        except OSError as error:
            raise StorageError("setup.write", f"{path} cannot be written: {error.strerror}") from error

    def link(self, path: Path, target: Path) -> None:
        """See `Machine.link`. Raises `StorageError("setup.write")`."""
        staged = path.with_name(path.name + ".new")
        try:
            staged.unlink(missing_ok=True)
            staged.symlink_to(target)
            staged.replace(path)
        except OSError as error:
            raise StorageError("setup.write", f"{path} cannot be linked: {error.strerror}") from error
