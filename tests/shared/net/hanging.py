"""An endpoint that really hangs until a test lets it go, and who waits for what happens."""

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Event, Thread

from shared.errors import DstackError, UnavailableError
from shared.net.json_rpc import Call, Endpoint

PATIENCE = 60
"""Seconds until a test that waits for what never happens fails."""


class Clock:
    """Monotonic seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hanging:
    """Another endpoint, which hangs in each question until `answer` or `time_out` is called."""

    def __init__(self, inner: Endpoint, happened: "SimpleQueue[str]") -> None:
        self._inner = inner
        self._happened = happened
        self._waiting: SimpleQueue[tuple[Event, list[DstackError]]] = SimpleQueue()
        self.host = inner.host
        self.secure = inner.secure
        self.asked = 0

    def batch(self, calls: Sequence[Call]) -> list[object]:
        released, failures = Event(), list[DstackError]()
        self.asked += 1
        self._waiting.put((released, failures))
        self._happened.put("hangs")
        assert released.wait(PATIENCE), "no test let it go"
        if failures:
            raise failures[0]
        return self._inner.batch(calls)

    def answer(self) -> None:
        """Have the question that hangs longest answered."""
        self._waiting.get(timeout=PATIENCE)[0].set()

    def time_out(self) -> None:
        """Have the question that hangs longest end as a client ends it."""
        released, failures = self._waiting.get(timeout=PATIENCE)
        failures.append(UnavailableError("net.timeout", f"{self.host} did not answer within 5 seconds"))
        released.set()


class Asking:
    """Something that is done in a thread; it is told when it is over, however it ends."""

    def __init__(self, do: Callable[[], object], happened: "SimpleQueue[str]") -> None:
        self.result: object = None
        self._thread = Thread(target=self._run, args=(do, happened), daemon=True)
        self._thread.start()

    def _run(self, do: Callable[[], object], happened: "SimpleQueue[str]") -> None:
        try:
            self.result = do()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.result = error
        happened.put("done")
