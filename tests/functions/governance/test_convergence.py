"""Deliveries in any order, repeated, of blocks that come and go, to handlers at once, come to one state."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.governance.delivery import LogHint
from shared.errors import DstackError
from tests.functions.governance.world import APP, MemoryChain, World, plain

HASHES = [f"{one:02x}" * 32 for one in range(1, 9)]
NAMES = [f"web{number}" for number in range(len(HASHES))]
ONE_APP = dict.fromkeys(HASHES, APP)
OWN_APPS = {one: bytes.fromhex(one[:40]) for one in HASHES}
AT_ONCE = 4
DELIVERIES = 1000
MANY = 10_000
"""Tries after which a test has failed, so that it does not hang."""

Change = tuple[str, bool]
"""A compose hash, and whether it is allowed or not any more."""


def changes(chance: random.Random, count: int) -> list[Change]:
    return [(chance.choice(HASHES), chance.random() < 0.5) for _ in range(count)]


def mine(chain: MemoryChain, change: Change, apps: dict[str, bytes], fork: str = "") -> list[LogHint]:
    compose, is_added = change
    kind = "add" if is_added else "remove"
    hint = chain.mine(**{kind: compose}, app=apps[compose], fork=fork)
    assert hint is not None
    return [hint]


def begin(directory: Path, apps: dict[str, bytes]) -> World:
    """Return a world in which one deployment runs of each hash."""
    directory.mkdir()
    world = World(directory)
    for compose, name in zip(HASHES, NAMES, strict=True):
        world.chain.mine(add=compose)
        world.deploy(compose, name, app_id=apps[compose].hex())
    world.chain.final = world.chain.head
    return world


def held(world: World) -> set[str]:
    return {name for name in NAMES if world.get(name).quarantine is not None}


def revoked(world: World) -> set[str]:
    allowed = world.chain.allowed[-1]
    return {name for name, one in zip(NAMES, HASHES, strict=True) if one not in allowed}


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_deliveries_in_any_order_come_to_the_same(tmp_path: Path, seed: int) -> None:
    """Deliveries are shuffled and repeated while the chain goes on, and endpoints lag behind it."""
    chance = random.Random(seed)  # noqa: S311 - no key is made of it
    mixed, ordered = begin(tmp_path / "mixed", ONE_APP), begin(tmp_path / "ordered", ONE_APP)
    script = changes(chance, 60)
    for change in script:
        [hint] = mine(ordered.chain, change, ONE_APP)
        ordered.post(plain(hint, id=hint.block_hash.hex()))
        ordered.drain()
        ordered.chain.final = ordered.chain.head
        ordered.governor.look()
    hints = ordered.chain.events[len(HASHES) :]
    deliveries = hints + chance.choices(hints, k=DELIVERIES - len(hints))
    chance.shuffle(deliveries)
    for number, hint in enumerate(deliveries):
        if number % 8 == 0 and script:
            mine(mixed.chain, script.pop(0), ONE_APP)
            mixed.chain.final = max(mixed.chain.final, mixed.chain.head - chance.randrange(4))
        mixed.post(plain(hint, id=f"{hint.block_hash.hex()}{chance.randrange(3)}"))
        if chance.random() < 0.1:
            mixed.drain()
    assert not script
    mixed.chain.final = mixed.chain.head
    while mixed.queue:
        mixed.drain()
    # by deliveries alone nothing runs that may not; what became final after its last look is the sweep's
    assert held(mixed) >= held(ordered)
    mixed.governor.look()
    assert held(mixed) == held(ordered)
    for name in NAMES:
        assert mixed.get(name).effective_goal is ordered.get(name).effective_goal


class Flap(msgspec.Struct, frozen=True):
    """The newest `depth` blocks are replaced by others, and those by the first ones again."""

    depth: int
    instead: tuple[Change, ...]


def script_with_flaps(chance: random.Random) -> list[Change | Flap]:
    found: list[Change | Flap] = []
    for change in changes(chance, 60):
        found.append(change)
        if len(found) > 4 and chance.random() < 0.3:
            found.append(Flap(chance.randint(1, 3), tuple(changes(chance, chance.randint(1, 4)))))
    return found


def dropped(hints: Sequence[LogHint]) -> list[LogHint]:
    return [hint.opposite for hint in hints]


def happens(chain: MemoryChain, script: Sequence[Change | Flap]) -> Iterator[list[LogHint]]:
    """Change the chain step by step; each yields what providers tell of it."""
    for number, step in enumerate(script):
        if not isinstance(step, Flap):
            yield mine(chain, step, OWN_APPS)
            continue
        first = chain.reorganise(step.depth)
        yield dropped(first.events)
        for change in step.instead:
            yield mine(chain, change, OWN_APPS, f"fork {number}")
        yield dropped(chain.reorganise(len(step.instead)).events)
        chain.restore(first)
        yield first.events
    for _ in range(4):  # so that it is as long as it ever was
        chain.mine()


class Providers:
    """Deliver what becomes of one log in its order, and logs in any order; whatever was sent comes again."""

    def __init__(self, world: World, pool: ThreadPoolExecutor, chance: random.Random) -> None:
        self._world = world
        self._pool = pool
        self._chance = chance
        self._waiting: dict[bytes, deque[dict[str, Any]]] = {}
        self._last: dict[bytes, Future[None]] = {}
        self._sent: list[dict[str, Any]] = []
        self._running: deque[Future[None]] = deque()
        self._told = 0
        self.count = 0

    def hear(self, hints: Sequence[LogHint]) -> None:
        for hint in hints:
            self._told += 1
            self._waiting.setdefault(hint.block_hash, deque()).append(plain(hint, id=str(self._told)))

    def send(self) -> bool:
        """Deliver one thing that waits, one that was delivered before, and have a look made."""
        logs = [log for log, waiting in self._waiting.items() if waiting]
        if logs:
            log = self._chance.choice(logs)
            document = self._waiting[log].popleft()
            self._last[log] = self._start(document, self._last.get(log))
            self._sent.append(document)
        if self._sent:
            self._start(self._chance.choice(self._sent), None)
        self._running.append(self._pool.submit(work, self._world))
        while len(self._running) > 3 * AT_ONCE:
            self._running.popleft().result()
        return bool(logs)

    def catch_up(self) -> None:
        """Deliver all that waits, and have each look made that can be."""
        while self.send():
            pass
        while self._running:
            self._running.popleft().result()
        for _ in range(len(self._world.queue)):
            work(self._world)

    def finish(self) -> None:
        while self.count < DELIVERIES:
            self.catch_up()
        for _ in range(MANY):
            if not self._world.queue:
                return
            work(self._world)
        pytest.fail("looks that never succeed")

    def _start(self, document: dict[str, Any], before: Future[None] | None) -> Future[None]:
        self.count += 1
        started = self._pool.submit(deliver, self._world, document, before)
        self._running.append(started)
        return started


def deliver(world: World, document: dict[str, Any], before: Future[None] | None) -> None:
    if before is not None:
        before.result()
    for _ in range(MANY):
        answer = world.post(document)
        if answer.status == 200:
            return
        assert answer.body == {"code": "governance.busy"}
    pytest.fail("a delivery that is never taken")


def work(world: World) -> None:
    try:
        name = world.queue.pop(0)
    except IndexError:
        return
    try:
        world.service.act(name)
    except DstackError:
        world.queue.append(name)


@pytest.mark.parametrize("seed", range(2))
def test_handlers_at_once_of_blocks_that_come_and_go_come_to_the_same(tmp_path: Path, seed: int) -> None:
    """What is not allowed is stopped by its deliveries; what a late look stopped, the next sweep frees."""
    chance = random.Random(seed)  # noqa: S311 - no key is made of it
    script = script_with_flaps(chance)
    mixed, ordered = begin(tmp_path / "mixed", OWN_APPS), begin(tmp_path / "ordered", OWN_APPS)
    for number, hints in enumerate(happens(ordered.chain, script)):
        for hint in hints:
            ordered.post(plain(hint, id=f"{number} {hint.key(0)}"))
        ordered.drain()
    ordered.chain.final = ordered.chain.head
    ordered.governor.look()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        providers = Providers(mixed, pool, chance)
        for hints in happens(mixed.chain, script):
            providers.hear(hints)
            mixed.chain.final = max(mixed.chain.final, mixed.chain.head - chance.randint(4, 6))
            mixed.chain.lag = chance.randrange(3)
            for _ in range(chance.randrange(4)):
                providers.send()
            if chance.random() < 0.5:
                mixed.chain.lag = 0
                providers.catch_up()
                assert held(mixed) >= revoked(mixed)
        mixed.chain.lag = 0
        mixed.chain.final = mixed.chain.head
        providers.finish()
    assert providers.count >= DELIVERIES
    assert held(mixed) >= revoked(mixed)
    mixed.service.reconcile()
    assert held(mixed) == revoked(mixed) == held(ordered)
