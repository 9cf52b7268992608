"""The project's .env: names and secrets, by upstream's grammar and the guest's limits (spec deploy 1.6, 3).

Lines are trimmed; blank ones, comments and lines without `=` are skipped. The first `=` splits, both sides
are trimmed. There are no quotes, no `export` and no interpolation, and the last duplicate wins.
"""

import re
from typing import Final

from shared.compose.findings import Finding, warning
from shared.errors import ConfigError

MAX_ENTRIES: Final = 1024
MAX_NAME_BYTES: Final = 255
MAX_VALUE_BYTES: Final = 128 * 1024
MAX_TOTAL_BYTES: Final = 1024 * 1024
# Skipped lines may be longer than all that the guest takes, by far less than this.
MAX_FILE_BYTES: Final = 4 * MAX_TOTAL_BYTES

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EnvFile:
    """The variables of an .env file. Its `repr` shows names alone: values are secrets."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"EnvFile({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(sorted(self.values))


def parse_env_file(raw: bytes) -> EnvFile:
    """Read an .env file.

    Raises `ConfigError`, so that a deployment fails before the guest does: `env.size` (the file, a value, or
    all), `env.encoding` (not UTF-8, or a NUL), `env.name`, `env.count`. No message shows a value.
    """
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError("env.size", f"the .env has {len(raw)} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("env.encoding", f"the .env is not utf-8 at byte {error.start}") from None
    values: dict[str, str] = {}
    total = 0
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#") or "=" not in stripped:
            continue
        name, _, value = (part.strip() for part in stripped.partition("="))
        _check(name, value, number)
        values[name] = value
        total += len(name.encode()) + len(value.encode())
    if len(values) > MAX_ENTRIES:
        raise ConfigError("env.count", f"the .env has {len(values)} variables, at most {MAX_ENTRIES} allowed")
    if total > MAX_TOTAL_BYTES:
        raise ConfigError("env.size", f"the .env has {total} bytes of variables, at most {MAX_TOTAL_BYTES}")
    return EnvFile(values)


def lint_env_file(env: EnvFile) -> tuple[Finding, ...]:
    """Warn of values that other tools would read in another way: quotes stay a part of the value here."""
    return tuple(
        warning("lint.env.quotes", name, "has a value in quotes, which are kept as a part of it")
        for name in env.names
        if len(value := env.values[name]) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    )


def _check(name: str, value: str, number: int) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        mark = ", but a byte order mark: save it without" if name.startswith("\ufeff") else ""
        raise ConfigError(
            "env.name", f"line {number} of the .env has no valid variable name before its ={mark}"
        )
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise ConfigError(
            "env.size", f"the value at line {number} of the .env has more than {MAX_VALUE_BYTES} bytes"
        )
    if "\0" in value:
        raise ConfigError("env.encoding", f"the value at line {number} of the .env holds a NUL")
