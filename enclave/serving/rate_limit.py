"""Token buckets: how often one key may do a thing. The time is an argument, in monotonic seconds."""

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

import msgspec

from shared.errors import UnavailableError

MAX_BUCKETS: Final = 4096
"""Four times as many callers as connections, some hundred bytes each. Beyond it the bucket that was touched
longest ago goes, and its key begins with a full one again: a key must cost its holder something."""

_SECONDS: Final = 60.0
_ROUNDING: Final = 1e-9


class Rate(msgspec.Struct, frozen=True):
    """`burst` tokens at most, of which `per_minute` come back in a minute; both at least 1."""

    per_minute: int
    burst: int


class RateLimited(UnavailableError):  # noqa: N818 - a verdict, as those of `shared.errors`
    """Too many calls. `retry_after` is in whole seconds, at least 1."""

    def __init__(self, code: str, message: str, retry_after: int = 1) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class TokenBuckets:
    """One bucket for each key, full when first seen. Safe to use from several threads.

    A bucket is kept as the time at which it is full again: a token that is taken moves that time on.
    """

    def __init__(self, rate: Rate, *, max_buckets: int = MAX_BUCKETS) -> None:
        self._interval = _SECONDS / rate.per_minute
        self._capacity = rate.burst * self._interval
        self._max_buckets = max_buckets
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._full_at)

    def take(self, key: Hashable, now: float) -> int:
        """Take one token and return 0; or take none and return the whole seconds until there is one."""
        with self._lock:
            full_at = max(self._full_at.get(key, now), now)
            wait = full_at + self._interval - self._capacity - now
            if wait <= _ROUNDING:
                wait = 0.0
                full_at += self._interval
            self._full_at[key] = full_at
            self._full_at.move_to_end(key)
            if len(self._full_at) > self._max_buckets:
                self._full_at.popitem(last=False)
        return math.ceil(wait)
