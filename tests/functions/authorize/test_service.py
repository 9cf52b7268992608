"""What the service promises beyond the goldens: one pinned block, proofs that decide, denial on failure."""

import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from functions.authorize.request import parse_boot_info
from functions.authorize.service import Answer, AuthorizeService, service_from
from functions.authorize.settings import Settings
from shared.chain import abi
from shared.chain.bundle import bundle_from_wire
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy, Subject, contract_facts, decide, decide_all
from shared.chain.header import BlockRef, parse_header
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, Endpoint
from tests.functions.authorize.conftest import rpc

Body = Callable[..., dict[str, Any]]
DENIED = {"isAllowed": False, "reason": "authorization backend unavailable", "gatewayAppId": ""}
JSON = {"content-type": "application/json"}


def post(service: AuthorizeService, body: object, path: str = "/bootAuth/app", query: str = "") -> Answer:
    return service.handle("POST", path, query, JSON, json.dumps(body).encode())


class Recorder:
    """Passes calls on, remembers them, and may spoil answers."""

    host, secure = "recorder", False

    def __init__(self, inner: Endpoint) -> None:
        self.inner = inner
        self.calls: list[list[Call]] = []

    def spoil(self, method: str, result: object) -> object:
        del method
        return result

    def batch(self, calls: Sequence[Call]) -> list[object]:
        self.calls.append(list(calls))
        results = self.inner.batch(calls)
        return [self.spoil(method, result) for (method, _), result in zip(calls, results, strict=True)]


class Spoiling(Recorder):
    def __init__(self, inner: Endpoint, method: str, result: object) -> None:
        super().__init__(inner)
        self.method, self.result = method, result

    def spoil(self, method: str, result: object) -> object:
        return self.result if method == self.method else result


def test_both_reads_use_one_block(settings: Settings, allowed_body: Body) -> None:
    recorder = Recorder(rpc(settings.rpc_urls[0]))
    assert post(AuthorizeService(settings, [recorder]), allowed_body()).body["isAllowed"] is True
    assert len(recorder.calls) == 2
    pinned = [params[1] for calls in recorder.calls for method, params in calls if method == "eth_call"]
    assert len(pinned) == 2
    assert pinned[0] == pinned[1]
    assert pinned[0].keys() == {"blockHash", "requireCanonical"}  # type: ignore[union-attr]


def named_blocks(settings: Settings) -> tuple[BlockRef, BlockRef]:
    finalized, head = rpc(settings.rpc_urls[0]).batch(
        [("eth_getBlockByNumber", ["finalized", False]), ("eth_getBlockByNumber", ["latest", False])]
    )
    return tuple(  # type: ignore[return-value]
        BlockRef(int(one["number"], 16), bytes.fromhex(one["hash"][2:]))  # type: ignore[index]
        for one in (finalized, head)
    )


@pytest.mark.parametrize("kind", ["app", "kms"])
def test_the_proof_decides_what_the_answer_says(
    settings: Settings,
    service: AuthorizeService,
    allowed_body: Body,
    kind: Any,
) -> None:
    finalized, head = named_blocks(settings)
    body = allowed_body()
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"
    answer = post(service, body, f"/bootAuth/{kind}", query).body
    bundle = bundle_from_wire(answer["proof"])
    policy = ChainPolicy(chain_id=31337, kms_contract=settings.kms_contract, codes=code_list())
    now = max(parse_header(raw).timestamp for raw in bundle.headers)
    arguments = {"kind": kind, "boot_info": parse_boot_info(body), "chain": policy, "now": now}
    if kind == "kms":  # the recorded contract lists the zero measurement, which we refuse
        with pytest.raises(DstackError) as caught:
            decide(bundle, finalized=finalized, head=head, **arguments)
        assert caught.value.code == "proof.zero_hash"
        return
    decision = decide(bundle, finalized=finalized, head=head, **arguments)
    assert (decision.is_allowed, decision.reason) == (answer["isAllowed"], answer["reason"])


