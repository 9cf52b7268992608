"""Which block counts and which endpoints are waited for, over endpoints in memory that answer by block."""

import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import pytest

from functions.authorize.chain_reader import ChainReader, Read
from functions.authorize.service import service_from
from functions.authorize.settings import MAX_AGE, Settings
from shared.chain import abi
from shared.errors import UnavailableError
from shared.net.json_rpc import Endpoint
from tests.shared.net.hanging import PATIENCE, Asking, Hanging
from tests.shared.net.rpc_stand_ins import CHAIN_ID, StandIn, block_hash
from tests.shared.refusal import refuses

NOW = 1_800_000_000
KMS = bytes.fromhex("9fe46736679d2d9a65f0992f2272de9f3c7fa6e0")
CALLS = (abi.call(abi.GATEWAY_APP_ID),)


class Node(StandIn):
    """Answers each call with the block that it was asked about, as nodes choose it (EIP-1898)."""

    time = NOW

    def _answer(self, method: str, params: Sequence[object]) -> object:
        if method == "eth_call":
            return f"0x{self._state(params[1]).hex()}"
        if method == "eth_getBlockByHash":
            return self._block_of(str(params[0]))
        answer = super()._answer(method, params)
        return {**answer, "timestamp": hex(self.time)} if isinstance(answer, dict) else answer

    def _state(self, at: Any) -> bytes:
        """Return the hash of the block whose state is read: another one's, too, if that is not ruled out."""
        if not isinstance(at, dict):
            return block_hash(self.head)
        named = str(at["blockHash"])
        if at.get("requireCanonical") is True and named not in self._canonical():
            raise UnavailableError("rpc.error", f"{self.host}: hash {named} is not currently canonical")
        return bytes.fromhex(named[2:])

    def _block_of(self, named: str) -> object:
        number = self._canonical().get(named, 0)
        return {"number": hex(number), "hash": named, "timestamp": hex(self.time)}

    def _canonical(self) -> dict[str, int]:
        return {f"0x{block_hash(number).hex()}": number for number in range(self.head + 1)}


def reader(*nodes: Endpoint, quorum: int = 2) -> ChainReader:
    return ChainReader(nodes, KMS, chain_id=CHAIN_ID, quorum=quorum, max_head_age=60, now=lambda: NOW)


def read(*nodes: Endpoint, named: bytes | None = None) -> Read:
    return reader(*nodes).read(CALLS, (), (named, named) if named else None)


def test_views_are_of_the_block_that_was_named() -> None:
    named = block_hash(150)
    assert read(Node("a"), Node("b"), named=named).results == (named,)


def test_views_are_of_the_one_block_that_all_have_reached() -> None:
    assert read(Node("a"), Node("b", head=163)).results == (block_hash(163),)


def test_n57_a_block_that_was_replaced_is_no_answer() -> None:
    with refuses("authorize.quorum.too_few", UnavailableError) as caught:
        read(Node("a"), Node("b"), named=block_hash(150, "orphan"))
    assert "not currently canonical" in caught.value.message


def test_n57_one_endpoint_that_runs_ahead_does_not_choose_the_block() -> None:
    ahead = Node("ahead", head=200)
    assert read(Node("a"), ahead, Node("c")).results == (block_hash(164),)


def test_n57_an_endpoint_that_hangs_holds_up_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(Node, "time", int(time.time()))
    nodes = {name: Node(name) for name in ("a.example", "b.example")}
    hanging = Hanging(Node("c.example"), happened)
    endpoints: dict[str, Endpoint] = {**nodes, hanging.host: hanging}
    monkeypatch.setattr(
        "functions.authorize.service.JsonRpc", lambda url, _http: endpoints[url.rpartition("/")[2]]
    )
    settings = Settings(
        rpc_urls=tuple(f"https://{host}" for host in endpoints),
        kms_contract=KMS,
        quorum=2,
        max_head_age=MAX_AGE,
    )
    codes: list[str] = []
    service = service_from(settings, lambda code, _: codes.append(code))

    def ask() -> Asking:
        return Asking(lambda: service.handle("GET", "/", "", {}, b""), happened)

    ask()
    assert happened.get(timeout=PATIENCE) == "hangs"
    hanging.time_out()
    assert happened.get(timeout=PATIENCE) == "done"
    ask()
    assert happened.get(timeout=PATIENCE) == "done"
    assert hanging.asked == 1
    # what these nodes answer is no gateway id: the request came that far, and not to too few
    assert codes == ["abi.malformed"] * 2
