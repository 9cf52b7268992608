"""`python -m enclave.agent`, the main process of an app's enclave."""

import sys

from enclave.agent.daemon import main
from enclave.process import forbid_dumps, ignore_warnings

if __name__ == "__main__":
    forbid_dumps()
    ignore_warnings()
    sys.exit(main(sys.argv[1:]))
