"""N-57: which block is final is what a quorum says, and whatever is wrong has its own code."""

from collections.abc import Sequence

import pytest

from shared.chain.header import BlockRef
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc
from shared.net.quorum import ChainQuorum
from tests.shared.net.rpc_stand_ins import CHAIN_ID, StandIn, block_hash

DOWN = UnavailableError("net.timeout", "too slow")


def quorum_of(*nodes: StandIn, quorum: int = 2) -> ChainQuorum:
    return ChainQuorum(nodes, chain_id=CHAIN_ID, quorum=quorum)


def refusal(quorum: ChainQuorum) -> str:
    with pytest.raises(DstackError) as caught:
        quorum.blocks()
    return caught.value.code


def honest(number: int) -> BlockRef:
    return BlockRef(number, block_hash(number))


def test_names_the_blocks_that_all_agree_on() -> None:
    assert quorum_of(StandIn("a"), StandIn("b")).blocks() == (honest(100), honest(164))


def test_takes_the_lower_number_where_one_lags() -> None:
    quorum = quorum_of(StandIn("a", finalized=100, head=164), StandIn("b", finalized=98, head=160))
    assert quorum.blocks() == (honest(98), honest(160))


def test_takes_the_newest_number_that_enough_have_reached() -> None:
    nodes = (
        StandIn("a", finalized=100, head=170),
        StandIn("b", finalized=90),
        StandIn("c", finalized=99, head=168),
    )
    assert quorum_of(*nodes).blocks() == (honest(99), honest(168))


def test_one_endpoint_that_runs_ahead_is_not_followed() -> None:
    liar = StandIn("liar", finalized=5000, head=5000, fork="evil")
    assert quorum_of(StandIn("a"), liar, StandIn("c")).blocks() == (honest(100), honest(164))


def test_n57_one_dead_endpoint_is_tolerated_when_enough_are_left() -> None:
    dead = StandIn("dead")
    dead.failure = DOWN
    assert quorum_of(StandIn("a"), dead, StandIn("c")).blocks() == (honest(100), honest(164))


@pytest.mark.parametrize(
    "failure",
    [DOWN, UnavailableError("rpc.status", "http 500"), ProtocolError("rpc.malformed", "truncated")],
    ids=["slow", "500", "truncated"],
)
def test_n57_too_few_endpoints_are_refused(failure: DstackError) -> None:
    dead = StandIn("dead")
    dead.failure = failure
    with pytest.raises(UnavailableError) as caught:
        quorum_of(StandIn("a"), dead).blocks()
    assert caught.value.code == "quorum.too_few"
    assert failure.code in caught.value.message


def test_n57_a_wrong_chain_id_is_refused() -> None:
    assert refusal(quorum_of(StandIn("a"), StandIn("b", chain_id=1))) == "quorum.chain_id"


def test_an_endpoint_of_another_chain_does_not_count_among_others() -> None:
    quorum = quorum_of(StandIn("a"), StandIn("b", chain_id=1), StandIn("c"))
    assert quorum.blocks() == (honest(100), honest(164))


def test_n57_disagreement_about_the_finalised_block_is_refused() -> None:
    assert refusal(quorum_of(StandIn("a"), StandIn("b", fork="evil"))) == "quorum.disagreement"


def test_n57_disagreement_about_the_head_is_refused() -> None:
    assert refusal(quorum_of(StandIn("a"), StandIn("b", fork="evil", fork_at=150))) == "quorum.disagreement"


def test_two_equal_camps_are_no_agreement() -> None:
    camps = [StandIn("a"), StandIn("b"), StandIn("c", fork="evil"), StandIn("d", fork="evil")]
    assert refusal(quorum_of(*camps)) == "quorum.disagreement"


def test_a_lagging_liar_cannot_outvote_the_quorum() -> None:
    """It claims an old number with its own hash: the honest ones are asked for that number too."""
    liar = StandIn("liar", finalized=60, head=60, fork="evil")
    assert quorum_of(StandIn("a"), StandIn("b"), liar).blocks() == (honest(100), honest(164))


