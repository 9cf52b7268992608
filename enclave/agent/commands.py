"""The few commands of the guest's system that the agent runs."""

import subprocess
from typing import Final

from shared.errors import UnavailableError

MAX_OUTPUT: Final = 256 * 1024
"""Characters of a command's output that are handed on; a guest has one tunnel to a few gateways."""

_SHOWN: Final = 200
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def command_output(*argv: str, seconds: float) -> str:
    """Return what a command prints, without white space around it.

    Raises `UnavailableError`: `agent.command.missing`, `.timeout`, `.failed`.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own words, no shell
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=_ENVIRONMENT,
            timeout=seconds,
        )
    except OSError as error:
        raise UnavailableError("agent.command.missing", f"cannot run {argv[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            "agent.command.timeout", f"{argv[0]} did not end within {seconds:g} seconds"
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode("ascii", "replace").strip()[:_SHOWN]
        raise UnavailableError(
            "agent.command.failed",
            f"{argv[0]} ended with {done.returncode}: {words.rstrip('.') or 'no words'}",
        )
    return done.stdout.decode("utf-8", "replace").strip()[:MAX_OUTPUT]
