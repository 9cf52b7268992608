"""Paths, encodings and connections, as the SDKs' own HTTP clients use them (spec guest-agent 1.2 to 1.4)."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from enclave.agent.config import AgentConfig, Default
from enclave.agent.procedures import PUBLIC_BODY_BYTES
from enclave.serving.prpc import IDENTIFYING_THREADS, KNOWN_THREADS
from shared.rpc import agent_pb2 as pb
from shared.rpc.kms_pb2 import ProtoError
from tests.enclave.agent.agents import RunningAgent, app_compose, running, tdx_attestor

LIMIT = 10 * 1024 * 1024


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        ("a", "/Info"),
        ("a", "/v0/Info"),
        ("a", "/v1/Info"),
        ("b", "/prpc/Info"),
        ("b", "/prpc/Tappd.Info"),
        ("b", "/prpc/Tappd.Tappd.Info"),
        ("c", "/prpc/Info"),
        ("c", "/prpc/Worker.Info"),
        ("c", "/prpc/v0/Worker.Info"),
        ("c", "/prpc/v0/Info"),
        ("c", "/prpc/v1/Info"),
        ("d", "/api/Info"),
    ],
)
def test_a_method_is_found_on_each_of_its_paths(mount: str, path: str, agent: RunningAgent) -> None:
    assert agent.call(mount, path)["app_id"]


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        ("a", "/prpc/Info"),
        ("a", "/prpc/DstackGuest.Info"),
        ("a", "/v2/Info"),
        ("a", "/"),
        ("b", "/Info/more"),
        ("b", "/prpc/"),
        ("c", "/Info"),
        ("d", "/Info"),
    ],
)
def test_another_path_is_nobodys(mount: str, path: str, agent: RunningAgent) -> None:
    assert agent.client(mount).post(path, json={}).status_code == 404


@pytest.mark.parametrize(
    ("mount", "path", "name"),
    [
        ("a", "/Nothing", "Nothing"),
        ("a", "/v1/GetQuote", "GetQuote"),
        ("a", "/info", "info"),
        ("a", "/.Info", ".Info"),
        ("a", "/DstackGuest.GetKey", "DstackGuest.GetKey"),
        ("d", "/api/GuestApi.Info", "GuestApi.Info"),
        ("b", "/prpc/Tappd.GetKey", "GetKey"),
        ("c", "/prpc/Worker.GetKey", "GetKey"),
        ("c", "/prpc/v1/GetAttestationForAppKey", "GetAttestationForAppKey"),
        ("d", "/api/GetKey", "GetKey"),
    ],
)
def test_an_unknown_method_is_told_by_name(mount: str, path: str, name: str, agent: RunningAgent) -> None:
    assert agent.refused(mount, path) == (404, "prpc.method", f"Service not found: {name}")


@pytest.mark.parametrize("body", [b"{}", b"null", b"", b"[]"])
def test_a_method_without_a_request_takes_any_body(body: bytes, agent: RunningAgent) -> None:
    response = agent.client("a").post("/Info", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200


@pytest.mark.parametrize("query", ["?json", "?json=1", "?json=true"])
def test_the_query_asks_for_json(query: str, agent: RunningAgent) -> None:
    response = agent.client("a").post(f"/GetKey{query}", content=b'{"path": "p"}')
    assert response.headers["content-type"] == "application/json"
    assert len(response.json()["key"]) == 64


def test_without_either_all_is_protobuf(agent: RunningAgent) -> None:
    client = agent.client("a")
    response = client.post("/GetKey", content=pb.GetKeyArgs(path="p").SerializeToString())
    assert response.headers["content-type"] == "application/octet-stream"
    answer = pb.GetKeyResponse.FromString(response.content)
    assert answer.key.hex() == agent.call("a", "/GetKey", {"path": "p"})["key"]


def test_an_error_in_protobuf_is_a_message(agent: RunningAgent) -> None:
    asked = pb.GetKeyArgs(algorithm="rsa").SerializeToString()
    response = agent.client("a").post("/GetKey", content=asked)
    assert response.status_code == 400
    assert ProtoError.FromString(response.content).message == "Unsupported algorithm"


def test_a_get_takes_its_fields_from_the_query(agent: RunningAgent) -> None:
    response = agent.client("a").get("/GetQuote?report_data=0x1234deadbeef")
    assert response.json()["report_data"] == "1234deadbeef" + "00" * 58


@pytest.mark.parametrize("path", [b"\xff", b"%ff"])
def test_bytes_that_are_no_text_name_no_key(path: bytes, agent: RunningAgent) -> None:
    """All that a decoder replaces would share one key."""
    with agent.connect() as sock:
        sock.sendall(b"GET /GetKey?path=" + path + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_an_error_is_pretty_json(agent: RunningAgent) -> None:
    response = agent.client("a").get("/GetKey?algorithm=rsa")
    assert response.text == json.dumps(
        {"error": "Unsupported algorithm", "code": "guest_keys.algorithm"}, indent=2
    )


def test_upper_case_hex_and_unknown_fields_are_accepted(agent: RunningAgent) -> None:
    answer = agent.call("a", "/GetQuote", {"report_data": "ABCD", "something": 1})
    assert answer["report_data"].startswith("abcd")


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"path": 5}', b'{"path": "\xff"}'])
def test_refuses_a_body_that_is_no_request(body: bytes, agent: RunningAgent) -> None:
    response = agent.client("a").post("/GetKey", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["code"].startswith("prpc.json")


@pytest.mark.parametrize("body", [b'{"path": 5}', b"\xff\xff"])
def test_every_answer_has_a_length_and_is_ascii(body: bytes, agent: RunningAgent) -> None:
    """A client of upstream's parses HTTP by hand: no chunks, and as many characters as bytes."""
    headers = {"content-type": "application/json"}
    for response in (
        agent.client("a").post("/Info", content=body, headers=headers),
        agent.client("a").post("/GetKey", content=body, headers=headers),
        agent.client("a").post("/Nöthing", content=body, headers=headers),
    ):
        assert int(response.headers["content-length"]) == len(response.content)
        assert "transfer-encoding" not in response.headers
        assert "content-encoding" not in response.headers
        assert response.content.isascii()


