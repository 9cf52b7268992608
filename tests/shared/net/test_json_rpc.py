"""JSON-RPC: answers are matched by id, and everything else is an error with its own code."""

import socket
from collections.abc import Callable

import msgspec
import pytest

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import (
    MAX_CONTAINERS,
    MAX_LOG_CONTAINERS,
    JsonRpc,
    RevertedError,
    data,
    quantity,
)

RawServer = Callable[[Callable[[socket.socket], None]], int]


def rpc_that_answers(
    raw_server: RawServer, body: bytes, status: int = 200, *, timeout: float = 30
) -> JsonRpc:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()

    def serve(connection: socket.socket) -> None:
        received = b""
        while not received.endswith(b"]"):
            received += connection.recv(65536)
        connection.sendall(head + body)

    return JsonRpc(
        f"http://127.0.0.1:{raw_server(serve)}/secret-path", HttpClient(DirectDialer(), timeout=timeout)
    )


def answers(*items: object) -> bytes:
    return msgspec.json.encode(list(items))


def result(index: int, value: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": index, "result": value}


def refusal(rpc: JsonRpc) -> DstackError:
    with pytest.raises(DstackError) as caught:
        rpc.batch([("one", []), ("two", [])])
    return caught.value


def test_answers_are_matched_by_id_not_by_order(raw_server: RawServer) -> None:
    rpc = rpc_that_answers(raw_server, answers(result(2, "second"), result(1, "first")))
    assert rpc.batch([("one", []), ("two", [])]) == ["first", "second"]


def test_logs_have_a_bound_of_their_own(raw_server: RawServer) -> None:
    logs: list[object] = [{"topics": ["x" * 800]}] * (MAX_LOG_CONTAINERS // 2 - 2)  # beyond 2 MiB, too
    assert rpc_that_answers(raw_server, answers(result(1, logs))).call("eth_getLogs") == logs
    many: list[object] = [{"topics": []}] * (MAX_LOG_CONTAINERS // 2)
    for method, answer in (("eth_getLogs", many), ("eth_call", many[: MAX_CONTAINERS // 2])):
        with pytest.raises(ProtocolError) as caught:
            rpc_that_answers(raw_server, answers(result(1, answer))).call(method)
        assert caught.value.code == "rpc.malformed"


def test_logs_are_waited_for_where_the_client_has_no_patience(raw_server: RawServer) -> None:
    rpc = rpc_that_answers(raw_server, answers(result(1, [])), timeout=0)
    assert rpc.call("eth_getLogs") == []
    with pytest.raises(UnavailableError) as caught:
        rpc.call("eth_call")
    assert caught.value.code == "net.timeout"


def test_a_null_result_is_a_result(raw_server: RawServer) -> None:
    rpc = rpc_that_answers(raw_server, answers({**result(1, None), "error": None}))
    assert rpc.call("one") is None


@pytest.mark.parametrize(
    "body",
    [
        answers(result(1, 0)),
        answers(result(1, 0), result(1, 0)),
        answers(result(1, 0), result(3, 0)),
        answers(result(1, 0), result(2, 0), result(3, 0)),
        answers({**result(1, 0), "id": "1"}, result(2, 0)),
        answers({**result(1, 0), "id": True}, result(2, 0)),
        answers({"jsonrpc": "2.0", "id": 1}, result(2, 0)),
        answers(1, 2),
        answers({"id": 1, "error": "text"}, result(2, 0)),
        msgspec.json.encode(result(1, 0)),
        b"[",
        b"",
        b"<html>",
        b"[" * 100_000,
        b'["\xff"]',
    ],
)
def test_n57_malformed_answers_are_refused(raw_server: RawServer, body: bytes) -> None:
    error = refusal(rpc_that_answers(raw_server, body))
    assert isinstance(error, ProtocolError)
    assert error.code == "rpc.malformed"


@pytest.mark.parametrize("batched", [True, False])
def test_an_error_answer_carries_the_endpoints_text(raw_server: RawServer, batched: bool) -> None:  # noqa: FBT001
    failed = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "rate\nlimited"}}
    body = answers(failed, result(2, 0)) if batched else msgspec.json.encode(failed)
    error = refusal(rpc_that_answers(raw_server, body))
    assert isinstance(error, UnavailableError)
    assert error.code == "rpc.error"
    assert error.message.endswith("rate limited")


@pytest.mark.parametrize(
    "failed",
    [
        {"code": 3, "message": "execution failed"},
        {"code": -32015, "message": "VM execution error."},
        {"code": -32000, "message": "Execution Reverted: no"},
        {"code": -32603, "message": "invalid opcode: opcode 0xfe not defined"},
        {"code": -32000, "message": "out of gas"},
        {"code": -32603, "message": "EVM error InvalidOperandOOG"},
        {"code": -32000, "message": "return data out of bounds"},
    ],
)
def test_an_error_of_the_contract_is_told_from_one_of_the_endpoint(
    raw_server: RawServer, failed: dict[str, object]
) -> None:
    answer = {"jsonrpc": "2.0", "id": 1, "error": failed}
    assert refusal(rpc_that_answers(raw_server, answers(answer, result(2, 0)))).code == "rpc.reverted"


@pytest.mark.parametrize(
    ("told", "data"),
    [
        ("0x118cdaa7", b"\x11\x8c\xda\xa7"),
        ("0x1", b""),
        ("00", b""),
        ({"data": "0x00"}, b""),
        ("0x" + "00" * 9999, b""),
    ],
)
def test_what_a_contract_ended_a_call_with_is_kept(raw_server: RawServer, told: object, data: bytes) -> None:
    answer = {"jsonrpc": "2.0", "id": 1, "error": {"code": 3, "message": "reverted", "data": told}}
    error = refusal(rpc_that_answers(raw_server, answers(answer, result(2, 0))))
    assert isinstance(error, RevertedError)
    assert error.data == data


def test_an_endpoints_text_is_cut(raw_server: RawServer) -> None:
    failed = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "x" * 10_000}}
    assert len(refusal(rpc_that_answers(raw_server, answers(failed, result(2, 0)))).message) < 300


@pytest.mark.parametrize("body", [b"", b"overloaded", answers(result(1, 0), result(2, 0))])
def test_n57_another_status_is_refused(raw_server: RawServer, body: bytes) -> None:
    error = refusal(rpc_that_answers(raw_server, body, 500))
    assert (error.code, type(error)) == ("rpc.status", UnavailableError)


def test_n74_a_secret_in_the_url_is_in_no_error(raw_server: RawServer) -> None:
    rpc = rpc_that_answers(raw_server, b"", 500)
    assert "secret" not in str(refusal(rpc)) + repr(rpc)


@pytest.mark.parametrize("url", ["", "localhost:8545", "ws://host/", "https://", "https://./"])
def test_refuses_other_urls(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JsonRpc(url, HttpClient(DirectDialer()))
    assert caught.value.code == "rpc.url.invalid"


@pytest.mark.parametrize("value", [None, 1, "", "0x", "1", "0xg", "0x" + "1" * 17, "-0x1", "0x+1", "0x1_0"])
def test_refuses_what_is_no_quantity(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        quantity(value, what="it")
    assert caught.value.code == "rpc.malformed"


@pytest.mark.parametrize("value", [None, 1, "", "00", "0x0", "0xgg", ["0x00"]])
def test_refuses_what_is_no_data(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        data(value, what="it")
    assert caught.value.code == "rpc.malformed"


def test_reads_quantities_and_data() -> None:
    assert (quantity("0x10", what="it"), data("0x00ff", what="it", length=2)) == (16, b"\x00\xff")
