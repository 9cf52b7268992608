"""SCALE, as far as envelopes and certificate requests need it (spec attestation 1.2)."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def compact(number: int) -> bytes:
    if number < 1 << 6:
        return (number << 2).to_bytes(1, "little")
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    return (number << 2 | 2).to_bytes(4, "little")


def data(content: bytes) -> bytes:
    return compact(len(content)) + content


def text(content: str) -> bytes:
    return data(content.encode())


def flag(value: bool) -> bytes:  # noqa: FBT001 - a wire type
    return bytes([value])


def listed(items: Iterable[bytes]) -> bytes:
    every = list(items)
    return compact(len(every)) + b"".join(every)


def option(value: bytes | None) -> bytes:
    return b"\0" if value is None else b"\1" + value


class Reader:
    """Reads one value after another; `end` wants nothing left."""

    def __init__(self, encoded: bytes) -> None:
        self._left = encoded

    def take(self, length: int) -> bytes:
        taken, self._left = self._left[:length], self._left[length:]
        if len(taken) != length:
            raise ValueError("the input ends early")
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def compact(self) -> int:
        first = self.take(1)
        mode = first[0] & 3
        if mode == 3:
            raise ValueError("no length here is this large")
        return int.from_bytes(first + self.take((0, 1, 3)[mode]), "little") >> 2

    def data(self) -> bytes:
        return self.take(self.compact())

    def text(self) -> str:
        return self.data().decode()

    def listed(self, read: Callable[[], T]) -> tuple[T, ...]:
        return tuple(read() for _ in range(self.compact()))

    def end(self) -> None:
        if self._left:
            raise ValueError(f"{len(self._left)} bytes are left")
