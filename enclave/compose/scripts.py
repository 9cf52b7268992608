"""An app's own scripts, sourced: what they export reaches what is started next (spec guest-agent section 7).

A script is measured, and it is no gate. It runs after the app's keys came and, where containers restart by
themselves, after containers of an earlier boot are up again: whoever wants something to hold before keys are
released says so in `requirements` or in the app's contract (SECURITY N-72).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final

from enclave.compose.programs import Programs
from shared.errors import PolicyDenied, UnavailableError

MAX_EXPORTS: Final = 4 << 20
"""Bytes of all variables together; the kernel gives a program less than that."""

# The script is a file of its own, so a syntax error in it cannot reach what comes after. Its variables are
# written by a program that PATH does not choose.
_SOURCING: Final = "set -euo pipefail\n. /dev/fd/{script}\nexec /usr/bin/env -0 >&{exports}\n"


def source(
    programs: Programs, scripts: Sequence[str], environment: Mapping[str, str], *, name: str
) -> dict[str, str]:
    """Source scripts one after another with `bash -euo pipefail`; return the environment as they left it.

    Raises `UnavailableError("compose.script.failed")` for one that fails, `PolicyDenied`:
    `compose.script.exited` for one that calls `exit 0`, which ends the start as well.
    """
    found = dict(environment)
    for script in scripts:
        found = _source(programs, script, found, name)
    return found


def _source(programs: Programs, script: str, environment: Mapping[str, str], name: str) -> dict[str, str]:
    text, exports = os.memfd_create("script"), os.memfd_create("exports")
    try:
        os.write(text, script.encode())
        command = _SOURCING.format(script=text, exports=exports)
        code = programs.run(("bash", "-c", command), environment=environment, descriptors=(text, exports))
        if code:
            raise UnavailableError("compose.script.failed", f"{name} ended with exit code {code}")
        size = os.fstat(exports).st_size
        if not size:
            raise PolicyDenied(
                "compose.script.exited", f"{name} called exit, which ends the start of the app"
            )
        if size > MAX_EXPORTS:
            raise UnavailableError(
                "compose.script.failed", f"{name} exports {size} bytes, at most {MAX_EXPORTS} are taken"
            )
        return _parsed(os.pread(exports, size, 0))
    finally:
        os.close(text)
        os.close(exports)


def _parsed(listed: bytes) -> dict[str, str]:
    pairs = (entry.partition(b"=") for entry in listed.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
