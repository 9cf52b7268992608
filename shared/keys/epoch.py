"""The number of an app's key epoch: which of its keys, 0 for upstream's (docs/env-encryption.md)."""

from typing import Final

from shared.errors import ProtocolError

MAX_EPOCH: Final = (1 << 32) - 1


def encode_epoch(epoch: int) -> bytes:
    """Return the 4 bytes of an epoch, big-endian. Raises `ProtocolError("keys.epoch")`."""
    if not 0 <= epoch <= MAX_EPOCH:
        raise ProtocolError("keys.epoch", f"key epoch is {epoch}, expected 0 to {MAX_EPOCH}")
    return epoch.to_bytes(4)
