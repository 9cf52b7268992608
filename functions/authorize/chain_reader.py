"""Reads the contract's views at one block, from endpoints that must not contradict each other.

One round trip where the caller names the block, two where the newest one has to be found first. A proof's own
two round trips contain that of the views, so a decision takes two at most where the blocks are named. Only
a failure asks on: why an endpoint failed, or another endpoint for the proof.
"""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from shared.chain.bundle import ProofBundle
from shared.chain.decision import MAX_FUTURE_SECONDS
from shared.errors import DstackError, PolicyDenied, UnavailableError
from shared.net.at_once import AtOnce
from shared.net.json_rpc import Call, Endpoint, data, fields, quantity
from shared.net.proof_source import ProofRequest, ProofSource

# The two blocks of a proof, by their hashes: the finalised one and the head.
Blocks = tuple[bytes, bytes]


class Read(msgspec.Struct, frozen=True):
    """What the contract answered: results in the order of the calls, and a proof where one was wanted."""

    chain_id: int
    results: tuple[bytes, ...]
    bundle: ProofBundle | None = None


class _Newest(msgspec.Struct, frozen=True):
    """How far an endpoint has come: its chain, its newest block, its finalised one where that was asked."""

    endpoint: Endpoint
    number: int
    hash: bytes
    finalized_number: int = 0
    finalized_hash: bytes = b""


