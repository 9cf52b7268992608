"""Children end with their parent, also when that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.devchain import child
from cli.devchain.child import with_parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only linux tells a child of its parent's death"
)


def test_command_keeps_its_arguments_input_and_exit_code() -> None:
    script = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(7)"
    command = with_parent([sys.executable, "-c", script, "--a b", ""])
    done = subprocess.run(command, input="in", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "['--a b', ''] in\n")


def test_child_ends_when_its_parent_is_killed() -> None:
    script = (
        "import os, subprocess, sys\n"
        "from cli.devchain.child import with_parent\n"
        "subprocess.Popen(with_parent(['sh', '-c', 'echo up; exec sleep 600']))\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        assert parent.stdout.read() == b""  # returns when the child, which holds the pipe too, has ended


def test_child_of_a_parent_that_died_already_does_not_start() -> None:
    command = [sys.executable, "-I", "-S", str(child.__file__), str(os.getppid()), "echo", "started"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (127, b"")


def test_command_that_does_not_exist_is_named() -> None:
    done = subprocess.run(with_parent(["/no/such"]), capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "/no/such does not run" in done.stderr


def test_elsewhere_the_command_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert with_parent(["a", "b"]) == ["a", "b"]
