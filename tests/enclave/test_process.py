"""N-74: the memory of a process that holds keys is in no core dump, and no process of its user reads it."""

import subprocess
import sys
import tomllib

import pytest

from tests.docs.references import REPOSITORY

# Says how dumpable its process is at the time when a daemon looks for the guest that it runs in.
PROBE = """
import ctypes, resource, runpy, sys
from enclave.platform import Platform

def detect():
    get_dumpable = 3
    print(ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
    sys.exit(0)

Platform.detect = detect
"""


def _probe(start: str, *arguments: str) -> str:
    command = [sys.executable, "-c", PROBE + start, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("daemon", "arguments"),
    [("enclave.kms", ()), ("enclave.agent", ()), ("enclave.dstack_util", ("get-keys",))],
)
def test_n74_a_daemon_forbids_dumps_before_it_reads_anything(daemon: str, arguments: tuple[str, ...]) -> None:
    start = f"runpy.run_module({daemon!r}, run_name='__main__', alter_sys=True)"
    assert _probe(start, *arguments) == "0 0 0"


def test_n74_the_installed_command_forbids_dumps_too() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["dstack-util"].partition(":")
    assert _probe(f"from {module} import {function}; {function}()", "get-keys") == "0 0 0"


def test_a_system_without_prctl_starts_all_the_same() -> None:
    start = (
        "from enclave import process\n"
        "process.ctypes = type('ctypes', (), {'CDLL': lambda _name: None})\n"
        "process.forbid_dumps()\n"
        "print(*resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert _probe(start) == "0 0"


@pytest.mark.parametrize("daemon", ["enclave.kms", "enclave.agent"])
def test_what_a_library_thinks_of_a_certificate_is_not_written(daemon: str) -> None:
    start = (
        "import warnings\n"
        "Platform.detect = lambda: sys.exit(warnings.warn('a name of three letters'))\n"
        f"runpy.run_module({daemon!r}, run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-W", "default", "-c", PROBE + start]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""
