"""A queue in this process, for a deploy function that is one process on one machine, in development."""

import heapq
import threading
import time
from collections.abc import Callable
from typing import Final

from functions.deploy.engine import Next
from shared.errors import DstackError

RETRY_SECONDS: Final = 5
"""After a failure of the store; what a step raises is in the record."""

Advance = Callable[[str], Next]
Report = Callable[[str, str], None]


class InProcessSchedule:
    """Calls `advance` when it is time, in one thread that starts with the first call.

    What waits here ends with the process: whoever makes one sweeps the store first
    (`functions.deploy.reconcile`). `report(code, message)` is told of failures.
    """

    def __init__(
        self,
        advance: Advance,
        report: Report = lambda _code, _message: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._advance = advance
        self._report = report
        self._clock = clock
        self._waiting: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, name: str, seconds: int) -> None:
        """Have a deployment advanced in so many seconds."""
        with self._changed:
            heapq.heappush(self._waiting, (self._clock() + max(seconds, 0), name))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="deployments")
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            name = self._next()
            try:
                after = self._advance(name)
            except DstackError as error:
                self._report(error.code, error.message)
                if error.code != "deploy.unknown":
                    self(name, RETRY_SECONDS)
                continue
            if after.seconds is not None:
                self(name, after.seconds)

    def _next(self) -> str:
        """Wait for the next name that is due, and take all its calls that are due with it."""
        with self._changed:
            while True:
                if not self._waiting:
                    self._changed.wait()
                    continue
                due, name = self._waiting[0]
                left = due - self._clock()
                if left > 0:
                    self._changed.wait(left)
                    continue
                now = self._clock()
                self._waiting = [one for one in self._waiting if one[1] != name or one[0] > now]
                heapq.heapify(self._waiting)
                return name
