"""Writes a file whole: whatever happens meanwhile, what is there is the old content or the new one."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, which keeps its mode, or where none is. Raises `OSError`."""
    place = path.resolve()  # a link stays one
    new = place.with_name(f"{place.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            if place.exists():
                new.chmod(place.stat().st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)