@pytest.mark.parametrize("path", ["", "/bootAuth/app", "/bootAuth/all"])
def test_a_packed_proof_is_the_same_proof(
    settings: Settings, service: AuthorizeService, allowed_body: Body, path: str
) -> None:
    finalized, head = named_blocks(settings)
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"

    def ask(query: str) -> Any:
        if not path:
            return service.handle("GET", "/", query, {}, b"").body["proof"]
        body = questions(("app", allowed_body())) if path.endswith("all") else allowed_body()
        return post(service, body, path, query).body["proof"]

    plain, packed = ask(query), ask(f"{query}&packed=1")
    assert (type(plain), type(packed)) == (dict, str)
    assert bundle_from_wire(packed) == bundle_from_wire(plain)


def questions(*pairs: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"questions": [{"kind": kind, "bootInfo": boot_info} for kind, boot_info in pairs]}


def test_one_proof_decides_what_the_answers_to_both_questions_say(
    settings: Settings, service: AuthorizeService, allowed_body: Body
) -> None:
    finalized, head = named_blocks(settings)
    own, app = allowed_body(mrAggregated="77" * 32), allowed_body()
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"
    answer = post(service, questions(("kms", own), ("app", app)), "/bootAuth/all", query).body
    bundle = bundle_from_wire(answer["proof"])
    decisions = decide_all(
        bundle,
        subjects=(Subject("kms", parse_boot_info(own)), Subject("app", parse_boot_info(app))),
        chain=ChainPolicy(chain_id=31337, kms_contract=settings.kms_contract, codes=code_list()),
        finalized=finalized,
        head=head,
        now=max(parse_header(raw).timestamp for raw in bundle.headers),
    )
    assert [one["isAllowed"] for one in answer["answers"]] == [False, True]  # type: ignore[attr-defined]
    assert answer["answers"] == [
        {"isAllowed": one.is_allowed, "reason": one.reason, "gatewayAppId": one.gateway_app_id}
        for one in decisions
    ]


def test_both_questions_take_the_round_trips_of_one(settings: Settings, allowed_body: Body) -> None:
    finalized, head = named_blocks(settings)
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"
    recorder = Recorder(rpc(settings.rpc_urls[0]))
    both = questions(("kms", allowed_body()), ("app", allowed_body()))
    post(AuthorizeService(settings, [recorder]), both, "/bootAuth/all", query)
    assert len(recorder.calls) == 2


def test_both_questions_are_answered_without_a_proof_too(
    service: AuthorizeService, allowed_body: Body
) -> None:
    answer = post(service, questions(("kms", allowed_body()), ("app", allowed_body())), "/bootAuth/all")
    alone = [post(service, allowed_body(), f"/bootAuth/{kind}").body for kind in ("kms", "app")]
    assert answer.body == {"answers": alone}


def test_what_fails_for_one_question_fails_for_both(settings: Settings, allowed_body: Body) -> None:
    spoiling = Spoiling(rpc(settings.rpc_urls[0]), "eth_call", "0x")
    both = questions(("kms", allowed_body()), ("app", allowed_body()))
    answer = post(AuthorizeService(settings, [spoiling]), both, "/bootAuth/all")
    assert (answer.status, answer.body) == (
        200,
        {"answers": [DENIED, DENIED], "code": "authorize.contract"},
    )


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        [],
        {"questions": []},
        {"questions": "app"},
        {"questions": [None]},
        {"questions": [{"kind": "app"}]},
        {"questions": [{"kind": "all", "bootInfo": {}}]},
        {"questions": [{"kind": ["app"], "bootInfo": {}}]},
    ],
)
def test_malformed_questions_are_refused(service: AuthorizeService, spoilt: object) -> None:
    answer = post(service, spoilt, "/bootAuth/all", "proof=1")
    assert (answer.status, answer.body["code"]) == (400, "authorize.request.invalid")


def test_three_questions_are_refused(service: AuthorizeService, allowed_body: Body) -> None:
    answer = post(service, questions(*(("app", allowed_body()),) * 3), "/bootAuth/all", "proof=1")
    assert (answer.status, answer.body["code"]) == (400, "authorize.request.invalid")