def test_text_beyond_ascii_is_escaped_and_kept(agent: RunningAgent) -> None:
    response = agent.client("a").post("/Info?json")
    assert b"w\\u00f6rld" in response.content
    assert response.json()["app_name"] == "wörld"


@pytest.mark.parametrize(("mount", "path"), [("a", "/GetKey"), ("a", "/Nothing"), ("c", "/prpc/Version")])
def test_refuses_a_body_beyond_ten_mebibytes(mount: str, path: str, agent: RunningAgent) -> None:
    body = b'{"path": "' + b"a" * LIMIT + b'"}'
    response = agent.client(mount).post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "prpc.size")


@pytest.mark.parametrize("path", ["/prpc/GetAttestationForAppKey", "/prpc/v1/Info", "/prpc/Nothing"])
def test_everybody_may_send_less(path: str, agent: RunningAgent) -> None:
    body = b'{"algorithm": "' + b"a" * PUBLIC_BODY_BYTES + b'"}'
    response = agent.client("c").post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "prpc.size")


@pytest.mark.parametrize("mount", ["a", "c"])
def test_refuses_a_head_that_does_not_end(mount: str, agent: RunningAgent) -> None:
    """Nor does one that comes in a single piece take the memory of many: 256 KiB are read at once."""
    with agent.connect(mount) as sock:
        with suppress(OSError):  # it ends before it has read everything
            sock.sendall(b"GET /prpc/Info HTTP/1.1\r\nx: " + b"a" * 200_000)
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_takes_a_body_of_less(agent: RunningAgent) -> None:
    asked = {"algorithm": "ed25519", "data": "ab" * (LIMIT // 2 - 100)}
    assert agent.call("a", "/Sign", asked)["signature"]


def test_a_method_may_be_given_less(tmp_path) -> None:
    compose = app_compose()
    config = AgentConfig(default=Default(limits={"Sign": 100}))
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose, config=config) as agent:
        asked = {"algorithm": "ed25519", "data": "00" * 100}
        assert agent.refused("a", "/Sign", asked)[:2] == (413, "prpc.size")
        assert agent.call("a", "/GetKey", {"path": "p" * 200})["key"]


def test_a_chunked_request_is_taken(agent: RunningAgent) -> None:
    parts = iter([b'{"path"', b': "p"}'])
    response = agent.client("a").post("/GetKey", content=parts, headers={"content-type": "application/json"})
    assert response.json()["key"] == agent.call("a", "/GetKey", {"path": "p"})["key"]


def test_refuses_an_endless_chunked_request(agent: RunningAgent) -> None:
    piece = b" " * 65536
    with agent.connect() as sock:
        sock.sendall(
            b"POST /GetKey HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(LIMIT // len(piece) + 1):
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_only_the_external_port_names_the_version(agent: RunningAgent) -> None:
    outside = agent.client("c").post("/prpc/Version", json={})
    assert outside.headers["x-app-version"].startswith("v")
    assert "x-app-version" in agent.client("c").get("/nowhere").headers
    assert "x-app-version" not in agent.client("a").post("/Version", json={}).headers


def _request(path: str, body: bytes) -> list[bytes]:
    """Return a request in the pieces in which the JavaScript SDK writes one."""
    return [
        f"POST {path} HTTP/1.1\r\n".encode(),
        b"Host: localhost\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Length: %d\r\n" % len(body),
        b"\r\n",
        body,
    ]


def _until_closed(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return head and body of what comes until the other side closes."""
    received = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("mount", ["a", "b", "c"])
@pytest.mark.parametrize("slow", [False, True])
def test_a_client_that_ends_its_side_gets_its_whole_answer(
    mount: str, *, slow: bool, agent: RunningAgent
) -> None:
    path = {"a": "/Info", "b": "/prpc/Tappd.Info", "c": "/prpc/Worker.Info"}[mount]
    path = {"a": "/GetQuote", "b": "/prpc/Tappd.TdxQuote"}.get(mount, path) if slow else path
    with agent.connect(mount) as sock:
        for piece in _request(path, b"{}"):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        head, body = _until_closed(sock)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)


def test_a_client_that_ended_its_side_waits_for_a_worker(tmp_path) -> None:
    """The answer is made in a thread, long after the end of the client's side was seen."""
    compose = app_compose()
    with running(tmp_path, tdx_attestor(tmp_path, compose), compose) as agent:
        agent.issuer.answered.acquire(timeout=30)
        agent.issuer.gate.clear()
        with agent.connect() as sock:
            sock.sendall(b"".join(_request("/GetTlsKey", b"{}")))
            sock.shutdown(socket.SHUT_WR)
            agent.call("a", "/Info")
            agent.issuer.gate.set()
            head, body = _until_closed(sock)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["certificate_chain"]


def test_an_idle_connection_is_closed_with_the_clients_side(agent: RunningAgent) -> None:
    with agent.connect() as sock:
        sock.sendall(b"".join(_request("/Version", b"{}")))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_half_a_request_is_not_answered(agent: RunningAgent) -> None:
    with agent.connect() as sock:
        sock.sendall(b"".join(_request("/Version", b"{}"))[:-1])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_requests_that_came_at_once_are_all_answered_before_the_end(agent: RunningAgent) -> None:
    with agent.connect() as sock:
        sock.sendall(b"".join(_request("/GetQuote", b"{}") + _request("/Version", b"{}")))
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 ") == 2


def test_a_request_in_single_bytes_is_answered(agent: RunningAgent) -> None:
    with agent.connect() as sock:
        for byte in b"".join(_request("/Version", b"{}")):
            sock.sendall(bytes([byte]))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_reads_nothing_holds_up_nobody(agent: RunningAgent) -> None:
    with agent.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.sendall(b"".join(_request("/Info", b"{}") * 50))
        assert agent.call("a", "/Info")


def test_a_connection_serves_many_requests(agent: RunningAgent) -> None:
    client = agent.client("a")
    assert all(client.post("/Version", json={}).status_code == 200 for _ in range(20))


def test_a_thousand_clients_get_info_at_once(agent: RunningAgent) -> None:
    before = agent.attestor.count
    expected = agent.call("a", "/Info")
    transport = httpx.AsyncHTTPTransport(
        uds=str(agent.internal), limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
    )

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://agent.test", timeout=60) as client:
            return await asyncio.gather(*(client.post("/Info", json={}) for _ in range(1000)))

    answers = asyncio.run(run())
    assert all(answer.status_code == 200 and answer.json() == expected for answer in answers)
    assert agent.attestor.count == before


def test_clients_at_once_get_quotes_of_their_own(agent: RunningAgent) -> None:
    def ask(number: int) -> str:
        answer = agent.call("a", "/GetQuote", {"report_data": f"{number:02x}"})
        return str(answer["report_data"])

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, range(16)))
    assert told == [f"{number:02x}" + "00" * 63 for number in range(16)]


@pytest.mark.parametrize(
    ("mount", "certifying", "path"),
    [
        ("a", "/GetTlsKey", "/GetQuote"),
        ("a", "/v1/IssueCert", "/v1/Attest"),
        ("b", "/prpc/Tappd.DeriveKey", "/prpc/Tappd.TdxQuote"),
    ],
)
def test_a_kms_that_is_down_takes_no_evidence_away(
    mount: str, certifying: str, path: str, agent: RunningAgent
) -> None:
    """Who asked for a certificate has left after three seconds, and what asks the KMS goes on for thirty."""
    agent.issuer.gate.clear()
    request = f"POST {certifying}?json HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{{}}".encode()
    with ExitStack() as waiting:
        for _ in range(KNOWN_THREADS + IDENTIFYING_THREADS):
            waiting.enter_context(agent.connect(mount)).sendall(request)
        try:
            assert agent.call(mount, path, {"report_data": "00" * 64})
            assert not agent.issuer.gave_up
        finally:
            agent.issuer.gate.set()


def test_evidence_over_a_challenge_is_on_the_external_port(agent: RunningAgent) -> None:
    answer = agent.call("c", "/evidence", {"challenge": "00" * 32})
    assert bytes.fromhex(answer["attestation"])
