"""The two ramdisks of a Nitro enclave: AWS's bootstrap, and the customer's root file system.

Measurement spec 1.6 and 3.1, traps 5 and 19. Both come as entries for `write_ramdisk`; what the entries hold
does not depend on the order in which files were found, on who owns them here, or on the time.
"""

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NoReturn

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.cpio import CpioEntry, CpioWriter, check_path, show_path

DataSource = Callable[[], Iterable[bytes]]
"""Opens an entry's data when its turn comes: a file's content, a symlink's target."""
Node = tuple[CpioEntry, DataSource]
"""One file, directory or link of an image, its path relative to the image's root."""

LINUXKIT_MTIME: Final = 1492533000
"""2017-04-18T16:30:00Z, of all entries of AWS's bootstrap: with it, PCR1 is that of a stock image."""
ROOT: Final = b"rootfs"
# What AWS's init mounts over: without one of them the enclave restarts after it reported a good start.
MOUNT_POINTS: Final = frozenset({b"dev", b"run", b"sys", b"proc", b"tmp"})

_FINAL_DIRECTORIES: Final = (b"dev", b"run", b"sys", b"var", b"proc", b"tmp")
_DIRECTORY: Final = stat.S_IFDIR | 0o755
_EXECUTABLE: Final = stat.S_IFREG | 0o755
_FILE: Final = stat.S_IFREG | 0o644
_SHOWN: Final = 80


def no_data() -> Iterable[bytes]:
    """Return the data of a directory or device: none."""
    return ()


def file_node(path: bytes, content: bytes, *, mode: int = _FILE) -> Node:
    """Return a small file whose content is at hand."""
    return CpioEntry(path, mode, size=len(content)), lambda: (content,)


def bootstrap_entries(
    init: tuple[int, DataSource], nsm_ko: tuple[int, DataSource], *, mtime: int = LINUXKIT_MTIME
) -> Iterator[Node]:
    """Yield the first ramdisk: an empty `dev`, then `init` and `nsm.ko`, each given as size and data."""
    yield CpioEntry(b"dev", _DIRECTORY, mtime=mtime), no_data
    for path, (size, data) in ((b"init", init), (b"nsm.ko", nsm_ko)):
        yield CpioEntry(path, _EXECUTABLE, mtime=mtime, size=size), data


def customer_entries(
    nodes: Iterable[Node], *, argv: Sequence[str], env: Sequence[str], mtime: int = 0
) -> Iterator[Node]:
    """Yield the second ramdisk: `rootfs`, the image below it, missing mount points, `cmd` and `env`.

    `nodes` come in any order; they leave sorted by path, parents first, with `mtime` (unix seconds) in place
    of their own, and owners and modes as they are. Directories of the image that are mount points keep their
    mode. `argv[0]` without a slash is looked up in init's own PATH, not in that of `env`.

    Raises `InvalidEvidence`: `cpio.path`, `ramdisk.duplicate`, `ramdisk.parent` (it is missing, or no
    directory), `ramdisk.mount_point` (one that is no directory), `ramdisk.argv`, `ramdisk.env`.
    """
    cmd, variables = _cmd(argv), _env(env)
    yield CpioEntry(ROOT, _DIRECTORY, mtime=mtime), no_data
    missing = dict.fromkeys(_FINAL_DIRECTORIES)
    directories: set[bytes] = set()
    last = b""
    # A path is longer than its parent's and begins with it: sorted bytes have parents first.
    for entry, data in sorted(nodes, key=lambda node: node[0].path):
        path = entry.path
        check_path(path)
        is_directory = stat.S_ISDIR(entry.mode)
        if path == last:
            raise InvalidEvidence("ramdisk.duplicate", f"image has {show_path(path)} twice")
        parent, slash, _ = path.rpartition(b"/")
        if slash and parent not in directories:
            raise InvalidEvidence("ramdisk.parent", f"image has {show_path(path)} below what is no directory")
        if path in MOUNT_POINTS and not is_directory:
            raise InvalidEvidence(
                "ramdisk.mount_point",
                f"image has a {show_path(path)} that is no directory: init mounts over it",
            )
        if is_directory:
            directories.add(path)
        missing.pop(path, None)
        last = path
        yield msgspec.structs.replace(entry, path=ROOT + b"/" + path, mtime=mtime), data
    for path in missing:
        yield CpioEntry(ROOT + b"/" + path, _DIRECTORY, mtime=mtime), no_data
    for path, content in ((b"cmd", cmd), (b"env", variables)):
        entry, data = file_node(path, content)
        yield msgspec.structs.replace(entry, mtime=mtime), data


def write_ramdisk(entries: Iterable[Node], sink: Callable[[bytes], object]) -> int:
    """Write `entries` as one archive and return its size, a multiple of 512.

    Raises `InvalidEvidence("cpio.*")` as `CpioWriter.add` does, and what the entries and `sink` raise.
    """
    writer = CpioWriter(sink)
    for entry, data in entries:
        writer.add(entry, data())
    writer.finish()
    return writer.size


def _cmd(argv: Sequence[str]) -> bytes:
    if not argv or not argv[0]:
        _refuse("argv", "image names no program to run: it has neither entrypoint nor cmd")
    return _lines("argv", argv)


def _env(variables: Sequence[str]) -> bytes:
    names = set()
    for variable in variables:
        name, equals, _ = variable.partition("=")
        if not name or not equals:
            _refuse("env", f"environment has {_shown(variable)}, expected NAME=value")
        if name in names:
            _refuse("env", f"environment has {_shown(name)} twice")
        names.add(name)
    return _lines("env", variables)


def _lines(what: str, texts: Sequence[str]) -> bytes:
    for text in texts:
        if "\n" in text or "\0" in text:
            _refuse(what, f"{what} has {_shown(text)}: a newline or NUL cannot be passed to an enclave")
    try:
        return "".join(f"{text}\n" for text in texts).encode()
    except UnicodeEncodeError as error:
        raise InvalidEvidence(f"ramdisk.{what}", f"{what} has text that is not unicode") from error


def _refuse(what: str, sentence: str) -> NoReturn:
    raise InvalidEvidence(f"ramdisk.{what}", sentence)


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN])
