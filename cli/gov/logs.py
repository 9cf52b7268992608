"""The contracts' events, from as many requests as an endpoint wants, checked against what was asked."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from cli.gov.chain import Block, Contracts, as_hex
from shared.chain.events import Decoded, Event, decode_event, event_of, topics_of
from shared.errors import ConfigError, DstackError, ProtocolError
from shared.net.json_rpc import data, fields, quantity

# What most providers take in one request; one that takes less is asked for half of it, and again.
MAX_RANGE: Final = 10_000
_TOO_MUCH: Final = frozenset(
    {"rpc.error", "rpc.status", "rpc.malformed", "net.response.oversize", "net.timeout"}
)
_MAX_DATA: Final = 64 * 1024
# What one contract can bring about by all that it logs in one block.
_FLOODED: Final = frozenset({"rpc.error", "rpc.malformed", "net.response.oversize"})
# Contracts in one request: anybody can register an app, and endpoints bound a filter.
MAX_CONTRACTS: Final = 500

# Anybody can register a contract that logs what ours never would: it is told, and hides nothing else.
MALFORMED: Final = Event("MalformedLog", "app", (("of", "string"), ("why", "string")))
UNREAD: Final = Event("LogsNotRead", "app", (("why", "string"),))


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
    contracts: Contracts,
    addresses: Collection[bytes],
    events: Iterable[Event],
    first: int,
    last: int,
    *,
    tolerant: bool = False,
) -> list[Log]:
    """Return events of contracts in a range of blocks, both ends included, in the chain's order.

    Where `tolerant`, a log of an app that our contracts would not have written is a `MALFORMED` one, and
    an app's block that is too much to be read is an `UNREAD` one, of index -1 and no transaction. The KMS
    contract's own logs are held to the form always.

    Raises what the endpoint raises for a single block, `ProtocolError("rpc.malformed")` for logs that were
    not asked for, and as `decode_event`.
    """
    topics = topics_of(events)
    ordered = sorted(addresses)
    found: list[Log] = []
    for start in range(0, len(ordered), MAX_CONTRACTS):
        reader = _Reader(contracts, topics, tolerant=tolerant)
        found += reader.read(ordered[start : start + MAX_CONTRACTS], first, last)
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


class _Reader:
    def __init__(self, contracts: Contracts, topics: Sequence[bytes], *, tolerant: bool) -> None:
        self._contracts = contracts
        self._topics = topics
        self._tolerant = tolerant

    def read(self, addresses: Sequence[bytes], first: int, last: int) -> list[Log]:
        """Ask for as many blocks at once as the endpoint answers for."""
        found: list[Log] = []
        span = MAX_RANGE
        while first <= last:
            end = min(last, first + span - 1)
            try:
                found += self._ask(addresses, first, end)
            except DstackError as error:
                if error.code not in _TOO_MUCH or (first == end and not self._tolerant):
                    raise
                if first < end:
                    span = max(1, (end - first + 1) // 2)
                    continue
                found += self._parted(addresses, first, error)
            first = end + 1
        return found

    def _parted(self, addresses: Sequence[bytes], number: int, error: DstackError) -> list[Log]:
        """Read one block in parts, so that a contract that floods it hides its own logs alone."""
        kms = self._contracts.kms
        others = [one for one in addresses if one != kms]
        if error.code not in _FLOODED or not others:
            raise error
        if len(addresses) == 1:
            return [self._unread(addresses[0], number, error)]
        half = len(others) // 2
        parts = ([kms], others) if kms in addresses else (others[:half], others[half:])
        found: list[Log] = []
        for part in parts:
            try:
                found += self._ask(part, number, number)
            except DstackError as again:
                found += self._parted(part, number, again)
        return found

    def _ask(self, addresses: Sequence[bytes], first: int, last: int) -> list[Log]:
        asked = {
            "address": [as_hex(one) for one in addresses],
            "topics": [[as_hex(topic) for topic in self._topics]],
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        answer = self._contracts.endpoint.batch([("eth_getLogs", [asked])])[0]
        if not isinstance(answer, list):
            raise ProtocolError("rpc.malformed", "the logs are no list")
        logs = [self._log(one) for one in answer]
        known, asked_of = set(self._topics), set(addresses)
        for log, topic in logs:
            if log.contract not in asked_of or topic not in known or not first <= log.block_number <= last:
                raise ProtocolError(
                    "rpc.malformed", "the endpoint answered with a log that was not asked for"
                )
        found = [log for log, _ in logs]
        if len({log.place for log in found}) != len(found):
            raise ProtocolError("rpc.malformed", "the endpoint answered with a log twice")
        return found

    def _log(self, answer: object) -> tuple[Log, bytes]:
        one = fields(answer, what="a log")
        told = one.get("topics")
        if not isinstance(told, list) or not 1 <= len(told) <= 4 or one.get("removed") is True:
            raise ProtocolError("rpc.malformed", "a log has no topics, too many, or is said to be removed")
        topics = [data(topic, what="a topic", length=32) for topic in told]
        contract = data(one.get("address"), what="a log's contract", length=20)
        log = Log(
            contract=contract,
            decoded=self._decoded(contract, topics, data(one.get("data"), what="a log's data")),
            block_number=quantity(one.get("blockNumber"), what="a log's block"),
            block_hash=data(one.get("blockHash"), what="a log's block hash", length=32),
            transaction_hash=data(one.get("transactionHash"), what="a log's transaction", length=32),
            index=quantity(one.get("logIndex"), what="a log's index"),
        )
        return log, topics[0]

    def _decoded(self, contract: bytes, topics: Sequence[bytes], raw: bytes) -> Decoded:
        event = event_of(topics[0])
        if event is None:
            raise ProtocolError("rpc.malformed", "the endpoint answered with a log of another event")
        try:
            decoded = decode_event(topics, raw) if len(raw) <= _MAX_DATA else None
        except ProtocolError as error:
            if not self._tolerant or contract == self._contracts.kms:
                raise
            return Decoded(MALFORMED, (event.name, error.message))
        if decoded is not None:
            return decoded
        why = f"a log of {event.name} has {len(raw)} bytes, expected at most {_MAX_DATA}"
        if not self._tolerant or contract == self._contracts.kms:
            raise ProtocolError("rpc.malformed", why)
        return Decoded(MALFORMED, (event.name, why))

    def _unread(self, contract: bytes, number: int, error: DstackError) -> Log:
        answer = self._contracts.endpoint.batch([("eth_getBlockByNumber", [hex(number), False])])[0]
        block = fields(answer, what="the block")
        return Log(
            contract=contract,
            decoded=Decoded(UNREAD, (f"{error.message} [{error.code}]",)),
            block_number=number,
            block_hash=data(block.get("hash"), what="the block hash", length=32),
            transaction_hash=bytes(32),
            index=-1,
        )