def test_n57_a_regressed_finalised_number_is_refused() -> None:
    nodes = StandIn("a"), StandIn("b")
    quorum = quorum_of(*nodes)
    quorum.blocks()
    nodes[0].finalized = 99
    with pytest.raises(InvalidEvidence) as caught:
        quorum.blocks()
    assert caught.value.code == "quorum.finalized.regressed"


def test_n57_a_reorganised_finalised_block_is_refused() -> None:
    nodes = StandIn("a"), StandIn("b")
    quorum = quorum_of(*nodes)
    quorum.blocks()
    for node in nodes:
        node.fork, node.fork_at = "evil", 100
    assert refusal(quorum) == "quorum.finalized.conflict"


def test_a_reorganised_head_is_followed() -> None:
    nodes = StandIn("a"), StandIn("b")
    quorum = quorum_of(*nodes)
    quorum.blocks()
    for node in nodes:
        node.fork, node.fork_at = "reorg", 150
    assert quorum.blocks() == (honest(100), BlockRef(164, block_hash(164, "reorg")))


def test_a_head_below_the_finalised_block_is_refused() -> None:
    class Upside(StandIn):
        """Claims a finalised block above its own head."""

        def batch(self, calls: Sequence[Call]) -> list[object]:
            return [hex(self.chain_id), self.block(100), self.block(50)][: len(calls)]

    assert refusal(quorum_of(Upside("a"), Upside("b"))) == "quorum.disagreement"


class Malformed(StandIn):
    """Answers every block with one value."""

    value: object = None

    def block(self, number: int) -> object:
        del number
        return self.value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "0x1",
        {"number": "0x64"},
        {"number": 100, "hash": "0x" + "11" * 32},
        {"number": "0x64", "hash": "0x" + "11" * 31},
        {"number": "0x" + "f" * 17, "hash": "0x" + "11" * 32},
        {"number": "-0x64", "hash": "0x" + "11" * 32},
    ],
)
def test_n57_malformed_blocks_do_not_count(value: object) -> None:
    liar = Malformed("liar")
    liar.value = value
    assert refusal(quorum_of(StandIn("a"), liar)) == "quorum.too_few"


class Contradicting(StandIn):
    """Answers a request for a number with another block."""

    def batch(self, calls: Sequence[Call]) -> list[object]:
        return [self.block(7)] if len(calls) == 1 else super().batch(calls)


def test_a_block_of_another_number_is_no_vote() -> None:
    ahead = Contradicting("ahead", finalized=101, head=165)
    assert refusal(quorum_of(StandIn("a"), ahead)) == "quorum.disagreement"


def test_refuses_urls_of_one_host() -> None:
    with pytest.raises(ConfigError) as caught:
        quorum_of(StandIn("a"), StandIn("a"))
    assert caught.value.code == "quorum.config.hosts"


@pytest.mark.parametrize("again", ["https://rpc.example.com./b", "https://RPC.Example.com:444/b"])
def test_one_host_written_two_ways_counts_once(again: str) -> None:
    http = HttpClient(DirectDialer(), ca_roots=None, timeout=1, max_bytes=1)
    with pytest.raises(ConfigError) as caught:
        ChainQuorum([JsonRpc(url, http) for url in ("https://rpc.example.com/a", again)], chain_id=CHAIN_ID)
    assert caught.value.code == "quorum.config.hosts"


def test_refuses_no_endpoints() -> None:
    with pytest.raises(ConfigError) as caught:
        quorum_of()
    assert caught.value.code == "quorum.config.hosts"


@pytest.mark.parametrize("quorum", [0, 1, 3])
def test_refuses_a_quorum_of_one_or_of_more_than_there_are(quorum: int) -> None:
    with pytest.raises(ConfigError) as caught:
        quorum_of(StandIn("a"), StandIn("b"), quorum=quorum)
    assert caught.value.code == "quorum.config.size"


def test_refuses_plain_http() -> None:
    with pytest.raises(ConfigError) as caught:
        quorum_of(StandIn("a"), StandIn("b", secure=False))
    assert caught.value.code == "quorum.config.plain_http"


def test_a_simulation_may_use_one_plain_endpoint() -> None:
    quorum = ChainQuorum(
        [StandIn("a", secure=False)], chain_id=CHAIN_ID, quorum=1, allow_plain_http=True, allow_single=True
    )
    assert quorum.blocks() == (honest(100), honest(164))
