"""The contracts' events, from as many requests as an endpoint wants, checked against what was asked."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from cli.gov.chain import Block, Contracts, as_hex
from shared.chain.events import Decoded, Event, decode_event, topics_of
from shared.errors import ConfigError, DstackError, ProtocolError
from shared.net.json_rpc import data, fields, quantity

# What most providers take in one request; one that takes less is asked for half of it, and again.
MAX_RANGE: Final = 10_000
_TOO_MUCH: Final = frozenset(
    {"rpc.error", "rpc.status", "rpc.malformed", "net.response.oversize", "net.timeout"}
)
_MAX_DATA: Final = 64 * 1024


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """One event: `contract` 20 bytes, hashes 32 bytes. (`block_hash`, `index`) names it for good."""

    contract: bytes
    decoded: Decoded
    block_number: int
    block_hash: bytes
    transaction_hash: bytes
    index: int

    @property
    def place(self) -> tuple[int, int]:
        """Where it is in the chain's order."""
        return self.block_number, self.index


def read_logs(
    contracts: Contracts, addresses: Collection[bytes], events: Iterable[Event], first: int, last: int
) -> list[Log]:
    """Return events of contracts in a range of blocks, both ends included, in the chain's order.

    Raises what the endpoint raises for a single block, and `ProtocolError("rpc.malformed")` for logs that
    were not asked for.
    """
    topics = topics_of(events)
    found: list[Log] = []
    span = MAX_RANGE
    while first <= last:
        end = min(last, first + span - 1)
        asked = {
            "address": [as_hex(one) for one in addresses],
            "topics": [[as_hex(topic) for topic in topics]],
            "fromBlock": hex(first),
            "toBlock": hex(end),
        }
        try:
            answer = contracts.endpoint.batch([("eth_getLogs", [asked])])[0]
        except DstackError as error:
            if error.code not in _TOO_MUCH or first == end:
                raise
            span = max(1, (end - first + 1) // 2)
            continue
        found += _logs(answer, addresses, topics, first, end)
        first = end + 1
    return sorted(found, key=lambda log: log.place)


def first_block(contracts: Contracts, address: bytes, at: Block) -> int:
    """Return the block in which a contract was made, found by halving.

    Raises `ConfigError("gov.from_block")` where the endpoint does not know old states.
    """
    low, high = 0, at.number
    while low < high:
        middle = (low + high) // 2
        try:
            answer = contracts.endpoint.batch([("eth_getCode", [as_hex(address), hex(middle)])])[0]
        except DstackError as error:
            if error.code not in {"rpc.error", "rpc.status"}:
                raise
            raise ConfigError(
                "gov.from_block",
                "the endpoint does not tell what code was in old blocks: name the contract's first block "
                "with --from-block",
            ) from error
        if data(answer, what="the code"):
            high = middle
        else:
            low = middle + 1
    return low


def require_canonical(contracts: Contracts, at: Block) -> None:
    """Raise `ProtocolError("gov.reorg")` where a block is no longer the chain's: ask again."""
    found = fields(
        contracts.endpoint.batch([("eth_getBlockByNumber", [hex(at.number), False])])[0], what="the block"
    )
    if data(found.get("hash"), what="the block hash", length=32) != at.hash:
        raise ProtocolError("gov.reorg", f"block {at.number} was replaced while it was read: ask again")


def _logs(
    answer: object, addresses: Collection[bytes], topics: Sequence[bytes], first: int, last: int
) -> list[Log]:
    if not isinstance(answer, list):
        raise ProtocolError("rpc.malformed", "the logs are no list")
    logs = [_log(one) for one in answer]
    known = set(topics)
    for log, topic in logs:
        if log.contract not in addresses or topic not in known or not first <= log.block_number <= last:
            raise ProtocolError("rpc.malformed", "the endpoint answered with a log that was not asked for")
    found = [log for log, _ in logs]
    if len({log.place for log in found}) != len(found):
        raise ProtocolError("rpc.malformed", "the endpoint answered with a log twice")
    return found


def _log(answer: object) -> tuple[Log, bytes]:
    one = fields(answer, what="a log")
    told = one.get("topics")
    if not isinstance(told, list) or len(told) > 4 or one.get("removed") is True:
        raise ProtocolError("rpc.malformed", "a log has no topics, too many, or is said to be removed")
    topics = [data(topic, what="a topic", length=32) for topic in told]
    raw = data(one.get("data"), what="a log's data")
    decoded = decode_event(topics, raw) if len(raw) <= _MAX_DATA else None
    if decoded is None:
        raise ProtocolError("rpc.malformed", "the endpoint answered with a log of another event")
    log = Log(
        contract=data(one.get("address"), what="a log's contract", length=20),
        decoded=decoded,
        block_number=quantity(one.get("blockNumber"), what="a log's block"),
        block_hash=data(one.get("blockHash"), what="a log's block hash", length=32),
        transaction_hash=data(one.get("transactionHash"), what="a log's transaction", length=32),
        index=quantity(one.get("logIndex"), what="a log's index"),
    )
    return log, topics[0]
