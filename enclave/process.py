"""What a process that holds keys does to itself before it reads any, and one of a family at its start."""

import ctypes
import resource
import signal
import warnings

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  # linux/prctl.h


def forbid_dumps() -> None:
    """Keep this process's memory out of core dumps, and from debuggers and `/proc/PID/mem` of its own user.

    Called at the start of each daemon's own process. Outside Linux there is no prctl: the limit on core dumps
    stands alone.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def ignore_warnings() -> None:
    """Have no library write what it thinks of a certificate: strangers choose when, and it is no event.

    Called at the start of each daemon that peers connect to.
    """
    warnings.simplefilter("ignore")


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends, however that ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
