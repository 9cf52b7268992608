"""A guest's serial console: lines for people, on standard error, with the seconds since power-on."""

import sys
import time
from collections.abc import Callable

Console = Callable[[str], None]


def silent(line: str) -> None:
    """Write nothing: the guest's events are enough."""
    del line


def serial_console() -> Console:
    """Return a console whose clock starts now."""
    started = time.monotonic()

    def write(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - started:12.6f}] {line}\n")
        sys.stderr.flush()

    return write
