"""The runner in process: a loop around `advance`, for the command line and its SQLite store."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from functions.deploy.engine import Engine, Next
from functions.deploy.record import Step

LONGEST_WAIT: Final = 5
"""Seconds between two looks: a governance call, or another terminal's `remove`, shows within this time."""


class WaitOver(Exception):  # noqa: N818 - the end of a wait is no error
    """The caller's patience is over; the deployment goes on where it is when somebody advances it."""

    def __init__(self, last: Next) -> None:
        super().__init__(last.why or last.step.value)
        self.last = last


def run_until_settled(
    engine: Engine,
    name: str,
    *,
    deadline: float | None = None,
    stop_at: frozenset[Step] = frozenset(),
    report: Callable[[Next], object] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Next:
    """Advance a deployment until there is nothing to do, or its step is one of `stop_at`.

    The first look is at once, whatever an earlier run waited for: what it missed may be there now.
    `deadline` is a time of `clock`. Raises `WaitOver` behind it, and as `Engine.advance` does.
    """
    early = True
    while True:
        after = engine.advance(name, early=early)
        early = False
        report(after)
        if after.seconds is None or after.step in stop_at:
            return after
        pause = min(after.seconds, LONGEST_WAIT)
        if deadline is not None and clock() + pause > deadline:
            raise WaitOver(after)
        if pause:
            sleep(pause)


def this_holder() -> str:
    """Name this process so that another one on this machine can tell whether it still runs."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_gone(holder: str) -> bool:
    """Tell whether a holder was a process of this machine that does not run any more.

    A lease of another machine, or one that cannot be read, is left to run out.
    """
    host, _, rest = holder.rpartition(":")
    host, _, pid = host.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return _started(int(pid)) != rest


def _started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks, or nothing where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # the command, which may hold anything, is in parentheses; the start is the 22nd field
    return stat.rpartition(")")[2].split()[19]
