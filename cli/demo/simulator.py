"""Runs the simulator's commands, each as a process of its own."""

from cli.demo.processes import ProcessGroup
from shared.errors import UnavailableError


def run_simulator(processes: ProcessGroup, name: str, *arguments: str) -> object:
    """Run a command to its end and return the object that it prints, `{}` for none.

    Raises `UnavailableError("demo.simulator")`.
    """
    process = processes.python(name, "enclave.simulator", *arguments)
    if process.wait_exit() != 0:
        raise UnavailableError("demo.simulator", f"{name} failed: {process.last_words()}")
    return next(iter(process.events()), {})
