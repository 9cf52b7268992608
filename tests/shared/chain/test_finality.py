"""Blocks are remembered for exactly so long, and failures never."""

import pytest

from shared.chain.finality import RememberedBlocks
from shared.chain.header import BlockRef
from shared.errors import DstackError, UnavailableError
from tests.shared.refusal import refuses


class Source:
    """Names a newer pair of blocks each time."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: DstackError | None = None

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return BlockRef(self.asked, bytes(32)), BlockRef(self.asked + 2, bytes(32))


def test_asks_each_time_where_nothing_is_to_be_remembered() -> None:
    source = Source()
    remembered = RememberedBlocks(source, 0, lambda: 100)
    assert [remembered.blocks()[0].number for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(("later", "asked"), [(0, 1), (4, 1), (5, 2), (-1, 2)])
def test_n58_blocks_are_remembered_for_so_long_and_no_longer(later: int, asked: int) -> None:
    """Nor where the clock went back: then their age is not known."""
    source, clock = Source(), [100]
    remembered = RememberedBlocks(source, 5, lambda: clock[0])
    remembered.blocks()
    clock[0] += later
    assert remembered.blocks()[0].number == asked


def test_the_age_is_counted_from_when_they_were_asked_for() -> None:
    clock = [100]

    class Slow(Source):
        def blocks(self) -> tuple[BlockRef, BlockRef]:
            clock[0] += 5
            return super().blocks()

    source = Slow()
    remembered = RememberedBlocks(source, 5, lambda: clock[0])
    remembered.blocks()
    remembered.blocks()
    assert source.asked == 2


def test_n57_a_failure_is_not_remembered_and_no_blocks_outlive_it() -> None:
    source, clock = Source(), [100]
    remembered = RememberedBlocks(source, 5, lambda: clock[0])
    remembered.blocks()
    clock[0] += 5
    source.failure = UnavailableError("quorum.disagreement", "two camps")
    for _ in range(2):
        with refuses("quorum.disagreement", UnavailableError):
            remembered.blocks()
    source.failure = None
    assert remembered.blocks()[0].number == 4
