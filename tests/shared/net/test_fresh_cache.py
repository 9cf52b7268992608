"""What was fetched: renewed in time, one fetch at a time, the old one while a source is down, bounded."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from shared.errors import DstackError, InvalidEvidence, UnavailableError
from shared.net import fresh_cache
from shared.net.fresh_cache import MIN_INTERVAL, RENEWAL_MARGIN, RETRY_AFTER, FreshCache, SingleFlight

WAIT = 20.0
NOW = 1_767_225_600
REFRESH = 6 * 3600


class Statement(msgspec.Struct, frozen=True):
    """What a source says: `number` tells one from another, `ends` is its last second."""

    number: int
    ends: int = NOW + 7 * 86_400


class Source:
    """Gives statement after statement, or fails."""

    def __init__(self, life: int = 7 * 86_400) -> None:
        self.fetches = 0
        self.replaced: list[Statement | None] = []
        self.down = False
        self._life = life
        self.now = NOW

    def fetch(self, held: Statement | None) -> Statement:
        self.fetches += 1
        self.replaced.append(held)
        if self.down:
            raise UnavailableError("source.down", "the source is down")
        return Statement(self.fetches, self.now + self._life)


class Keeper:
    """A cache with one source."""

    def __init__(self, source: Source, size: int = 4) -> None:
        self.told: list[str] = []
        self.source = source
        self.cache: FreshCache[str, Statement] = FreshCache(
            size, refresh_after=REFRESH, ends=lambda found: found.ends, tell=self.told.append
        )

    def get(self, now: int, key: str = "key", check: Callable[[Statement], None] | None = None) -> int:
        def current(found: Statement) -> None:
            if now > found.ends:
                raise InvalidEvidence("statement.ended", "it is over")

        self.source.now = now
        return self.cache.get(key, now, fetch=self.source.fetch, check=check or current).number


def refused(keeper: Keeper, now: int, **more: str) -> str:
    with pytest.raises(DstackError) as caught:
        keeper.get(now, **more)
    return caught.value.code


def test_what_is_kept_is_used_until_it_is_due() -> None:
    keeper = Keeper(Source())
    assert [keeper.get(NOW), keeper.get(NOW + REFRESH - 1), keeper.get(NOW + REFRESH)] == [1, 1, 2]
    assert keeper.source.replaced == [None, Statement(1)]


def test_what_is_near_its_end_is_renewed_before() -> None:
    keeper = Keeper(Source(life=2 * RENEWAL_MARGIN))
    assert [keeper.get(NOW), keeper.get(NOW + RENEWAL_MARGIN - 1), keeper.get(NOW + RENEWAL_MARGIN)] == [
        1,
        1,
        2,
    ]


def test_a_source_that_has_nothing_longer_is_not_asked_each_time() -> None:
    keeper = Keeper(Source(life=RENEWAL_MARGIN // 2))
    assert [keeper.get(NOW), keeper.get(NOW + MIN_INTERVAL - 1), keeper.get(NOW + MIN_INTERVAL)] == [1, 1, 2]


def test_a_source_that_is_down_leaves_the_old_one_in_use_and_that_is_told() -> None:
    keeper = Keeper(Source())
    keeper.get(NOW)
    keeper.source.down = True
    assert keeper.get(NOW + REFRESH) == 1
    assert "source.down" in keeper.told[0]


def test_the_old_one_serves_until_its_end_and_not_longer() -> None:
    keeper = Keeper(Source(life=86_400))
    keeper.get(NOW)
    keeper.source.down = True
    assert keeper.get(NOW + 86_400) == 1
    assert refused(keeper, NOW + 86_400 + 1 + RETRY_AFTER) == "source.down"


def test_a_source_that_failed_is_left_alone_for_a_while() -> None:
    keeper = Keeper(Source())
    keeper.source.down = True
    assert refused(keeper, NOW) == "source.down"
    assert refused(keeper, NOW + RETRY_AFTER - 1) == "source.down"
    assert keeper.source.fetches == 1
    keeper.source.down = False
    assert keeper.get(NOW + RETRY_AFTER) == 2


def test_a_failure_at_another_time_does_not_count() -> None:
    """Audits judge at times of their own: what failed in one's future says nothing now."""
    keeper = Keeper(Source())
    keeper.source.down = True
    assert refused(keeper, NOW + 86_400) == "source.down"
    keeper.source.down = False
    assert keeper.get(NOW) == 2


