"""Endpoints that live in memory and misbehave on demand: stale, slow, forked, lying."""

from collections.abc import Sequence

from shared.chain.header import BlockRef
from shared.errors import DstackError
from shared.keccak import keccak256
from shared.net.json_rpc import Call

CHAIN_ID = 31337


def block_hash(number: int, fork: str = "") -> bytes:
    """Return the hash of a block on the honest chain, or on a fork of that name."""
    return keccak256(f"{fork}{number}".encode())


class StandIn:
    """A node on a chain (or a fork of it that starts at `fork_at`), at some height."""

    def __init__(
        self,
        host: str,
        *,
        finalized: int = 100,
        head: int = 164,
        chain_id: int = CHAIN_ID,
        fork: str = "",
        fork_at: int = 0,
        secure: bool = True,
    ) -> None:
        self.host = host
        self.secure = secure
        self.finalized, self.head = finalized, head
        self.chain_id = chain_id
        self.fork, self.fork_at = fork, fork_at
        self.failure: DstackError | None = None

    def block(self, number: int) -> object:
        fork = self.fork if number >= self.fork_at else ""
        return {"number": hex(number), "hash": f"0x{block_hash(number, fork).hex()}"}

    def reference(self, number: int) -> BlockRef:
        return BlockRef(number, block_hash(number))

    def batch(self, calls: Sequence[Call]) -> list[object]:
        if self.failure is not None:
            raise self.failure
        return [self._answer(method, params) for method, params in calls]

    def _answer(self, method: str, params: Sequence[object]) -> object:
        if method == "eth_chainId":
            return hex(self.chain_id)
        wanted = {"finalized": self.finalized, "latest": self.head}.get(str(params[0]))
        number = int(str(params[0]), 16) if wanted is None else wanted
        return self.block(number) if number <= self.head else None
