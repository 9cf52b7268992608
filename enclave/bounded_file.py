"""Reading a file of a guest that may be missing, and must not be larger than a reader can use."""

from pathlib import Path

from shared.errors import ConfigError


def read_bounded(path: Path, limit: int, *, code: str) -> bytes | None:
    """Return the file's bytes, None where there is no such file.

    Raises `ConfigError` with `code` for one that cannot be read, or has more than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(code, f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ConfigError(code, f"{path} is larger than {limit} bytes")
    return content
