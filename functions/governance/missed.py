"""What a sweep finds that no webhook brought. However much an endpoint invents, its cost is bounded."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Final

from functions.deploy.store import Schedule
from functions.governance.delivery import LogHint
from functions.governance.events import EVENTS
from functions.governance.look import Look
from functions.governance.notice import Notice
from functions.governance.state import Memory
from shared.errors import UnavailableError

MAX_LOOKED_UP: Final = 50
"""Logs of one contract and effect that a run looks for in its memory.

Anybody can register apps by the hundred, and all that a log leads to is a look at its contract.
"""

_SHOWN: Final = 20
"""Contracts that a notice names."""


class Missed:
    """Of one run. `head` is a block that a quorum knows; `schedule` has a look made, once for a contract."""

    def __init__(self, memory: Memory, schedule: Schedule, *, chain_id: int, head: int) -> None:
        self._memory = memory
        self._schedule = schedule
        self._chain_id = chain_id
        self._head = head
        self._looked_up: Counter[tuple[bytes, str]] = Counter()
        self._queued: set[bytes] = set()
        self._found: list[LogHint] = []

    @property
    def count(self) -> int:
        """How many logs were news."""
        return len(self._found)

    def take(self, hints: Iterable[LogHint]) -> None:
        """Take what the chain shows. Raises what memory and queue raise, but not for what a webhook is at."""
        for hint in hints:
            event = EVENTS.get(hint.topic)
            if event is None or self._looked_up[hint.address, event.effect] >= MAX_LOOKED_UP:
                continue
            self._looked_up[hint.address, event.effect] += 1
            try:
                is_news = self._memory.do(hint.key(self._chain_id), partial(self._see, hint))
            except UnavailableError as error:
                if error.code != "governance.busy":
                    raise
                continue
            if is_news:
                self._found.append(hint)

    def notice(self) -> Notice | None:
        """Return what operators are told; None where every log came by webhook."""
        if not self._found:
            return None
        events = {EVENTS[hint.topic] for hint in self._found}
        names = sorted(event.name for event in events)
        blocks = [hint.block_number for hint in self._found]
        addresses = sorted({f"0x{hint.address.hex()}" for hint in self._found})
        is_loud = any(event.effect in {"revocation", "control"} for event in events)
        return Notice(
            code="governance.event.missed",
            message=f"{self.count} logs came by no webhook: {', '.join(names)}",
            severity="warning" if is_loud else "info",
            facts={
                "events": names,
                "addresses": addresses[:_SHOWN],
                "first_block": min(blocks),
                "last_block": max(blocks),
            },
        )

    def _see(self, hint: LogHint) -> None:
        # the look is queued before the log counts as seen: a crash between the two repeats it
        if hint.address not in self._queued:
            self._schedule(Look(hint.address, self._head).name, 0)
            self._queued.add(hint.address)
        self._memory.forget(hint.opposite.key(self._chain_id))
