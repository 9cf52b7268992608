"""`python -m enclave.kms`."""

import sys

from enclave.kms.daemon import main
from enclave.process import forbid_dumps

if __name__ == "__main__":
    forbid_dumps()
    sys.exit(main())
