"""What hangs is waited for once in a while, and counts as not answering for the rest of the time."""

from collections.abc import Callable
from queue import SimpleQueue

import pytest

from shared.chain.header import BlockRef
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.breaker import REST_SECONDS, SLOW_SECONDS, Breaker, spare_endpoints
from shared.net.quorum import ChainQuorum
from tests.shared.net.hanging import PATIENCE, Asking, Clock, Hanging
from tests.shared.net.rpc_stand_ins import CHAIN_ID, StandIn, block_hash
from tests.shared.refusal import refuses

BLOCKS = BlockRef(100, block_hash(100)), BlockRef(164, block_hash(164))


class Site:
    """A quorum of two of three, of which the third hangs."""

    def __init__(self, quorum: int = 2) -> None:
        self.happened: SimpleQueue[str] = SimpleQueue()
        self.clock = Clock()
        self.others = StandIn("a"), StandIn("b")
        self.hanging = Hanging(StandIn("c"), self.happened)
        endpoints = spare_endpoints((*self.others, self.hanging), quorum, REST_SECONDS, self.clock)
        self.quorum = ChainQuorum(endpoints, chain_id=CHAIN_ID, quorum=quorum)

    def ask(self) -> Asking:
        return Asking(self.quorum.blocks, self.happened)

    def next(self) -> str:
        return self.happened.get(timeout=PATIENCE)

    def hang_once(self) -> None:
        asking = self.ask()
        assert self.next() == "hangs"
        self.hanging.time_out()
        assert self.next() == "done"
        assert asking.result == BLOCKS


@pytest.fixture
def site() -> Site:
    return Site()


def test_n57_an_endpoint_that_hangs_holds_up_one_question_and_no_further_one(site: Site) -> None:
    site.hang_once()
    for _ in range(3):
        asking = site.ask()
        assert site.next() == "done"
        assert asking.result == BLOCKS
    assert site.hanging.asked == 1


def test_it_is_asked_again_when_it_has_rested(site: Site) -> None:
    site.hang_once()
    site.clock.now += REST_SECONDS - 1
    site.ask()
    assert site.next() == "done"
    site.clock.now += 1
    site.ask()
    assert site.next() == "hangs"
    site.hanging.answer()
    assert site.next() == "done"
    # and from then on as any other
    site.ask()
    assert site.next() == "hangs"
    site.hanging.answer()
    assert site.next() == "done"


def test_one_question_finds_out_whether_it_is_back_and_the_others_go_without_it(site: Site) -> None:
    site.hang_once()
    site.clock.now += REST_SECONDS
    site.ask()
    assert site.next() == "hangs"
    other = site.ask()
    assert site.next() == "done"
    assert other.result == BLOCKS
    site.hanging.time_out()
    assert site.next() == "done"
    site.ask()
    assert site.next() == "done"
    assert site.hanging.asked == 2
    site.clock.now += REST_SECONDS
    site.ask()
    assert site.next() == "hangs"
    site.hanging.answer()
    assert site.next() == "done"


def test_n57_what_is_left_out_is_no_answer_and_too_few_refuse(site: Site) -> None:
    site.hang_once()
    site.others[0].failure = UnavailableError("net.unreachable", "down")
    with refuses("quorum.too_few", UnavailableError) as caught:
        site.quorum.blocks()
    assert "net.resting" in caught.value.message


def test_n57_one_that_cannot_be_spared_is_waited_for_each_time() -> None:
    site = Site(quorum=3)
    for _ in range(2):
        asking = site.ask()
        assert site.next() == "hangs"
        site.hanging.time_out()
        assert site.next() == "done"
        assert isinstance(asking.result, UnavailableError)
        assert asking.result.code == "quorum.too_few"
        assert "net.resting" not in asking.result.message


def failing(error: DstackError, *, after: float = 0.0) -> tuple[Breaker, Callable[[], object]]:
    clock = Clock()

    def question() -> object:
        clock.now += after
        raise error

    return Breaker("a", REST_SECONDS, clock), question


def test_what_rests_is_refused_with_a_code() -> None:
    breaker, question = failing(UnavailableError("net.timeout", "slow"))
    with refuses("net.timeout", UnavailableError):
        breaker.run(question)
    with refuses("net.resting", UnavailableError) as caught:
        breaker.run(question)
    assert "asked again in 10 seconds" in caught.value.message


@pytest.mark.parametrize(
    "error", [UnavailableError("net.unreachable", "no"), ProtocolError("rpc.malformed", "x")]
)
def test_what_fails_at_once_holds_nobody_up_and_is_asked_on(error: DstackError) -> None:
    breaker, question = failing(error)
    for _ in range(2):
        with refuses(error.code, type(error)):
            breaker.run(question)


def test_what_fails_late_for_another_reason_rests_too() -> None:
    breaker, question = failing(UnavailableError("net.unreachable", "no name"), after=SLOW_SECONDS)
    with refuses("net.unreachable", UnavailableError):
        breaker.run(question)
    with refuses("net.resting", UnavailableError):
        breaker.run(question)


def test_a_question_that_hung_before_others_were_answered_leaves_it_in() -> None:
    clock = Clock()
    breaker = Breaker("a", REST_SECONDS, clock)

    def hangs_while_it_comes_back() -> object:
        clock.now += 1
        breaker.run(lambda: None)
        clock.now += 4
        raise UnavailableError("net.timeout", "slow")

    with refuses("net.timeout", UnavailableError):
        breaker.run(hangs_while_it_comes_back)
    breaker.run(lambda: None)


def test_an_answer_that_comes_after_all_ends_the_rest() -> None:
    clock = Clock()
    breaker = Breaker("a", REST_SECONDS, clock)

    def answers_after_another_hung() -> None:
        with refuses("net.timeout", UnavailableError):
            breaker.run(failing(UnavailableError("net.timeout", "slow"))[1])

    breaker.run(answers_after_another_hung)
    breaker.run(lambda: None)
