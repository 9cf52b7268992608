"""Measures a directory as if it were an enclave image (spec deploy section 5B.2).

The register rule is the real one, `SHA384(48 zero bytes || SHA384(content))`; kernel, command line and
bootstrap ramdisk are constants here, and the application's ramdisk is a plain listing of the directory. A
changed byte, name or permission changes PCR0 and PCR2, as it would in an EIF.
"""

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError

_KERNEL = b"simulated enclave kernel\n"
_CMDLINE = b"reboot=k panic=30 pci=off nomodules console=ttyS0"
_BOOTSTRAP = b"simulated bootstrap ramdisk\n"
_CHUNK = 1 << 20


def measure_image(directory: Path) -> dict[int, bytes]:
    """Return PCR0, PCR1 and PCR2 (48 bytes each) of the image whose root file system is `directory`.

    Raises `ConfigError`: `simulator.image.missing`, `simulator.image.entry` for anything but directories,
    files and symbolic links.
    """
    if not directory.is_dir():
        raise ConfigError("simulator.image.missing", f"image {directory} is not a directory")
    image, application = hashlib.sha384(_KERNEL + _CMDLINE + _BOOTSTRAP), hashlib.sha384()
    for part in serialised(directory):
        image.update(part)
        application.update(part)
    bootstrap = hashlib.sha384(_KERNEL + _CMDLINE + _BOOTSTRAP)
    return {
        0: _register(image.digest()),
        1: _register(bootstrap.digest()),
        2: _register(application.digest()),
    }


def _register(content_digest: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + content_digest).digest()


def serialised(directory: Path) -> Iterator[bytes]:
    """Yield every entry as `kind NUL mode NUL path NUL length NUL content`, ordered by the paths' bytes."""
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
