"""Children that end with their parent, however it ends: on Linux also when it is killed outright.

Run as a program, this asks the kernel for a SIGTERM at its parent's death and then becomes the command that
follows. The request survives exec. Popen's preexec_fn could ask without a second exec, but runs Python
between fork and exec, which may deadlock beside threads.
"""

import os
import sys
from collections.abc import Sequence

_NO_COMMAND = 127  # what a shell exits with when a command does not run


def with_parent(command: Sequence[str]) -> list[str]:
    """Return the command to start instead of `command`, so that it ends with this process.

    The kernel watches the thread that starts the child: start it from one that lives as long as the process.
    Elsewhere than on Linux the command comes back as it is.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _become(parent: int, command: list[str]) -> None:
    import ctypes  # noqa: PLC0415 - the parent, which imports this module, needs none
    import signal  # noqa: PLC0415 - as above

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit(_NO_COMMAND)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - the command of our own caller, without a shell
    except OSError as error:
        sys.stderr.write(f"{command[0]} does not run: {error.strerror}\n")
        sys.exit(_NO_COMMAND)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
