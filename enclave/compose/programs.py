"""The programs that a guest starts for an app: bash, docker, nerdctl. One place for arguments and failures.

Arguments are seen by everybody in the guest, so no secret is ever one: secrets go through standard input, or
in the environment of the one program that needs them.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from shared.errors import ConfigError, UnavailableError

PLAIN_NAMES: Final = ("PATH", "HOME", "LANG", "TZ")
"""What every program gets of the guest's own environment."""

MAX_OUTPUT: Final = 4 << 20
"""Bytes of an answer that is read; a list of all containers is far below."""


class Programs(Protocol):
    """Starts programs. Both methods raise `ConfigError("compose.program")` for one that is not there."""

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        descriptors: Sequence[int] = (),
    ) -> int:
        """Run a program to its end and return its exit code; what it prints goes to the journal."""
        ...

    def output(self, command: Sequence[str], *, environment: Mapping[str, str]) -> bytes:
        """Return what a program printed. Raises `UnavailableError("compose.program.failed")`."""
        ...


class GuestPrograms:
    """The real ones, found by the PATH of the environment that they get, and run in `directory`."""

    def __init__(self, directory: str = "/") -> None:
        self._directory = directory

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        descriptors: Sequence[int] = (),
    ) -> int:
        """See `Programs.run`."""
        return self._start(command, environment, stdin, descriptors, capture=False)[0]

    def output(self, command: Sequence[str], *, environment: Mapping[str, str]) -> bytes:
        """See `Programs.output`."""
        code, printed = self._start(command, environment, b"", (), capture=True)
        if code or len(printed) > MAX_OUTPUT:
            raise UnavailableError("compose.program.failed", f"{command[0]} ended with exit code {code}")
        return printed

    def _start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: bytes,
        descriptors: Sequence[int],
        *,
        capture: bool,
    ) -> tuple[int, bytes]:
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and every argument is measured or ours
                list(command),
                env=dict(environment),
                input=stdin,
                stdout=subprocess.PIPE if capture else None,
                cwd=self._directory,
                pass_fds=tuple(descriptors),
                check=False,
            )
        except (OSError, ValueError) as error:
            # not chained: a ValueError's text repeats what it was given
            reason = getattr(error, "strerror", None) or "an argument or a variable holds a nul"
            raise ConfigError("compose.program", f"cannot start {command[0]}: {reason}") from None
        return done.returncode, done.stdout or b""


def plain_environment(guest: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program that needs no secret."""
    found = os.environ if guest is None else guest
    return {name: found[name] for name in PLAIN_NAMES if name in found}
