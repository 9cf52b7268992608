"""`python -m enclave.dstack_util`."""

import sys

from enclave.dstack_util.main import main

if __name__ == "__main__":
    sys.exit(main())
