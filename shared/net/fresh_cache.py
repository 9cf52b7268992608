"""What was fetched and is kept: renewed before it ends, one fetch at a time, old while its source is down."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import msgspec

from shared.attestation.recent import Recent
from shared.errors import DstackError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Seconds. A source that failed is left alone for so long: callers fail at once instead of one after another.
RETRY_AFTER = 30
# What ends within this time is renewed now, ...
RENEWAL_MARGIN = 3600
# ... but what a source keeps giving out near its end is not asked for more often than this.
MIN_INTERVAL = 300


class _Entry(msgspec.Struct, Generic[V], frozen=True):
    value: V
    fetched_at: int
    ends: int

    def is_fresh(self, now: int, refresh_after: int) -> bool:
        """Tell whether there is no need to look for a newer one. Times may run backwards: audits set them."""
        age = now - self.fetched_at
        return 0 <= age < MIN_INTERVAL or (0 <= age < refresh_after and now < self.ends - RENEWAL_MARGIN)


class _Failure(msgspec.Struct, frozen=True):
    error: DstackError
    at: int


class FreshCache(Generic[K, V]):
    """At most `size` values by key, each renewed when it is `refresh_after` seconds old or near its end.

    `ends(value)` is the last second in which a value may be used. `tell(sentence)` hears of renewals that
    failed while the old value still served. Safe to share between threads.
    """

    def __init__(
        self, size: int, *, refresh_after: int, ends: Callable[[V], int], tell: Callable[[str], object]
    ) -> None:
        self._refresh_after = refresh_after
        self._ends = ends
        self._tell = tell
        self._entries: Recent[K, _Entry[V]] = Recent(size)
        self._failures: Recent[K, _Failure] = Recent(size)
        self._flights: SingleFlight[K, V] = SingleFlight()

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self,
        key: K,
        now: int,
        *,
        fetch: Callable[[V | None], V],
        check: Callable[[V], None],
    ) -> V:
        """Return a value for `key` at `now` (unix seconds) that passes `check`, which raises to refuse one.

        `fetch` gets the value that a new one takes the place of, if any. What does not pass is never kept.
        Raises what `fetch` or `check` raised, where no value that passes is held.
        """
        entry = self._entries.get(key)
        held = entry if entry is not None and _passes(entry.value, check) else None
        if held is not None and (held.is_fresh(now, self._refresh_after) or self._flights.is_flying(key)):
            return held.value
        try:
            self._raise_recent_failure(key, now)
            value = self._flights.run(key, lambda: self._renewed(key, now, entry, fetch, check))
            check(value)
        except DstackError as error:
            if held is None:
                raise
            self._tell(f"kept what was fetched at {held.fetched_at}: {error} [{error.code}]")
            return held.value
        return value

    def _renewed(
        self,
        key: K,
        now: int,
        entry: _Entry[V] | None,
        fetch: Callable[[V | None], V],
        check: Callable[[V], None],
    ) -> V:
        try:
            value = fetch(None if entry is None else entry.value)
        except DstackError as error:
            self._failures.store(key, _Failure(error, now))
            raise
        # what fails the check of this caller may do for another, but is not worth the place of what is held
        if _passes(value, check):
            self._entries.store(key, _Entry(value, now, self._ends(value)))
        return value

    def _raise_recent_failure(self, key: K, now: int) -> None:
        failure = self._failures.get(key)
        if failure is not None and 0 <= now - failure.at < RETRY_AFTER:
            raise type(failure.error)(failure.error.code, failure.error.message) from failure.error


class SingleFlight(Generic[K, V]):
    """Lets one thread at a time do the work for a key; who comes meanwhile gets its result or its error.

    The work must bound its own time: nobody else ends the wait.
    """

    def __init__(self) -> None:
        self._flights: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def is_flying(self, key: K) -> bool:
        """Tell whether a thread is at work for the key."""
        with self._lock:
            return key in self._flights

    def run(self, key: K, work: Callable[[], V]) -> V:
        """Return what `work` returns, here or in the thread that is at it already."""
        mine: Future[V] = Future()
        with self._lock:
            flight = self._flights.setdefault(key, mine)
        if flight is not mine:
            return flight.result()
        try:
            value = work()
        except BaseException as error:
            self._land(key)
            mine.set_exception(error)
            raise
        self._land(key)
        mine.set_result(value)
        return value

    def _land(self, key: K) -> None:
        with self._lock:
            del self._flights[key]


def _passes(value: V, check: Callable[[V], None]) -> bool:
    try:
        check(value)
    except DstackError:
        return False
    return True
