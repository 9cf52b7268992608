"""The few DER rules that our parsers need to cut signed structures at their exact bytes (X.690 8 and 10).

Signed bytes, names and keys are compared and hashed as they came. What lies inside is read by `cryptography`.
"""

SEQUENCE, INTEGER, BIT_STRING = 0x30, 0x02, 0x03

_VERSION_3 = bytes.fromhex("a003020102")

# Lengths of up to 16 MiB: larger than anything that is read.
_MAX_WIDTH = 3


def element(data: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Return start and end of the content of the element at `at`, which must carry `tag` and end by `limit`.

    Raises `ValueError` with a clause for a message; callers turn it into their own error.
    """
    if at + 2 > limit or data[at] != tag:
        raise ValueError(f"has no element {tag:#04x} at offset {at}")
    length = data[at + 1]
    start = at + 2
    if length >= 0x80:
        width = length & 0x7F
        start += width
        if not 0 < width <= _MAX_WIDTH or start > limit:
            raise ValueError(f"has an unreadable length at offset {at}")
        length = int.from_bytes(data[at + 2 : start], "big")
        if length < (0x80 if width == 1 else 1 << 8 * (width - 1)):
            raise ValueError(f"has a length at offset {at} that is not in its shortest form")
    if start + length > limit:
        raise ValueError(f"ends inside the element at offset {at}")
    return start, start + length


def whole(data: bytes, at: int, limit: int, tag: int) -> bytes:
    """Return the element at `at` with its header. Raises `ValueError` as `element` does."""
    return data[at : element(data, at, limit, tag)[1]]


def split_signed(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Split `SEQUENCE { signed, algorithm, BIT STRING }` into signed bytes, algorithm and signature.

    The three fill the data exactly. Raises `ValueError` as `element` does.
    """
    start, end = element(data, 0, len(data), SEQUENCE)
    if end != len(data):
        raise ValueError(f"has {len(data) - end} trailing bytes")
    signed = whole(data, start, end, SEQUENCE)
    at = start + len(signed)
    algorithm = whole(data, at, end, SEQUENCE)
    bits, bits_end = element(data, at + len(algorithm), end, BIT_STRING)
    if bits_end != end or data[bits : bits + 1] != b"\0":
        raise ValueError("does not end in a signature of whole bytes")
    return signed, algorithm, data[bits + 1 : end]


def after_serial(tbs: bytes) -> tuple[int, int]:
    """Return where the fields behind a certificate's serial number start, and where the signed part ends.

    The certificate must be of version 3 and its number positive: `cryptography` only warns of others. Raises
    `ValueError` as `element` does.
    """
    at, end = element(tbs, 0, len(tbs), SEQUENCE)
    if end != len(tbs) or not tbs.startswith(_VERSION_3, at):
        raise ValueError("is not of version 3")
    serial, at = element(tbs, at + len(_VERSION_3), end, INTEGER)
    if serial == at or tbs[serial] & 0x80 or not any(tbs[serial:at]):
        raise ValueError("has a serial number that is not positive")
    return at, end
