"""A guest's serial console: lines for people, on standard error, with the seconds since power-on."""

import sys
import time
from collections.abc import Callable

Console = Callable[[str], None]

_POWERED_ON = time.monotonic()  # a simulated machine is a process


def silent(line: str) -> None:
    """Write nothing: the guest's events are enough."""
    del line


def serial_console(line: str) -> None:
    """Write one line."""
    sys.stderr.write(f"[{time.monotonic() - _POWERED_ON:12.6f}] {line}\n")
    sys.stderr.flush()
