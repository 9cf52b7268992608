"""Keccak-256 with the original padding, as Ethereum uses it. It is not SHA3-256."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def keccak256(*parts: bytes) -> bytes:
    """Return the 32-byte Keccak-256 digest of the concatenated parts."""
    return bytes(_library().new(data=b"".join(parts), digest_bits=256).digest())


@cache
def _library() -> "ModuleType":
    from Crypto.Hash import keccak  # noqa: PLC0415 - what only names a contract need not load the library

    return keccak
