"""A log that tests can wait on."""

import threading
from typing import Any

PATIENCE = 30.0


class EventLog:
    """Collects `log(event, **fields)` calls; `wait_for` returns the first event that has these fields."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, event: str, **fields: object) -> None:
        with self._changed:
            self._events.append({"event": event, **fields})
            self._changed.notify_all()

    def wait_for(self, **fields: object) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((entry for entry in self._events if fields.items() <= entry.items()), None)

        with self._changed:
            assert self._changed.wait_for(found, PATIENCE), f"{fields} not among {self._events}"
            entry = found()
            assert entry is not None
            return entry
