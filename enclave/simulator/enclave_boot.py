"""Boots a simulated enclave by `enclave.init`, on a computer whose kernel is nobody's to change.

`run … init [-- COMMAND]`: nothing of the image is started. COMMAND stands in for the app, as the user who
started the simulator; without one, a process that waits does.
"""

import sys
from collections.abc import Mapping

from enclave.init.boot import Machine
from enclave.init.boot import main as init
from enclave.init.kernel import MOUNTS, Mount
from enclave.platform import Platform
from enclave.simulator.console import serial_console

# ends with the simulator, whose end is the enclave's
_WAIT = "import signal; from enclave.process import end_with_parent; end_with_parent(); signal.pause()"
WAITING = (sys.executable, "-P", "-c", _WAIT)


class SimulatedKernel:
    """Has all mounts, a loopback and entropy already; tells what a real one would be asked for."""

    def mounted(self) -> Mapping[str, str]:
        """See `enclave.init.kernel.Kernel`."""
        return {mount.target: mount.kind for mount in MOUNTS}

    def mount(self, mount: Mount) -> None:
        """Mount nothing."""
        serial_console(f"mount {mount.kind} on {mount.target}")

    def raise_loopback(self) -> None:
        """Change nothing."""
        serial_console("lo is up")

    def add_entropy(self, random: bytes) -> None:
        """Change nothing."""
        serial_console(f"{len(random)} random bytes of the module")


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Boot; `argv` is the app's stand-in."""
    command = argv or []
    stand_in = tuple(command[1:] if command[:1] == ["--"] else command) or WAITING
    return init(None, platform, Machine(SimulatedKernel(), stand_in))
