"""Asks several RPC endpoints what the contracts say, in two views (DESIGN section 2).

A grant is to be acted on when it is allowed at the newest final block and at the newest block, a revocation
when either says so. The blocks are those that `ChainQuorum` names; what the contracts hold at each counts
where as many endpoints say the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from shared.boot_info import BootInfo
from shared.chain.agreement import is_agreed
from shared.chain.approval import ChainState, ChainViews
from shared.chain.header import BlockRef
from shared.errors import ConfigError, DstackError, InvalidEvidence, UnavailableError
from shared.net.at_once import AtOnce
from shared.net.contract_reader import ContractReader
from shared.net.json_rpc import Endpoint, fields, quantity
from shared.net.quorum import ChainQuorum

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
"""Hosts of a development chain: plain http to it passes nobody, and it may make no block for long."""

DEFAULT_MAX_HEAD_AGE: Final = 300
"""25 blocks of mainnet; a revocation is not seen on an older head."""

_NO_CONTRACT: Final = "plan.kms_contract"
_T = TypeVar("_T")


class AgreedReader:
    """Views of the KMS contract at `kms` (20 bytes) that `quorum` of `endpoints` agree on.

    One endpoint may stand alone where no other is named: then its word is all there is, and the views say so.
    `chain_id` None takes any chain. `max_head_age` is in seconds; a
    development chain on this machine is not held to it. Raises as `ChainQuorum`.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        kms: bytes,
        *,
        chain_id: int | None,
        quorum: int,
        max_head_age: int = DEFAULT_MAX_HEAD_AGE,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._kms = kms
        self._chain_id = chain_id
        self._quorum = quorum
        self._is_here = all(endpoint.host in LOOPBACK for endpoint in endpoints)
        self._max_head_age = max_head_age
        self._at_once = AtOnce(endpoints)
        self._blocks = self._block_source(chain_id or 0)

    def read(self, boot_info: BootInfo, now: int) -> ChainViews:
        """Return what the contracts say about one workload; `now` is unix seconds.

        Raises `ConfigError`: `plan.chain_id` where another chain answers, `plan.kms_contract` where the
        address has no code at the newest block; `UnavailableError`: `quorum.behind` for a newest block that
        is too old, `quorum.disagreement`, `quorum.too_few`, or what as many endpoints raise as must agree;
        and as `ChainQuorum.blocks`.
        """
        chain_id = self._served_chain()
        try:
            finalized, newest = self._blocks.blocks()
        except InvalidEvidence as error:
            if error.code != "quorum.chain_id":
                raise
            raise ConfigError("plan.chain_id", error.message) from error
        head = self._agreed(
            "the contracts hold at the newest block",
            lambda endpoint: ContractReader(endpoint, self._kms).read_at(newest, boot_info, chain_id),
        )
        age = now - head.block_time
        if age > self._max_head_age and not self._is_here:
            raise UnavailableError(
                "quorum.behind",
                f"the newest block that a quorum knows is {age} seconds old, expected at most"
                f" {self._max_head_age}",
            )
        final_time, final = self._agreed(
            "the contracts hold at the newest final block",
            lambda endpoint: self._final(endpoint, finalized, boot_info, chain_id),
        )
        return ChainViews(
            head=head,
            final=final,
            final_number=finalized.number,
            final_time=final_time,
            asked=len(self._endpoints),
            quorum=self._quorum,
        )

    def _final(
        self, endpoint: Endpoint, block: BlockRef, boot_info: BootInfo, chain_id: int
    ) -> tuple[int, ChainState | None]:
        try:
            state = ContractReader(endpoint, self._kms).read_at(block, boot_info, chain_id)
        except ConfigError as error:
            if error.code != _NO_CONTRACT:
                raise
            [found] = endpoint.batch([("eth_getBlockByHash", [f"0x{block.hash.hex()}", False])])
            return quantity(fields(found, what="the block").get("timestamp"), what="the block's time"), None
        return state.block_time, state

    def _served_chain(self) -> int:
        """Return the chain's id; where none was named, the one that the endpoints agree on is kept."""
        if self._chain_id is None:
            self._chain_id = self._agreed("the chain id is", _chain_id)
            self._blocks = self._block_source(self._chain_id)
        return self._chain_id

    def _block_source(self, chain_id: int) -> ChainQuorum:
        is_alone = len(self._endpoints) == 1
        return ChainQuorum(
            self._endpoints,
            chain_id=chain_id,
            quorum=self._quorum,
            allow_plain_http=is_alone or self._is_here,
            allow_single=is_alone,
        )

    def _agreed(self, what: str, question: Callable[[Endpoint], _T]) -> _T:
        answers = self._at_once.ask(self._endpoints, question)
        given = [one for one in answers if not isinstance(one, DstackError)]
        failures = [one for one in answers if isinstance(one, DstackError)]
        if len(given) < self._quorum:
            [(code, count)] = Counter(one.code for one in failures).most_common(1)
            first = next(one for one in failures if one.code == code)
            # what is no answer of a node's may be one the next time
            if count >= self._quorum and isinstance(first, ConfigError | UnavailableError):
                raise first
            reasons = "; ".join(f"{one.code}: {one.message}" for one in failures)[:300]
            raise UnavailableError(
                "quorum.too_few",
                f"{len(given)} of {len(self._endpoints)} endpoints say what {what}, expected {self._quorum}:"
                f" {reasons}",
            )
        [most, *_] = sorted(given, key=given.count, reverse=True)
        votes = given.count(most)
        if not is_agreed(votes, len(given), self._quorum):
            raise UnavailableError(
                "quorum.disagreement",
                f"{votes} of {len(given)} endpoints say the same of what {what}, expected {self._quorum} and"
                " a majority",
            )
        return most


def _chain_id(endpoint: Endpoint) -> int:
    [answer] = endpoint.batch([("eth_chainId", [])])
    return quantity(answer, what="the chain id")
