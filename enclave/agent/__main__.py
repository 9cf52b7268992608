"""`python -m enclave.agent`, the main process of an app's enclave."""

import sys

from enclave.agent.daemon import main

if __name__ == "__main__":
    sys.exit(main())
