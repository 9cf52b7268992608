"""The files in which a guest hands the decrypted environment on (spec deploy section 3).

`.decrypted-env` is read by systemd's `EnvironmentFile=`. Upstream's older guest left backslashes alone and a
carriage return unquoted; with either, a value could end its own quotes or line and begin the next variable.
So we write upstream's bytes wherever they are read back as the same value, and others where they are not.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

# What ends a word or means something to systemd or a shell. Systemd takes a carriage return for a line's end.
_QUOTED: Final = re.compile(r"[ \t\n\r|&;<>()$`\\\"']")
_ESCAPED: Final = {"\n": "\\n", '"': '\\"', "$": "\\$", "`": "\\`"}
# A backslash is kept before any character but these; at the end of a value the closing quote comes next.
_TAKEN_BY_BACKSLASH: Final = frozenset('"$`\\\n')


def escape_value(value: str) -> str:
    r"""Return a value as it stands behind `NAME=`.

    A newline becomes the two characters `\n`, which systemd keeps as they are: only `.decrypted-env.json`
    holds such a value unchanged. A backslash is doubled where it would take the next character's meaning
    away.
    """
    if not _QUOTED.search(value):
        return value
    following = [*value[1:], '"'] if value else []
    escaped = (
        "\\\\" if char == "\\" and after in _TAKEN_BY_BACKSLASH else _ESCAPED.get(char, char)
        for char, after in zip(value, following, strict=True)
    )
    return f'"{"".join(escaped)}"'


def decrypted_env(env: Mapping[str, str]) -> bytes:
    """Return the bytes of `.decrypted-env`: one line per variable, in the order given. Names were checked."""
    return "".join(f"{name}={escape_value(value)}\n" for name, value in env.items()).encode()


def decrypted_env_json(env: Mapping[str, str]) -> bytes:
    """Return the bytes of `.decrypted-env.json`: one compact object, values unchanged."""
    return json.dumps(dict(env), ensure_ascii=False, separators=(",", ":")).encode()
