"""Which block counts and which endpoints are waited for, over endpoints in memory that answer by block."""

import time
from queue import SimpleQueue

import pytest

from functions.authorize.chain_reader import ChainReader, Read
from functions.authorize.service import service_from
from functions.authorize.settings import MAX_AGE, Settings
from shared.chain import abi
from shared.errors import UnavailableError
from shared.net.json_rpc import Endpoint
from tests.shared.net.hanging import PATIENCE, Asking, Hanging
from tests.shared.net.rpc_stand_ins import CHAIN_ID, ByBlock, block_hash
from tests.shared.refusal import refuses

KMS = bytes.fromhex("9fe46736679d2d9a65f0992f2272de9f3c7fa6e0")
CALLS = (abi.call(abi.GATEWAY_APP_ID),)


def reader(*nodes: Endpoint, quorum: int = 2) -> ChainReader:
    return ChainReader(
        nodes, KMS, chain_id=CHAIN_ID, quorum=quorum, max_head_age=60, now=lambda: ByBlock.time
    )


def read(*nodes: Endpoint, named: bytes | None = None) -> Read:
    return reader(*nodes).read(CALLS, (), (named, named) if named else None)


def test_views_are_of_the_block_that_was_named() -> None:
    named = block_hash(150)
    assert read(ByBlock("a"), ByBlock("b"), named=named).results == (named,)


def test_views_are_of_the_one_block_that_all_have_reached() -> None:
    assert read(ByBlock("a"), ByBlock("b", head=163)).results == (block_hash(163),)


def test_n57_a_block_that_was_replaced_is_no_answer() -> None:
    with refuses("authorize.quorum.too_few", UnavailableError) as caught:
        read(ByBlock("a"), ByBlock("b"), named=block_hash(150, "orphan"))
    assert "not currently canonical" in caught.value.message


def test_n57_one_endpoint_that_runs_ahead_does_not_choose_the_block() -> None:
    ahead = ByBlock("ahead", head=200)
    assert read(ByBlock("a"), ahead, ByBlock("c")).results == (block_hash(164),)


def test_n57_an_endpoint_that_hangs_holds_up_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(ByBlock, "time", int(time.time()))
    nodes = {name: ByBlock(name) for name in ("a.example", "b.example")}
    hanging = Hanging(ByBlock("c.example"), happened)
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
