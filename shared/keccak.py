"""Keccak-256 with the original padding, as Ethereum uses it. It is not SHA3-256."""


def keccak256(*parts: bytes) -> bytes:
    """Return the 32-byte Keccak-256 digest of the concatenated parts."""
    from Crypto.Hash import keccak  # noqa: PLC0415 - what only names a contract need not load the library

    state = keccak.new(digest_bits=256)
    for part in parts:
        state.update(part)
    return bytes(state.digest())
