"""A directory as one string of bytes, which simulated boots measure where real ones measure an image.

A Google Cloud guest's unified kernel image is such a listing (spec deploy section 5B.2), and so are the parts
of sample evidence. Enclaves have a real image: `enclave.simulator.enclave_image`.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError

_CHUNK = 1 << 20


def serialised(directory: Path) -> Iterator[bytes]:
    """Yield every entry as `kind NUL mode NUL path NUL length NUL content`, ordered by the paths' bytes.

    A changed byte, name or permission is another listing. Raises `ConfigError`: `simulator.image.missing`,
    `simulator.image.entry` for anything but directories, files and symbolic links.
    """
    if not directory.is_dir():
        raise ConfigError("simulator.image.missing", f"image {directory} is not a directory")
    entries = sorted((path.relative_to(directory).as_posix().encode(), path) for path in directory.rglob("*"))
    for name, path in entries:
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            target = str(path.readlink()).encode()
            yield _header(b"link", 0, name, len(target)) + target
        elif stat.S_ISDIR(status.st_mode):
            yield _header(b"directory", mode, name, 0)
        elif stat.S_ISREG(status.st_mode):
            yield _header(b"file", mode, name, status.st_size)
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        else:
            raise ConfigError(
                "simulator.image.entry", f"{path} is neither a directory, a file nor a symbolic link"
            )


def _header(kind: bytes, mode: int, name: bytes, length: int) -> bytes:
    return b"%b\0%o\0%b\0%d\0" % (kind, mode, name, length)