def test_the_info_proof_proves_the_contracts_facts(settings: Settings, service: AuthorizeService) -> None:
    finalized, head = named_blocks(settings)
    answer = service.handle("GET", "/", "proof=1", {}, b"").body
    bundle = bundle_from_wire(answer["proof"])
    facts = contract_facts(
        bundle,
        chain=ChainPolicy(chain_id=31337, kms_contract=settings.kms_contract, codes=code_list()),
        finalized=finalized,
        head=head,
        now=max(parse_header(raw).timestamp for raw in bundle.headers),
    )
    assert abi.checksum_address(facts.app_implementation) == answer["appImplementation"]


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("eth_call", None),
        ("eth_call", "0x"),
        ("eth_call", "0x" + "00" * 31 + "02" + "00" * 31 + "40" + "00" * 32),
        ("eth_call", {"isAllowed": "true"}),
        ("eth_chainId", "0x1"),
        ("eth_chainId", None),
        ("eth_getBlockByNumber", None),
        ("eth_getBlockByNumber", {"hash": "0x00"}),
    ],
)
def test_n57_malformed_chain_answers_deny(
    settings: Settings, allowed_body: Body, method: str, result: object
) -> None:
    seen: list[str] = []
    endpoint = Spoiling(rpc(settings.rpc_urls[0]), method, result)
    service = AuthorizeService(settings, [endpoint], lambda code, _: seen.append(code))
    answer = post(service, allowed_body())
    assert (answer.status, answer.body) == (200, DENIED)
    assert seen in (["rpc.malformed"], ["abi.malformed"], ["authorize.chain_id"], ["authorize.contract"])


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("net.timeout", "slow"),
        UnavailableError("rpc.status", "500"),
        ProtocolError("rpc.malformed", ""),
    ],
)
def test_n57_every_failure_denies(settings: Settings, allowed_body: Body, failure: DstackError) -> None:
    class Failing(Recorder):
        def batch(self, calls: Sequence[Call]) -> list[object]:
            del calls
            raise failure

    answer = post(AuthorizeService(settings, [Failing(rpc(settings.rpc_urls[0]))]), allowed_body())
    assert (answer.status, answer.body) == (200, DENIED)


def test_n57_a_wrong_chain_id_fails_the_info_page(settings: Settings) -> None:
    other = msgspec.structs.replace(settings, chain_id=1)
    answer = AuthorizeService(other, [rpc(settings.rpc_urls[0])]).handle("GET", "/", "", {}, b"")
    assert (answer.status, answer.body["status"]) == (500, "error")


def test_a_provider_that_cannot_prove_denies_and_says_so(settings: Settings, allowed_body: Body) -> None:
    endpoint = Spoiling(rpc(settings.rpc_urls[0]), "eth_getProof", None)
    answer = post(AuthorizeService(settings, [endpoint]), allowed_body(), query="proof=1")
    assert answer.body == {**DENIED, "code": "proof.provider.cannot_prove"}


def test_an_app_contract_that_reverts_denies(settings: Settings, allowed_body: Body) -> None:
    class Reverting(Recorder):
        def batch(self, calls: Sequence[Call]) -> list[object]:
            if any(method == "eth_call" for method, _ in calls):
                raise UnavailableError("rpc.error", "execution reverted")
            return super().batch(calls)

    answer = post(AuthorizeService(settings, [Reverting(rpc(settings.rpc_urls[0]))]), allowed_body())
    assert (answer.status, answer.body) == (200, DENIED)


