"""Which block is final and which is newest, by the word of endpoints that must agree (DESIGN section 2).

One endpoint can lie about everything but can prove no state for a block it did not see built. So the KMS asks
for hashes here, and for proofs wherever it likes.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from shared.chain.agreement import is_agreed
from shared.chain.header import BlockRef
from shared.errors import ConfigError, DstackError, InvalidEvidence, UnavailableError
from shared.net.at_once import AtOnce
from shared.net.json_rpc import Endpoint, data, fields, quantity

# More than this is no longer a quorum but a crowd.
MAX_ENDPOINTS = 16


class _Claim(msgspec.Struct, frozen=True):
    """One endpoint's word: its newest finalised block and its newest block."""

    endpoint: Endpoint
    finalized: BlockRef
    head: BlockRef


class ChainQuorum:
    """The blocks that at least `quorum` of `endpoints`, on as many distinct hosts, agree on by hash.

    Plain http and a quorum of one are for simulated enclaves, whose caller must allow them by name. Raises
    `ConfigError`: `quorum.config.hosts`, `quorum.config.size`, `quorum.config.plain_http`. Safe to share
    between threads; remembers the highest finalised block it has named.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        chain_id: int,
        quorum: int = 2,
        allow_plain_http: bool = False,
        allow_single: bool = False,
    ) -> None:
        hosts = {endpoint.host for endpoint in endpoints}
        if len(hosts) != len(endpoints) or not 1 <= len(hosts) <= MAX_ENDPOINTS:
            raise ConfigError(
                "quorum.config.hosts",
                f"{len(endpoints)} urls name {len(hosts)} hosts, expected distinct, {MAX_ENDPOINTS} at most",
            )
        if not (1 if allow_single else 2) <= quorum <= len(hosts):
            raise ConfigError(
                "quorum.config.size",
                f"a quorum of {quorum} out of {len(hosts)} hosts, expected at least 2 and at most all",
            )
        if not allow_plain_http and not all(endpoint.secure for endpoint in endpoints):
            raise ConfigError(
                "quorum.config.plain_http", "an rpc url is plain http, expected https outside a simulation"
            )
        self._endpoints = tuple(endpoints)
        self._at_once = AtOnce(endpoints)
        self._chain_id = chain_id
        self._quorum = quorum
        self._seen: BlockRef | None = None
        self._lock = threading.Lock()

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        """Return the newest finalised block and the newest block that the quorum agrees on.

        Raises `UnavailableError`: `quorum.too_few` where fewer endpoints than the quorum answer usefully,
        `quorum.disagreement` where they name different blocks; `InvalidEvidence`: `quorum.chain_id` where too
        few are left because endpoints serve another chain, `quorum.finalized.regressed` and
        `quorum.finalized.conflict` where the finalised chain went back on itself.
        """
        seen = self._seen
        claims = self._claims()
        finalized = self._agreed("finalised", [(claim.endpoint, claim.finalized) for claim in claims])
        head = self._agreed("newest", [(claim.endpoint, claim.head) for claim in claims])
        if head.number < finalized.number:
            raise UnavailableError(
                "quorum.disagreement",
                f"the agreed newest block {head.number} is below the agreed finalised one {finalized.number}",
            )
        self._remember(finalized, seen)
        return finalized, head

    def _claims(self) -> list[_Claim]:
        answers = self._at_once.ask(self._endpoints, self._claim)
        claims = [answer for answer in answers if isinstance(answer, _Claim)]
        failures = [answer for answer in answers if isinstance(answer, DstackError)]
        if len(claims) < self._quorum:
            for failure in failures:
                if failure.code == "quorum.chain_id":
                    raise failure
            reasons = "; ".join(f"{failure.code}: {failure.message}" for failure in failures)
            raise UnavailableError(
                "quorum.too_few",
                f"{len(claims)} of {len(self._endpoints)} endpoints work, expected {self._quorum}: {reasons}",
            )
        return claims

    def _claim(self, endpoint: Endpoint) -> _Claim:
        chain_id, finalized, head = endpoint.batch(
            [
                ("eth_chainId", []),
                ("eth_getBlockByNumber", ["finalized", False]),
                ("eth_getBlockByNumber", ["latest", False]),
            ]
        )
        got = quantity(chain_id, what="the chain id")
        if got != self._chain_id:
            raise InvalidEvidence(
                "quorum.chain_id", f"{endpoint.host} serves chain {got}, expected {self._chain_id}"
            )
        return _Claim(endpoint, _block_ref(finalized), _block_ref(head))

    def _agreed(self, what: str, claims: Sequence[tuple[Endpoint, BlockRef]]) -> BlockRef:
        """Return the highest claimed block that a quorum names, among endpoints that have come that far."""
        conflict = ""
        for number in sorted({block.number for _, block in claims}, reverse=True):
            voters = [(endpoint, block) for endpoint, block in claims if block.number >= number]
            if len(voters) < self._quorum:
                continue
            hashes = [block.hash for _, block in voters if block.number == number]
            ahead = [endpoint for endpoint, block in voters if block.number > number]
            answers = self._at_once.ask(ahead, partial(_hash_at, number))
            hashes += [answer for answer in answers if isinstance(answer, bytes)]
            [(digest, votes), *_] = Counter(hashes).most_common(1)
            if is_agreed(votes, len(hashes), self._quorum):
                return BlockRef(number, digest)
            conflict = conflict or f"{votes} of {len(hashes)} name the same {what} block {number}"
        raise UnavailableError(
            "quorum.disagreement", f"{conflict or f'no {what} block'}, expected {self._quorum} and a majority"
        )

    def _remember(self, finalized: BlockRef, seen: BlockRef | None) -> None:
        """Compare with what was known when the endpoints were asked: a slower thread is no regression."""
        if seen is not None and finalized.number < seen.number:
            raise InvalidEvidence(
                "quorum.finalized.regressed",
                f"the finalised block is {finalized.number}, expected at least {seen.number} as seen before",
            )
        if seen is not None and finalized.number == seen.number and finalized.hash != seen.hash:
            raise InvalidEvidence(
                "quorum.finalized.conflict",
                f"finalised block {seen.number} is 0x{finalized.hash.hex()}, was 0x{seen.hash.hex()}",
            )
        with self._lock:
            if self._seen is None or finalized.number > self._seen.number:
                self._seen = finalized


def _block_ref(value: object) -> BlockRef:
    block = fields(value, what="a block")
    return BlockRef(
        number=quantity(block.get("number"), what="the block number"),
        hash=data(block.get("hash"), what="the block hash", length=32),
    )


def _hash_at(number: int, endpoint: Endpoint) -> bytes:
    [answer] = endpoint.batch([("eth_getBlockByNumber", [hex(number), False])])
    block = _block_ref(answer)
    if block.number != number:
        raise UnavailableError("quorum.disagreement", f"asked for block {number}, got {block.number}")
    return block.hash
