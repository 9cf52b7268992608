"""The sweep: looks at every deployment, and replays events that no webhook brought.

It needs no webhook to be right: each run judges all deployments by the chain's state. Where logs are new,
a look at their contract is queued as by a webhook, so that they are not lost where this run's own look fails.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from functions.deploy.store import Schedule
from functions.governance.chain import TooManyLogsError
from functions.governance.delivery import LogHint
from functions.governance.governor import Chain, Drift, Governor
from functions.governance.missed import Missed
from functions.governance.notice import Notice, Notify
from functions.governance.state import Cursor, Memory
from shared.chain.header import BlockRef
from shared.errors import DstackError

RANGE: Final = 500
"""Blocks in one eth_getLogs; providers take 500 to 10,000."""

RANGES: Final = 100
"""Asked for in one run, those included that were too much: after a long outage the next runs go on."""

READ_SECONDS: Final = 25
"""In which a run asks for more. One answer may take ten more, and the cloud ends a run after sixty."""


class Logs(Chain, Protocol):
    """A chain that also shows logs."""

    def logs(self, addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
        """Return logs of a range of blocks. Raises `TooManyLogsError` where a smaller one may be answered."""
        ...


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run: how many logs were new, up to which block, and where chain and deployments differed."""

    replayed: int
    cursor: int
    drifts: tuple[Drift, ...]


class Reconciler:
    """Runs on a schedule. `first_block` is where the first run starts, None behind the newest final block."""

    def __init__(
        self,
        chain: Logs,
        governor: Governor,
        memory: Memory,
        schedule: Schedule,
        notify: Notify,
        *,
        chain_id: int,
        clock: Callable[[], int],
        first_block: int | None = None,
    ) -> None:
        self._schedule = schedule
        self._chain = chain
        self._governor = governor
        self._memory = memory
        self._notify = notify
        self._chain_id = chain_id
        self._clock = clock
        self._first_block = first_block

    def run(self) -> Report:
        """Judge all deployments, then replay logs, also where one of them was not to be judged.

        In this order, as a cloud ends what takes too long. Raises what `Governor.look`, the chain and the
        queue raise; operators are told before.
        """
        finalized, head = self._blocks()
        failure: DstackError | None = None
        drifts: Sequence[Drift] = ()
        try:
            drifts = self._governor.look(named=(finalized, head))
        except DstackError as error:
            failure = error
        for drift in drifts:
            self._notify(
                Notice(
                    code="governance.drift",
                    message=f"{drift.name} {drift.kind}{': ' + drift.reason if drift.reason else ''}",
                    severity="info" if drift.acted else "warning",
                    facts=msgspec.to_builtins(drift),
                )
            )
        replayed = number = 0
        try:
            replayed, number = self._replay(finalized, head)
        except DstackError as error:
            failure = failure or error
            self._notify(
                Notice(code=error.code, message=f"no logs are read: {error.message}", severity="alarm")
            )
        if failure is not None:
            raise failure
        return Report(replayed=replayed, cursor=number, drifts=tuple(drifts))

    def _blocks(self) -> tuple[BlockRef, BlockRef]:
        try:
            return self._chain.blocks(self._clock())
        except DstackError as error:
            self._notify(
                Notice(
                    code=error.code,
                    message=f"nothing can be decided, and no logs are read: {error.message}",
                    severity="alarm",
                )
            )
            raise

    def _replay(self, finalized: BlockRef, head: BlockRef) -> tuple[int, int]:
        cursor = self._memory.cursor()
        if cursor is not None and cursor.hash and not self._chain.is_canonical(_ref(cursor)):
            self._notify(
                Notice(
                    code="governance.cursor.orphaned",
                    message=f"block {cursor.number} was final, and is not on the chain any more",
                    severity="alarm",
                )
            )
            cursor = Cursor(max(cursor.number - RANGE, 0), "")
        first = finalized.number + 1 if self._first_block is None else self._first_block
        start = first if cursor is None else cursor.number + 1
        addresses = sorted({self._chain.kms, *self._governor.app_ids()})
        missed = Missed(self._memory, self._schedule, chain_id=self._chain_id, head=head.number)
        try:
            start = self._read(addresses, start, head.number, missed)
        finally:
            notice = missed.notice()
            if notice is not None:
                self._notify(notice)
        if start <= finalized.number:
            self._notify(
                Notice(
                    code="governance.logs.behind",
                    message=f"logs are read up to block {start - 1}, and {finalized.number} is final",
                    severity="warning",
                    facts={"block": start - 1, "final": finalized.number},
                )
            )
        # what is not final may be replaced, and is read again
        done = min(start - 1, finalized.number)
        if cursor is None or done > cursor.number:
            self._move(done, finalized)
        return missed.count, done

    def _read(self, addresses: Sequence[bytes], start: int, head: int, missed: Missed) -> int:
        """Read logs up to block `head`, and return the first block that was not read.

        A range that is too much is halved, and so are the next: providers bound how many blocks they search.
        A block that is too much by itself is passed over, and told: what it means is in the state, by which
        deployments are judged, and nobody can have logs stand still.
        """
        size = RANGE
        until = self._clock() + READ_SECONDS
        for _ in range(RANGES):
            if start > head or self._clock() > until:
                break
            last = min(start + size - 1, head)
            try:
                missed.take(self._chain.logs(addresses, start, last))
            except TooManyLogsError as error:
                if last > start:
                    size = (last - start + 1) // 2
                    continue
                if not error.is_oversize:
                    raise
                self._notify(
                    Notice(
                        code="governance.logs.oversize",
                        message=f"block {start} has more logs than are read: {error.message}",
                        severity="warning",
                        facts={"block": start},
                    )
                )
            start = last + 1
        return start

    def _move(self, number: int, finalized: BlockRef) -> None:
        known = finalized.hash.hex() if number == finalized.number else ""
        self._memory.move(Cursor(number, known))


def _ref(cursor: Cursor) -> BlockRef:
    return BlockRef(cursor.number, bytes.fromhex(cursor.hash))