def test_n57_a_slow_node_denies_within_the_time_limit(
    settings: Settings, allowed_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.authorize.service.RPC_TIMEOUT", 0.2)
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        service = service_from(
            msgspec.structs.replace(settings, rpc_urls=(url,)), lambda code, _: seen.append(code)
        )
        assert post(service, allowed_body()).body == DENIED
    assert seen == ["net.timeout"]


@pytest.mark.parametrize("query", ["proof=1&head=0x00", "proof=1&finalized=zz", "&".join(["a=b"] * 40)])
def test_a_malformed_query_is_an_error(service: AuthorizeService, allowed_body: Body, query: str) -> None:
    assert post(service, allowed_body(), query=query).status == 500


@pytest.mark.parametrize("query", ["", "proof=0", "proof=", "proof=1&proof=0", "packed=1", "other=1"])
def test_no_proof_unless_asked_for(service: AuthorizeService, allowed_body: Body, query: str) -> None:
    assert set(post(service, allowed_body(), query=query).body) == {"isAllowed", "reason", "gatewayAppId"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("GET", "/bootAuth/app"),
        ("POST", "/bootAuth/app/"),
        ("PUT", "/bootAuth/kms"),
        ("GET", "//"),
    ],
)
def test_other_routes_are_not_found(service: AuthorizeService, method: str, path: str) -> None:
    answer = service.handle(method, path, "", {}, b"")
    assert answer.body == {
        "message": f"Route {method}:{path} not found",
        "error": "Not Found",
        "statusCode": 404,
    }


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"{}"),
        ({"content-type": "text/plain"}, b"{}"),
        (JSON, b""),
        (JSON, b"\xff"),
        (JSON, b'{"a": "\xff"}'),
        (JSON, b'{"a": NaN}'),
        (JSON, b" " * 1_048_577),
        (JSON, b"[" * 100_000),
    ],
)
def test_bodies_that_are_no_json_are_errors(
    service: AuthorizeService, headers: dict[str, str], body: bytes
) -> None:
    answer = service.handle("POST", "/bootAuth/app", "", headers, body)
    assert (answer.status, answer.body) == (
        500,
        {"status": "error", "message": "authorization backend unavailable"},
    )


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "1e400", "-1e400"])
def test_a_number_out_of_range_is_a_bad_request(
    service: AuthorizeService, allowed_body: Body, number: str
) -> None:
    raw = json.dumps(allowed_body(tcbStatus=0)).replace('"tcbStatus": 0', f'"tcbStatus": {number}').encode()
    answer = service.handle("POST", "/bootAuth/app", "", {"content-type": "application/json"}, raw)
    assert (answer.status, answer.body["isAllowed"]) == (400, False)
    assert number.encode() in raw


def test_no_body_at_all_is_a_bad_request(service: AuthorizeService) -> None:
    assert service.handle("POST", "/bootAuth/app", "", {}, b"").status == 400


def test_a_charset_in_the_content_type_is_accepted(service: AuthorizeService, allowed_body: Body) -> None:
    body = json.dumps(allowed_body()).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert service.handle("POST", "/bootAuth/app", "", headers, body).body["isAllowed"] is True


def test_concurrent_requests_share_the_connections(service: AuthorizeService, allowed_body: Body) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(service, allowed_body()))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.body["isAllowed"] for answer in answers] == [True] * 6


REASONS: list[tuple[str, str, dict[str, Any]]] = [
    ("app", "", {}),
    ("app", "App not registered", {"appId": "77" * 20}),
    ("app", "OS image is not allowed", {"osImageHash": "77" * 32}),
    # registered by the recording, and nobody's contract
    ("app", "App not deployed or invalid address", {"appId": "9965507d1a55bcc2695c58ba16fb37d819b0a4dc"}),
    ("app", "TCB status is not up to date", {"tcbStatus": "OutOfDate"}),
    ("app", "TCB status is not up to date", {"tcbStatus": ""}),
    ("app", "Compose hash not allowed", {"composeHash": "77" * 32}),
    ("app", "Device not allowed", {"deviceId": "77" * 32}),
    ("kms", "TCB status is not up to date", {"mrAggregated": "77" * 32, "tcbStatus": "OutOfDate"}),
    ("kms", "OS image is not allowed", {"mrAggregated": "77" * 32, "osImageHash": "77" * 32}),
    ("kms", "Aggregated MR not allowed", {"mrAggregated": "77" * 32}),
]


@pytest.mark.parametrize(("kind", "reason", "changes"), REASONS)
def test_the_proof_decides_what_the_contract_says_for_every_reason(
    settings: Settings,
    service: AuthorizeService,
    allowed_body: Body,
    kind: Any,
    reason: str,
    changes: dict[str, Any],
) -> None:
    """All but `KMS is not allowed to boot on this device`: this contract lists the zero measurement alone."""
    finalized, head = named_blocks(settings)
    body = allowed_body(**changes)
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"
    answer = post(service, body, f"/bootAuth/{kind}", query).body
    assert answer["reason"] == reason
    bundle = bundle_from_wire(answer["proof"])
    decision = decide(
        bundle,
        kind=kind,
        boot_info=parse_boot_info(body),
        chain=ChainPolicy(chain_id=31337, kms_contract=settings.kms_contract, codes=code_list()),
        finalized=finalized,
        head=head,
        now=max(parse_header(raw).timestamp for raw in bundle.headers),
    )
    assert (decision.is_allowed, decision.reason) == (answer["isAllowed"], reason)
