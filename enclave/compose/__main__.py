"""`python -m enclave.compose start`, as app-compose.service calls it."""

import sys

from enclave.compose.main import main
from enclave.process import forbid_dumps

if __name__ == "__main__":
    forbid_dumps()
    sys.exit(main())
