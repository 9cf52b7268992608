"""A set of files that appears whole or not at all, and is never replaced.

A new set is written below `.staging`, synced, and committed by one rename to `.staged`; each file is then
hard-linked to its final name, which fails where a file already exists. A crash before the rename leaves
nothing that counts; a crash after it is rolled forward by the next `recover`. One file may be public: it gets
its name last, after everything that its reader may rely on is on the disk.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from shared.errors import StorageError

STAGING, STAGED = ".staging", ".staged"

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


class Content(msgspec.Struct, frozen=True):
    """What one file is to hold, and its mode."""

    data: bytes
    mode: int = PUBLIC_MODE

    def __repr__(self) -> str:
        """Hide the data."""
        return f"Content(mode={self.mode:04o})"


class FileSet:
    """The files of one set below `directory`; `record` is the name of the public one."""

    def __init__(self, directory: Path, record: str) -> None:
        self.directory = directory
        self._record = record
        self._staged = directory / STAGED

    def committed(self) -> bool:
        """Tell whether a committed set waits for its files to be put in place."""
        return self._staged.exists()

    def recover(self) -> None:
        """Finish a committed set whose files were not all put in place. Safe to run any number of times.

        Raises `StorageError`: `kms.keys.conflict` where another file has one's name, `kms.keys.write`.
        """
        if not self.committed():
            return
        with _as_write_error(), _locked(self.directory):
            if self.committed():  # else another process has just done it
                self._place()

    def create(self, contents: Mapping[str, Content], check: Callable[[], None]) -> None:
        """Write a set and put it in place; `check` raises, under the directory's lock, where one exists.

        After an error either nothing of the set is left, or it is committed and `recover` finishes it.
        Raises what `check` and `recover` do.
        """
        with _as_write_error():
            _make_directory(self.directory)
            with _locked(self.directory):  # against another process on the same directory
                check()
                self._stage(contents)
                self._place()

    def _stage(self, contents: Mapping[str, Content]) -> None:
        staging = self.directory / STAGING
        if staging.exists():  # a crash before its commit: nobody has seen these keys
            shutil.rmtree(staging)
        try:
            staging.mkdir(mode=0o700)
            for name in self._in_order(contents):
                _write_synced(staging / name, contents[name])
            _sync_directory(staging)
            staging.rename(self._staged)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _place(self) -> None:
        # The rename may have been the last thing that a crash or an error let through.
        _sync_directory(self.directory)
        for name in self._in_order(path.name for path in self._staged.iterdir()):
            if name == self._record:
                _sync_directory(self.directory)
            self._link(name)
        _sync_directory(self.directory)
        shutil.rmtree(self._staged)

    def _link(self, name: str) -> None:
        source, target = self._staged / name, self.directory / name
        try:
            os.link(source, target)
        except FileExistsError:
            if target.read_bytes() != source.read_bytes():
                raise StorageError(
                    "kms.keys.conflict", f"{name} exists with other content and was not replaced"
                ) from None

    def _in_order(self, names: Iterator[str] | Mapping[str, Content]) -> list[str]:
        return sorted(names, key=lambda name: (name == self._record, name))


@contextmanager
def _as_write_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError("kms.keys.write", f"cannot write key files: {error.strerror}") from error


def _make_directory(directory: Path) -> None:
    """Make the directory and what is missing above it, so that a crash takes none of them back."""
    missing = [path for path in directory.parents if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (directory, *missing):
        _sync_directory(path.parent)


def _write_synced(path: Path, content: Content) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, content.mode)
    try:
        os.fchmod(descriptor, content.mode)  # the umask may have taken bits, but must not add any
        left = memoryview(content.data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
