"""Which blocks count, whoever says so.

The decision and whoever asks for one know this interface alone. Behind it is a quorum of endpoints
(`shared.net.quorum.ChainQuorum`); a light client, which follows the signatures of a sync committee, would
stand here too: it names the block that its finality update carries, and the newest one that was signed.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from shared.chain.header import BlockRef


class FinalitySource(Protocol):
    """Names blocks of one chain. Safe to share between threads."""

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        """Return the newest finalised block and the newest block, in this order.

        A finalised block is never older than one that was named before. Raises `DstackError` where no two
        blocks can be named: nothing is decided then.
        """
        ...


class RememberedBlocks:
    """The blocks of another source, asked for again after `seconds`; 0 asks each time.

    So a revocation stays unseen for so much longer. `now` is unix seconds. A failure is not remembered.
    """

    def __init__(self, source: FinalitySource, seconds: int, now: Callable[[], int]) -> None:
        self._source = source
        self._seconds = seconds
        self._now = now
        self._known: tuple[int, tuple[BlockRef, BlockRef]] | None = None
        self._lock = threading.Lock()

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        """Return the blocks; raises as the source does."""
        asked_at = self._now()
        with self._lock:
            known = self._known
        # a clock that went back tells nothing about an age
        if known is not None and 0 <= asked_at - known[0] < self._seconds:
            return known[1]
        blocks = self._source.blocks()
        with self._lock:
            # a slower thread may have asked earlier
            if self._known is None or self._known[0] <= asked_at:
                self._known = (asked_at, blocks)
        return blocks
