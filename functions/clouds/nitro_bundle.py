"""The forwarder as one file for the parent: our modules, and msgspec built for the parent's Python.

A parent fetches it from the bucket of the image and checks its hash, so it needs no package index. It is a
directory that Python runs (`python3.11 -I DIRECTORY`), packed as tar.gz with the same bytes each time: C code
cannot be loaded out of a zipapp.
"""

import gzip
import hashlib
import importlib.util
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

import shared
from shared.errors import ConfigError

MAX_BUNDLE: Final = 16 << 20  # it has about 0.3 MB
_MAIN: Final = b"""import sys

from enclave.vsock.__main__ import main

sys.exit(main())
"""
_OURS: Final = (
    "enclave/__init__.py",
    "enclave/log.py",
    "enclave/vsock/*.py",
    "shared/__init__.py",
    "shared/errors.py",
)
_CORE: Final = re.compile(r"msgspec/_core\.cpython-3([0-9]{1,2})-(x86_64|aarch64)-linux-gnu\.so")
_PYTHONS: Final = {"11", "12", "13"}
"""Minor versions that Amazon Linux 2023 has packages of, and that the forwarder runs on."""


class ForwarderBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle: its bytes, their SHA-256 (hex), the interpreter (`python3.11`) and architecture it is for."""

    content: bytes
    sha256: str
    python: str
    arch: str


def make_forwarder(wheel: Path | None = None, source: Path | None = None) -> ForwarderBundle:
    """Return the bundle of the modules below `source` (where this one was loaded from) and a msgspec `wheel`.

    Without a wheel, the installed msgspec is taken. Raises `ConfigError`: `nitro.forwarder.source` (the
    modules are not there, as in a function's package), `nitro.forwarder.wheel` (msgspec is for another
    system than Amazon Linux 2023).
    """
    root = source or Path(str(shared.__file__)).parent.parent
    files = {"__main__.py": _MAIN}
    for pattern in _OURS:
        found = sorted(root.glob(pattern))
        if not found:
            raise ConfigError(
                "nitro.forwarder.source", f"{root} has no {pattern}: pack the forwarder elsewhere"
            )
        files |= {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    files |= _installed() if wheel is None else _unpacked(wheel)
    return _bundle(files)


def read_forwarder(path: Path) -> ForwarderBundle:
    """Read a bundle that `make_forwarder` made.

    Raises `ConfigError`: `nitro.forwarder.missing`, `nitro.forwarder.form`, `nitro.forwarder.wheel`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise ConfigError("nitro.forwarder.missing", f"cannot read {path}: {error.strerror}") from error
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            names = archive.getnames()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError("nitro.forwarder.form", f"{path} is no tar.gz of the forwarder") from error
    if "__main__.py" not in names:
        raise ConfigError("nitro.forwarder.form", f"{path} holds no __main__.py")
    return _described(content, names)


def _bundle(files: Mapping[str, bytes]) -> ForwarderBundle:
    packed = io.BytesIO()
    # a fixed time and owner: equal sources give equal bytes, and so the same hash
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.endswith(".so") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return _described(packed.getvalue(), list(files))


def _described(content: bytes, names: list[str]) -> ForwarderBundle:
    cores = [match for match in map(_CORE.fullmatch, names) if match is not None]
    if len(cores) != 1 or cores[0][1] not in _PYTHONS:
        raise ConfigError(
            "nitro.forwarder.wheel",
            "the forwarder needs msgspec for linux and python 3.11 to 3.13: `pip download msgspec --no-deps "
            "--only-binary :all: --python-version 3.11 --platform manylinux2014_x86_64`",
        )
    return ForwarderBundle(
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        python=f"python3.{cores[0][1]}",
        arch=cores[0][2],
    )


def _installed() -> dict[str, bytes]:
    found = importlib.util.find_spec("msgspec")
    directory = Path((found.submodule_search_locations or [""])[0]) if found else Path()
    paths = (path for path in directory.iterdir() if _is_wanted(path.name))
    return {f"msgspec/{path.name}": path.read_bytes() for path in paths}


def _unpacked(wheel: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return dict(_members(archive))
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError("nitro.forwarder.wheel", f"{wheel} is no wheel of msgspec") from error


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    for name in archive.namelist():
        package, _, rest = name.partition("/")
        if package == "msgspec" and _is_wanted(rest):
            yield name, archive.read(name)


def _is_wanted(name: str) -> bool:
    return name.endswith((".py", ".so")) and "/" not in name
