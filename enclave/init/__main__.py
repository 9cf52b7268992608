"""`python -m enclave.init`, the entry point of an app's enclave image."""

import sys

from enclave.init.boot import main
from enclave.process import forbid_dumps

if __name__ == "__main__":
    forbid_dumps()
    sys.exit(main())
