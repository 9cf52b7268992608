"""A bounded memory of results that are worth keeping: least recently used first out."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Recent(Generic[KeyT, ValueT]):
    """At most `size` values by key. Threads may share one; two may make the same value at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[KeyT, ValueT] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: KeyT) -> ValueT | None:
        """Return what is stored under `key`, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def store(self, key: KeyT, value: ValueT) -> None:
        """Remember a value."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def find(self, key: KeyT, make: Callable[[], ValueT]) -> ValueT:
        """Return what is stored under `key`, or make and store it; an error is not stored."""
        known = self.get(key)
        if known is None:
            known = make()
            self.store(key, known)
        return known
