"""Leaves out, for a while, what was slow to fail, so that what hangs does not hold up every question.

It fails closed: what is left out counts as not answering, and where too few are left the caller refuses.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from shared.errors import DstackError, UnavailableError
from shared.net.json_rpc import Call, Endpoint

REST_SECONDS: Final = 10.0
"""For those whose callers wait: of this and its timeout, an endpoint that hangs delays one question."""

SLOW_SECONDS: Final = 1.0
"""A failure that took less, such as a refused connection, holds nobody up: what failed so is asked on."""

_T = TypeVar("_T")


class Breaker:
    """Asks what `name` names, unless that was slow to fail in the last `seconds`. Threads may share it.

    After that one question finds out whether it is back; the others go without it as long as that takes.
    `clock` is monotonic seconds.
    """

    def __init__(self, name: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._rests_until: float | None = None
        self._is_tried = False
        # when the newest question that was answered had been asked
        self._answered = clock()

    def run(self, question: Callable[[], _T]) -> _T:
        """Return the answer to `question`. Raises what it raises, and `UnavailableError("net.resting")`."""
        asked_at, is_trial = self._enter()
        is_slow = False
        try:
            return question()
        except DstackError as error:
            is_slow = error.code == "net.timeout" or self._clock() - asked_at >= SLOW_SECONDS
            raise
        finally:
            self._leave(asked_at, is_trial=is_trial, is_slow=is_slow)

    def _enter(self) -> tuple[float, bool]:
        with self._lock:
            now = self._clock()
            if self._rests_until is None:
                return now, False
            left = self._rests_until - now
            if left > 0 or self._is_tried:
                when = f"asked again in {left:.0f} seconds" if left > 0 else "just being asked again"
                raise UnavailableError("net.resting", f"{self._name} was slow to fail, and is {when}")
            self._is_tried = True
            return now, True

    def _leave(self, asked_at: float, *, is_trial: bool, is_slow: bool) -> None:
        with self._lock:
            if not is_slow:
                self._answered = max(self._answered, asked_at)
                self._rests_until = None
            elif asked_at >= self._answered:  # else it has come back meanwhile
                self._rests_until = self._clock() + self._seconds
            if is_trial:
                self._is_tried = False


class RestingEndpoint:
    """An endpoint that is left out for a while when it hangs. `seconds` and `clock` as for `Breaker`."""

    def __init__(
        self, endpoint: Endpoint, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpoint = endpoint
        self._breaker = Breaker(endpoint.host, seconds, clock)
        self.host = endpoint.host
        self.secure = endpoint.secure

    def batch(self, calls: Sequence[Call]) -> list[object]:
        """See `Endpoint`. Raises `UnavailableError("net.resting")` while it is left out."""
        return self._breaker.run(lambda: self._endpoint.batch(calls))


def spare_endpoints(
    endpoints: Sequence[Endpoint],
    quorum: int,
    seconds: float = REST_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> list[Endpoint]:
    """Return the endpoints, each left out for a while when it hangs, if there are more than must answer.

    Where all must answer they are returned as they are: none can be spared, so that to leave one out for one
    late answer would refuse all that is asked meanwhile, and help nobody.
    """
    if quorum >= len(endpoints):
        return list(endpoints)
    return [RestingEndpoint(one, seconds, clock) for one in endpoints]
