"""What a look does where others look at the same time, and where endpoints differ about one view alone."""

from collections.abc import Sequence

import pytest

from functions.deploy.record import Step
from functions.governance.chain import View
from shared.boot_info import BootInfo
from shared.chain.header import BlockRef
from shared.errors import UnavailableError
from tests.functions.deploy.memory_cloud import NOW
from tests.functions.governance.world import World, settle
from tests.shared.refusal import refuses

HASH = "33" * 32


def test_n57_a_disagreement_about_the_final_block_alone_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(HASH, step=Step.AWAIT_APPROVAL, due=NOW + 999)
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    world.chain.mine()
    view = world.chain.view

    def disagreeing(block: BlockRef, workloads: Sequence[BootInfo]) -> View:
        is_final = block.number == world.chain.final
        return View(block, (None,) * len(workloads), "1 of 2") if is_final else view(block, workloads)

    monkeypatch.setattr(world.chain, "view", disagreeing)
    with refuses("governance.quorum.disagreement", UnavailableError):
        world.governor.look()
    assert world.codes() == ["governance.quorum.disagreement"]
    assert world.notices[-1].severity == "alarm"
    assert world.advanced == []


def test_those_that_were_stopped_together_are_asked_about_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.chain.mine(remove=HASH)
    for name in ("one", "two", "three"):
        world.deploy(HASH, name)
    world.governor.look()
    asked: list[BlockRef] = []
    is_canonical = world.chain.is_canonical

    def count(block: BlockRef) -> bool:
        asked.append(block)
        return is_canonical(block)

    monkeypatch.setattr(world.chain, "view", lambda block, asked: View(block, ("no",) * len(asked)))
    monkeypatch.setattr(world.chain, "is_canonical", count)
    world.governor.look()
    assert len(asked) == 1


def test_a_chain_that_has_not_come_to_a_quarantines_block_lifts_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    world.deploy(HASH)
    world.chain.mine()
    world.chain.mine(remove=HASH)
    world.governor.look()
    settle(world.store)
    world.chain.lag = 1
    monkeypatch.setattr(world.chain, "is_canonical", lambda block: block.number < world.chain.head)
    world.governor.look()
    assert world.get().quarantine is not None
