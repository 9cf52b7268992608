"""What a look does where others look at the same time, and where endpoints differ about one view alone."""

from collections.abc import Sequence

import pytest

from functions.deploy.record import Step
from functions.governance.chain import View
from shared.boot_info import BootInfo
from shared.chain.header import BlockRef
from shared.chain.rules import DEVICE_NOT_ALLOWED
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


def held_world(world: World) -> World:
    """Return a world in which what ran was revoked and is stopped, by a block that is final."""
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    world.deploy(HASH)
    world.chain.mine(remove=HASH)
    world.governor.look()
    settle(world.store)
    world.chain.mine()
    return world


def test_a_look_that_read_less_lifts_nothing_that_another_found_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_world(world)
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    views = world.chain.view

    def another_looks_meanwhile(block: BlockRef, workloads: Sequence[BootInfo]) -> View:
        view = views(block, workloads)
        if block.number == world.chain.final:
            monkeypatch.setattr(world.chain, "view", views)
            world.chain.mine(remove=HASH)
            assert not world.governor.look()
        return view

    monkeypatch.setattr(world.chain, "view", another_looks_meanwhile)
    world.chain.mine()
    [drift] = world.governor.look()
    assert (drift.kind, drift.acted) == ("stopped_what_is_allowed", False)
    assert world.get().quarantine is not None
    assert "governance.freed" not in world.codes()


@pytest.mark.parametrize("has_started", [False, True])
def test_what_was_let_go_by_who_read_less_is_stopped_by_who_reads_more(
    world: World, monkeypatch: pytest.MonkeyPatch, *, has_started: bool
) -> None:
    held_world(world)
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    world.chain.mine()
    before = world.chain.ref(world.chain.final), world.chain.ref(world.chain.head)
    world.chain.mine(remove=HASH)
    views = world.chain.view

    def another_frees_it_meanwhile(block: BlockRef, workloads: Sequence[BootInfo]) -> View:
        view = views(block, workloads)
        monkeypatch.setattr(world.chain, "view", views)
        world.governor.look(named=before)
        assert world.get().quarantine is None
        if has_started:
            settle(world.store)
        return view

    monkeypatch.setattr(world.chain, "view", another_frees_it_meanwhile)
    [drift] = world.governor.look()
    assert (drift.kind, drift.acted) == ("runs_what_is_not_allowed", True)
    assert world.get().quarantine is not None
    assert world.codes()[-2:] == ["governance.freed", "governance.stopped"]


def test_a_quarantine_is_held_on_where_its_block_is_final_and_told_once(world: World) -> None:
    held_world(world)
    first = world.get()
    assert first.quarantine is not None
    world.governor.look()
    assert world.get() == first
    world.chain.final = first.quarantine.block_number
    world.governor.look()
    now = world.get().quarantine
    assert now is not None
    assert now.block_number == world.chain.head
    assert world.codes() == ["governance.stopped"]


def hide_devices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the app list its devices, of which this machine is none that anyone knows."""
    view = world.chain.view

    def untold(block: BlockRef, workloads: Sequence[BootInfo]) -> View:
        seen = view(block, workloads)
        return View(block, tuple(one or DEVICE_NOT_ALLOWED for one in seen.verdicts if one is not None))

    monkeypatch.setattr(world.chain, "view", untold)


def test_what_was_stopped_on_a_device_that_nobody_knows_is_let_go_when_it_is_allowed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_devices(world, monkeypatch)
    held_world(world)
    world.chain.mine(add=HASH)
    world.governor.look()
    assert world.get().quarantine is not None  # it is not final
    world.chain.mine()
    world.chain.final = world.chain.head
    world.governor.look()
    assert world.get().quarantine is None


def test_an_orphaned_stop_on_a_device_that_nobody_knows_is_undone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_devices(world, monkeypatch)
    held_world(world)
    world.chain.reorganise(2)
    for _ in range(3):
        world.chain.mine(fork="other")
    world.governor.look()
    assert world.get().quarantine is None


def test_a_device_that_nobody_knows_resumes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_devices(world, monkeypatch)
    world.chain.mine(add=HASH)
    world.chain.final = world.chain.head
    world.deploy(HASH, step=Step.AWAIT_APPROVAL, due=NOW + 999)
    assert not world.governor.look()
    assert world.advanced == []
