"""Endpoints that live in memory and misbehave on demand: stale, slow, forked, lying."""

from collections.abc import Sequence

from shared.chain.header import BlockRef
from shared.errors import DstackError, UnavailableError
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


class ByBlock(StandIn):
    """Answers each call by the block that it is asked about, as nodes choose it (EIP-1898)."""

    time = 1_800_000_000

    def result(self, block: bytes) -> str:
        """Return what a call answers at a block of this hash: the hash, unless a test's own knows better."""
        return f"0x{block.hex()}"

    def _answer(self, method: str, params: Sequence[object]) -> object:
        if method == "eth_call":
            return self.result(self._read_at(params[1]))
        if method == "eth_getBlockByHash":
            number = self._canonical().get(str(params[0]), 0)
            return {"number": hex(number), "hash": params[0], "timestamp": hex(self.time)}
        answer = super()._answer(method, params)
        return {**answer, "timestamp": hex(self.time)} if isinstance(answer, dict) else answer

    def _read_at(self, at: object) -> bytes:
        """Return the hash of the block that is read: one that was replaced, too, if that is not ruled out."""
        if not isinstance(at, dict):
            return block_hash(self.head)
        named = str(at["blockHash"])
        if at.get("requireCanonical") is True and named not in self._canonical():
            raise UnavailableError("rpc.error", f"hash {named} is not currently canonical")
        return bytes.fromhex(named[2:])

    def _canonical(self) -> dict[str, int]:
        return {f"0x{block_hash(number).hex()}": number for number in range(self.head + 1)}
