"""`python -m enclave.dstack_util`, and the installed command `dstack-util`."""

import sys

from enclave.dstack_util.main import main
from enclave.process import forbid_dumps


def run() -> int:
    """Run as a process of its own."""
    forbid_dumps()
    return main()


if __name__ == "__main__":
    sys.exit(run())
