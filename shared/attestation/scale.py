"""SCALE, the subset that a V0 envelope is written in (spec attestation section 1.2).

Strict in both directions: a compact length must use the shortest form, a length never exceeds the bytes that
are left, and `Reader.finish` refuses whatever follows the last field.
"""

from collections.abc import Callable
from typing import TypeVar

from shared.errors import InvalidEvidence

T = TypeVar("T")

# A long TDX log has under a hundred events; each item costs an object, so their number is bounded before any
# work.
MAX_ITEMS = 4096

_ONE_BYTE = 1 << 6
_TWO_BYTES = 1 << 14
_FOUR_BYTES = 1 << 30


class Reader:
    """A cursor over SCALE bytes. Its methods raise `InvalidEvidence("scale.*")` on what they refuse."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self._at

    def take(self, count: int, what: str) -> bytes:
        """Read exactly `count` bytes of the field named `what`."""
        start = self._at
        end = start + count
        if end > self._end:
            raise InvalidEvidence(
                "scale.truncated",
                f"{what} needs {count} bytes at offset {start}, only {self.remaining} are left",
            )
        self._at = end
        return self._data[start:end]

    def u8(self, what: str) -> int:
        """Read one byte."""
        return self.take(1, what)[0]

    def u32(self, what: str) -> int:
        """Read a fixed-width little-endian u32."""
        return int.from_bytes(self.take(4, what), "little")

    def compact(self, what: str) -> int:
        """Read a compact unsigned integer; a longer form than needed is refused."""
        start = self._at
        first = self.u8(what)
        mode = first & 3
        if mode == 0:  # nearly every length: one byte, always in its shortest form
            return first >> 2
        if mode == 3:
            raw = self.take((first >> 2) + 4, what)
            value, floor = int.from_bytes(raw, "little"), max(_FOUR_BYTES, 1 << (8 * (len(raw) - 1)))
        else:
            width, floor = (2, _ONE_BYTE) if mode == 1 else (4, _TWO_BYTES)
            value = int.from_bytes(bytes([first]) + self.take(width - 1, what), "little") >> 2
        if value < floor:
            raise InvalidEvidence(
                "scale.compact.minimal", f"length of {what} at offset {start} is not in its shortest form"
            )
        return value

    def bytes_(self, what: str) -> bytes:
        """Read a byte string: compact length, then the bytes."""
        return self.take(self.compact(what), what)

    def string(self, what: str) -> str:
        """Read a UTF-8 string."""
        try:
            return self.bytes_(what).decode()
        except UnicodeDecodeError as error:
            raise InvalidEvidence("scale.utf8", f"{what} is not valid utf-8") from error

    def list_of(self, item: Callable[["Reader"], T], what: str, *, smallest: int) -> tuple[T, ...]:
        """Read a list; `smallest` is the least number of bytes that one item takes on the wire.

        A count above `MAX_ITEMS`, or one that cannot fit in the bytes left, is refused before anything is
        allocated.
        """
        count = self.compact(what)
        if count > MAX_ITEMS:
            raise InvalidEvidence(
                "scale.count", f"{what} announces {count} items, at most {MAX_ITEMS} are read"
            )
        if count * smallest > self.remaining:
            raise InvalidEvidence(
                "scale.count",
                f"{what} announces {count} items, the {self.remaining} bytes left hold at most "
                f"{self.remaining // smallest}",
            )
        return tuple(item(self) for _ in range(count))

    def finish(self) -> None:
        """Refuse trailing bytes."""
        if self.remaining:
            raise InvalidEvidence(
                "scale.trailing", f"{self.remaining} bytes follow the last field, expected none"
            )


def compact(value: int) -> bytes:
    """Encode a non-negative integer in its shortest compact form."""
    if value < _ONE_BYTE:
        return bytes([value << 2])
    if value < _TWO_BYTES:
        return (value << 2 | 1).to_bytes(2, "little")
    if value < _FOUR_BYTES:
        return (value << 2 | 2).to_bytes(4, "little")
    raw = value.to_bytes((value.bit_length() + 7) // 8, "little")
    return bytes([(len(raw) - 4) << 2 | 3]) + raw


def u32(value: int) -> bytes:
    """Encode a fixed-width little-endian u32."""
    return value.to_bytes(4, "little")


def bytes_(value: bytes) -> bytes:
    """Encode a byte string."""
    return compact(len(value)) + value


def string(value: str) -> bytes:
    """Encode a UTF-8 string."""
    return bytes_(value.encode())


def list_of(items: tuple[T, ...], item: Callable[[T], bytes]) -> bytes:
    """Encode a list, its items back to back."""
    return compact(len(items)) + b"".join(map(item, items))
