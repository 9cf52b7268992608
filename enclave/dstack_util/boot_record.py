"""What a boot records, in order and exactly once, however often `setup` is started (SECURITY N-62)."""

from collections.abc import Iterable

from enclave.devices.runtime_events import RuntimeEventLog
from shared.attestation.envelope import RuntimeEvent
from shared.errors import StorageError


class BootRecord:
    """The events of one boot. What an earlier attempt recorded must be what this one would record.

    A register cannot be taken back: where the two differ, only a reboot begins anew. Reading the log raises
    what `RuntimeEventLog` does.
    """

    def __init__(self, log: RuntimeEventLog) -> None:
        self._log = log
        self._earlier = log.read()
        self._done = 0

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt of this boot recorded anything: only then is what it left ours."""
        return bool(self._earlier)

    def emit(self, name: str, payload: bytes) -> None:
        """Record an event, unless an earlier attempt of this boot recorded it at this place.

        Raises `StorageError("setup.events.diverged")`, and what `RuntimeEventLog.emit` does.
        """
        if self._done < len(self._earlier):
            earlier = self._earlier[self._done]
            if (earlier.event, earlier.payload) != (name, payload):
                raise StorageError(
                    "setup.events.diverged",
                    f"this boot has recorded {earlier.event} as event {self._done + 1} and would now record "
                    f"{name}, or another value of it: reboot to start anew",
                )
        else:
            self._log.emit(name, payload)
        self._done += 1

    def emit_all(self, events: Iterable[RuntimeEvent]) -> None:
        """Record events in order; raises as `emit` does."""
        for event in events:
            self.emit(event.event, event.payload)
