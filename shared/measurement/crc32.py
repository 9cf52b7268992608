"""The CRC-32 of pieces laid end to end, from the CRC-32 of each: a header may be written last.

A CRC is the remainder of a polynomial over GF(2); appending n bytes multiplies by x^(8n).
"""

from typing import Final

_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31  # bits are reflected: the highest is x^0
_ONE_BYTE: Final = 1 << 23  # x^8


def joined_crc32(first: int, second: int, second_size: int) -> int:
    """Return the CRC-32 of two pieces, given each one's and the size of the second in bytes."""
    power, factor = _ONE, _ONE_BYTE
    while second_size:
        if second_size & 1:
            power = _product(power, factor)
        factor = _product(factor, factor)
        second_size >>= 1
    return _product(first, power) ^ second


def _product(left: int, right: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
