"""One structured line per event on standard output. Never a secret, never a payload."""

import json
import sys


def log_event(event: str, **fields: str | float | bool | None) -> None:
    """Write `{"event": ..., **fields}` as one JSON line."""
    write_line(json.dumps({"event": event, **fields}))


def write_line(line: str) -> None:
    """Write one line, which holds no line break of its own, in one piece."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write_error(text: str) -> None:
    """Write one line on standard error. What is not printable is escaped: no text of a peer makes another."""
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    sys.stderr.write(line + "\n")
