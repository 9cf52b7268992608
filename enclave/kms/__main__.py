"""`python -m enclave.kms`."""

import sys

from enclave.kms.daemon import main
from enclave.process import forbid_dumps, ignore_warnings

if __name__ == "__main__":
    forbid_dumps()
    ignore_warnings()
    sys.exit(main())
