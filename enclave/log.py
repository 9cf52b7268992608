"""One structured line per event on standard output. Never a secret, never a payload."""

import json
import sys


def log_event(event: str, **fields: str | float | bool | None) -> None:
    """Write `{"event": ..., **fields}` as one JSON line."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