def test_what_was_fetched_in_the_future_is_renewed() -> None:
    keeper = Keeper(Source())
    keeper.get(NOW + 86_400)
    assert keeper.get(NOW) == 2


def test_what_a_caller_refuses_is_not_kept() -> None:
    def refuse(_: Statement) -> None:
        raise InvalidEvidence("statement.refused", "no")

    keeper = Keeper(Source())
    with pytest.raises(InvalidEvidence) as caught:
        keeper.get(NOW, check=refuse)
    assert caught.value.code == "statement.refused"
    assert len(keeper.cache) == 0
    assert keeper.get(NOW) == 2


def test_what_a_caller_refuses_does_not_replace_what_others_use() -> None:
    def only_first(found: Statement) -> None:
        if found.number != 1:
            raise InvalidEvidence("statement.refused", "no")

    keeper = Keeper(Source())
    keeper.get(NOW)
    assert keeper.get(NOW + REFRESH, check=only_first) == 1
    assert "statement.refused" in keeper.told[0]


def test_memory_is_bounded() -> None:
    keeper = Keeper(Source(), size=2)
    for key in ("a", "b", "c", "a"):
        keeper.get(NOW, key)
    assert (len(keeper.cache), keeper.source.fetches) == (2, 4)


class Gate:
    """A fetch that waits until it is let go."""

    def __init__(self, result: Statement | DstackError) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.fetches = 0
        self._result = result

    def fetch(self, _held: Statement | None) -> Statement:
        self.fetches += 1
        self.begun.set()
        assert self.go.wait(WAIT)
        if isinstance(self._result, DstackError):
            raise self._result
        return self._result


def accept(_: Statement) -> None:
    """Refuse nothing."""


def test_while_one_thread_renews_the_others_use_what_is_held() -> None:
    keeper = Keeper(Source())
    keeper.get(NOW)
    gate = Gate(Statement(2))
    late = NOW + REFRESH
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(keeper.cache.get, "key", late, fetch=gate.fetch, check=accept)
        assert gate.begun.wait(WAIT)
        assert keeper.get(late) == 1
        gate.go.set()
        assert renewal.result(WAIT).number == 2
    assert keeper.source.fetches == 1


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Is released by each thread that begins to wait for another one's result."""
    semaphore = threading.Semaphore(0)

    class Watched(Future[object]):
        def result(self, timeout: float | None = None) -> object:
            semaphore.release()
            return super().result(timeout)

    monkeypatch.setattr(fresh_cache, "Future", Watched)
    return semaphore


def test_threads_that_hold_nothing_share_one_fetch(waiting: threading.Semaphore) -> None:
    flights: SingleFlight[str, Statement] = SingleFlight()
    gate = Gate(Statement(7))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(flights.run, "key", lambda: gate.fetch(None)) for _ in range(4)]
        for _ in range(3):
            assert waiting.acquire(timeout=WAIT)
        assert flights.is_flying("key")
        assert flights.run("another", lambda: Statement(1)) == Statement(1)
        gate.go.set()
        assert [answer.result(WAIT) for answer in answers] == [Statement(7)] * 4
    assert not flights.is_flying("key")
    assert gate.fetches == 1


def test_threads_that_wait_share_the_failure(waiting: threading.Semaphore) -> None:
    flights: SingleFlight[str, Statement] = SingleFlight()
    gate = Gate(UnavailableError("source.down", "the source is down"))
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(flights.run, "key", lambda: gate.fetch(None)) for _ in range(2)]
        assert waiting.acquire(timeout=WAIT)
        gate.go.set()
        for answer in answers:
            with pytest.raises(UnavailableError):
                answer.result(WAIT)
    assert gate.fetches == 1
    assert flights.run("key", lambda: Statement(1)) == Statement(1)
