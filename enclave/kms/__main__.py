"""`python -m enclave.kms`."""

import sys

from enclave.kms.daemon import main

if __name__ == "__main__":
    sys.exit(main())