class ChainReader:
    """Reads the contract at `kms_contract` (20 bytes) from `endpoints`, which are on distinct hosts.

    At least `quorum` of them must answer, and all that answer must say the same. `chain_id` None takes any
    chain, the same of all. No block counts whose time is more than `max_head_age` seconds before `now()`.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        kms_contract: bytes,
        *,
        chain_id: int | None,
        quorum: int,
        max_head_age: int,
        now: Callable[[], float],
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._at_once = AtOnce(endpoints)
        self._kms = kms_contract
        self._chain_id = chain_id
        self._quorum = quorum
        self._max_head_age = max_head_age
        self._now = now

    def read(self, calls: Sequence[bytes], requests: Sequence[ProofRequest], named: Blocks | None) -> Read:
        """Call views of the contract at one block, and prove what `requests` ask, if anything.

        Raises `PolicyDenied`: `authorize.chain_id`, `authorize.contract`, `authorize.block.stale`,
        `authorize.block.future`, `authorize.quorum.disagreement`; `UnavailableError`:
        `authorize.quorum.too_few` where several endpoints are asked and fewer than the quorum answer; what
        `JsonRpc.batch` raises where there is one; and what `ProofSource.gather` raises.
        """
        endpoints, blocks = (self._endpoints, named) if named else self._newest(with_proof=bool(requests))
        answers = self._at_once.ask(
            endpoints,
            lambda endpoint: self._ask(endpoint, calls, requests if endpoint is endpoints[0] else (), blocks),
        )
        agreed = self._agreed(answers)
        if not requests or agreed.bundle is not None:
            return agreed
        return msgspec.structs.replace(agreed, bundle=self._prove(endpoints, requests, blocks))

    def _newest(self, *, with_proof: bool) -> tuple[tuple[Endpoint, ...], Blocks]:
        """Return the highest block that enough endpoints have reached, and which endpoints those are."""
        seen = self._at_once.ask(self._endpoints, partial(self._newest_of, finalized=with_proof))
        newest = [one for one in seen if isinstance(one, _Newest)]
        self._require_quorum(seen, len(newest))
        head = sorted(newest, key=lambda one: one.number, reverse=True)[self._quorum - 1]
        if len({one.hash for one in newest if one.number == head.number}) > 1:
            raise PolicyDenied(
                "authorize.quorum.disagreement", f"the endpoints know different blocks {head.number}"
            )
        final = sorted(newest, key=lambda one: one.finalized_number, reverse=True)[self._quorum - 1]
        reached = tuple(one.endpoint for one in newest if one.number >= head.number)
        return reached, (final.finalized_hash, head.hash)

    def _newest_of(self, endpoint: Endpoint, *, finalized: bool) -> _Newest:
        tags = ("latest", "finalized") if finalized else ("latest",)
        chain_id, latest, *rest = endpoint.batch(
            [("eth_chainId", []), *(("eth_getBlockByNumber", [tag, False]) for tag in tags)]
        )
        self._check_chain(endpoint, chain_id)
        self._check_age(endpoint, latest)
        number, digest = _number_and_hash(latest)
        return _Newest(endpoint, number, digest, *(_number_and_hash(rest[0]) if rest else ()))

    def _ask(
        self, endpoint: Endpoint, calls: Sequence[bytes], requests: Sequence[ProofRequest], blocks: Blocks
    ) -> Read:
        """Ask one endpoint for the views, and to prove `requests`; the views alone where it has no proof."""
        try:
            views = self._views(calls, blocks[1])
            if not requests:
                return self._read(endpoint, endpoint.batch(views), None)
            try:
                bundle, results = ProofSource(endpoint, self._kms).gather_with(requests, *blocks, views)
            except UnavailableError as error:
                if error.code != "proof.provider.cannot_prove" or len(self._endpoints) == 1:
                    raise
                return self._read(endpoint, endpoint.batch(views), None)
            return self._read(endpoint, results, bundle)
        except DstackError as error:
            # a block that it does not know is another chain's, or newer than all that it has
            if error.code in {"rpc.error", "rpc.malformed", "proof.provider.cannot_prove"}:
                self._newest_of(endpoint, finalized=False)
            raise

    def _views(self, calls: Sequence[bytes], head: bytes) -> list[Call]:
        to, at = f"0x{self._kms.hex()}", {"blockHash": f"0x{head.hex()}", "requireCanonical": True}
        return [
            ("eth_chainId", []),
            ("eth_getBlockByHash", [f"0x{head.hex()}", False]),
            *(("eth_call", [{"to": to, "data": f"0x{call.hex()}"}, at]) for call in calls),
        ]

    def _read(self, endpoint: Endpoint, answers: Sequence[object], bundle: ProofBundle | None) -> Read:
        chain_id, block, *views = answers
        got = self._check_chain(endpoint, chain_id)
        self._check_age(endpoint, block)
        results = tuple(data(view, what="the result of a call") for view in views)
        if not all(results):
            raise PolicyDenied(
                "authorize.contract",
                f"no kms contract is at 0x{self._kms.hex()} on chain {got}, by the word of {endpoint.host}",
            )
        return Read(got, results, bundle)

    def _agreed(self, answers: Sequence[Read | DstackError]) -> Read:
        for answer in answers:
            # what the contract's own code did is an answer too, and never an allow
            if isinstance(answer, DstackError) and answer.code == "rpc.reverted":
                raise answer
        reads = [answer for answer in answers if isinstance(answer, Read)]
        said = {(read.chain_id, read.results) for read in reads}
        if len(said) > 1:
            raise PolicyDenied(
                "authorize.quorum.disagreement",
                f"{len(reads)} endpoints gave {len(said)} different answers about the same block",
            )
        self._require_quorum(answers, len(reads))
        return next((read for read in reads if read.bundle is not None), reads[0])

    def _require_quorum(self, answers: Sequence[object], count: int) -> None:
        if count >= self._quorum:
            return
        failures = [answer for answer in answers if isinstance(answer, DstackError)]
        for failure in failures:
            # an endpoint that is wrong says more than one that is down
            if len(self._endpoints) == 1 or failure.code.startswith("authorize."):
                raise failure
        reasons = "; ".join(f"{failure.code}: {failure.message}" for failure in failures)
        raise UnavailableError(
            "authorize.quorum.too_few",
            f"{count} of {len(self._endpoints)} endpoints answer, expected {self._quorum}: {reasons}",
        )

    def _prove(
        self, endpoints: Sequence[Endpoint], requests: Sequence[ProofRequest], blocks: Blocks
    ) -> ProofBundle:
        """Ask the other endpoints for what the first one could not prove."""
        failure: DstackError | None = None
        for endpoint in endpoints[1:]:
            try:
                return ProofSource(endpoint, self._kms).gather_with(requests, *blocks, ())[0]
            except DstackError as error:
                failure = error
        raise failure or UnavailableError(
            "proof.provider.cannot_prove", f"{endpoints[0].host} alone knows the block, and proves nothing"
        )

    def _check_chain(self, endpoint: Endpoint, answer: object) -> int:
        got = quantity(answer, what="the chain id")
        if self._chain_id not in {None, got}:
            raise PolicyDenied(
                "authorize.chain_id", f"{endpoint.host} serves chain {got}, expected {self._chain_id}"
            )
        return got

    def _check_age(self, endpoint: Endpoint, block: object) -> None:
        time = quantity(fields(block, what="a block").get("timestamp"), what="the block's time")
        age = int(self._now()) - time
        if age > self._max_head_age:
            raise PolicyDenied(
                "authorize.block.stale",
                f"the block of {endpoint.host} is {age} seconds old, expected at most {self._max_head_age}",
            )
        if -age > MAX_FUTURE_SECONDS:
            raise PolicyDenied(
                "authorize.block.future",
                f"the block of {endpoint.host} is {-age} seconds in the future, "
                f"expected at most {MAX_FUTURE_SECONDS}",
            )


def _number_and_hash(value: object) -> tuple[int, bytes]:
    block = fields(value, what="a block")
    return (
        quantity(block.get("number"), what="the block number"),
        data(block.get("hash"), what="the block hash", length=32),
    )
