"""Doubt is refusal: what a dead, slow or lying function, or a stale allow, gets (N-57, N-58, N-59)."""

import json
from collections.abc import Callable

import msgspec
import pytest

from enclave.kms import authorization
from enclave.kms.authorization import DevAuthorizer, ProofAuthorizer, WebhookAuthorizer
from enclave.kms.config import Proof
from shared.boot_info import BootInfo
from shared.chain import decision as chain
from shared.chain.code import code_list
from shared.chain.header import BlockRef
from shared.errors import DstackError, PolicyDenied, ProtocolError, UnavailableError
from shared.net.response import Response
from tests.shared.refusal import refuses

NOW = 1_900_000_000
HEAD_TIMESTAMP = NOW - 5
BOOT_INFO = BootInfo(
    tee_variant="dstack-nitro-enclave",
    mr_aggregated=bytes([1]) * 32,
    os_image_hash=bytes([1]) * 32,
    mr_system=bytes([1]) * 32,
    app_id=bytes([2]) * 20,
    compose_hash=bytes([1]) * 32,
    instance_id=b"",
    device_id=bytes([3]) * 32,
    key_provider_info=b"",
    tcb_status="",
    advisory_ids=(),
)
EMPTY_PROOF = {"headers": [], "nodes": [], "codes": []}


class Function:
    """An HTTP client whose other end answers what a test says."""

    def __init__(self, body: object = None, status: int = 200) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.asked: list[str] = []

    def request(self, method: str, url: str, body: bytes | None = None, headers: object = None) -> Response:
        del body
        self.headers = headers
        self.asked.append(f"{method} {url}")
        return Response(self.status, {}, self.body)


class DeadFunction(Function):
    """Nobody answers."""

    def request(self, *_arguments: object, **_options: object) -> Response:
        raise UnavailableError("net.timeout", "no answer in time")


class Quorum:
    """Names two blocks, or fails."""

    def __init__(self, failure: DstackError | None = None) -> None:
        self.failure = failure
        self.asked = 0

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return BlockRef(5, bytes([5]) * 32), BlockRef(7, bytes([7]) * 32)


def _proof(
    http: Function,
    *,
    quorum: Quorum | None = None,
    allow_cache: int = 0,
    now: Callable[[], int] = lambda: NOW,
    raise_floor: Callable[[int], None] = lambda _timestamp: None,
) -> ProofAuthorizer:
    settings = Proof(
        url="https://authorize.example/",
        chain_id=1,
        kms_contract="0x" + "11" * 20,
        rpc_urls=("https://a.example", "https://b.example"),
        allow_cache=allow_cache,
    )
    policy = chain.ChainPolicy(chain_id=1, kms_contract=bytes([0x11]) * 20, codes=code_list())
    return ProofAuthorizer(
        settings,
        policy,
        quorum or Quorum(),
        http,  # type: ignore[arg-type]
        now,
        raise_floor,
    )


def _decided(*, is_allowed: bool = True, expires_at: int = NOW + 60) -> chain.Decision:
    return chain.Decision(
        is_allowed=is_allowed,
        reason="" if is_allowed else "Compose hash not allowed",
        gateway_app_id="gateway",
        app_implementation=bytes(20),
        finalized_number=5,
        expires_at=expires_at,
        head_timestamp=HEAD_TIMESTAMP,
    )


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[chain.Decision]:
    """Replace the proof check by a list of answers; the last one stays."""
    answers = [_decided()]

    def decide_all(
        _bundle: object, *, subjects: tuple[object, ...], **_options: object
    ) -> list[chain.Decision]:
        return [answers.pop(0) if len(answers) > 1 else answers[0] for _ in subjects]

    monkeypatch.setattr(authorization.chain, "decide_all", decide_all)
    return answers


def _answer(**changes: object) -> dict[str, object]:
    return {"isAllowed": True, "gatewayAppId": "", "reason": "", "proof": EMPTY_PROOF, **changes}


def _refusal(call: Callable[[], object], kind: type[DstackError]) -> str:
    with pytest.raises(kind) as refusal:
        call()
    return refusal.value.code


def test_names_the_quorums_blocks_to_the_function(decided) -> None:  # noqa: ARG001
    http = Function(_answer())
    assert _proof(http).authorize("app", BOOT_INFO).is_allowed
    query = f"proof=1&packed=1&finalized=0x{'05' * 32}&head=0x{'07' * 32}"
    assert http.asked == [f"POST https://authorize.example/bootAuth/app?{query}"]


def test_the_questions_of_one_request_are_decided_at_the_same_blocks(decided) -> None:  # noqa: ARG001
    quorum = Quorum()
    authorizer = _proof(Function(_answer()), quorum=quorum)
    decide = authorizer.for_one_request()
    assert quorum.asked == 0
    assert decide("kms", BOOT_INFO).head_block == decide("app", BOOT_INFO).head_block == 7
    assert quorum.asked == 1
    authorizer.for_one_request()("app", BOOT_INFO)
    assert quorum.asked == 2


class Routes:
    """A function that answers each route as a test says: with a document, or with an error."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def request(self, _method: str, url: str, body: bytes | None = None, headers: object = None) -> Response:
        del body, headers
        route = url.partition("/bootAuth/")[2].partition("?")[0]
        self.asked.append(route)
        answer = self.answers.get(route)
        if isinstance(answer, DstackError):
            raise answer
        return Response(200 if answer else 404, {}, json.dumps(answer or {"statusCode": 404}).encode())


APP = chain.Subject("app", BOOT_INFO)


def _all(*answers: dict[str, object], **changes: object) -> dict[str, object]:
    bare = {"isAllowed": True, "gatewayAppId": "", "reason": ""}
    return {"answers": answers or (bare, bare), "proof": EMPTY_PROOF, **changes}


def test_asks_about_itself_and_the_caller_at_once(decided: list[chain.Decision]) -> None:
    decided[:] = [_decided(), _decided(is_allowed=False)]
    http = Routes(all=_all())
    decide = _proof(http).for_one_request(lambda: APP)  # type: ignore[arg-type]
    assert decide("kms", BOOT_INFO).is_allowed
    assert decide("app", BOOT_INFO).reason == "Compose hash not allowed"
    assert http.asked == ["all"]


def test_sends_both_questions_in_the_order_in_which_they_are_decided(decided) -> None:  # noqa: ARG001
    class Listening(Routes):
        def request(
            self, method: str, url: str, body: bytes | None = None, headers: object = None
        ) -> Response:
            self.body = json.loads(body or b"")
            return super().request(method, url, body, headers)

    http = Listening(all=_all())
    _proof(http).for_one_request(lambda: APP)("kms", BOOT_INFO)  # type: ignore[arg-type]
    assert [one["kind"] for one in http.body["questions"]] == ["kms", "app"]
    assert http.body["questions"][1]["bootInfo"] == BOOT_INFO.to_wire()


def test_asks_one_by_one_where_the_function_is_an_older_one(decided) -> None:  # noqa: ARG001
    http = Routes(kms=_answer(), app=_answer())
    decide = _proof(http).for_one_request(lambda: APP)  # type: ignore[arg-type]
    assert decide("kms", BOOT_INFO).is_allowed
    assert decide("app", BOOT_INFO).is_allowed
    assert http.asked == ["all", "kms", "app"]


def test_a_question_that_cannot_be_answered_leaves_the_other_its_answer(decided) -> None:  # noqa: ARG001
    refused = _all(proof=None, code="rpc.reverted")
    http = Routes(all=refused, kms=_answer(), app=_answer(proof=None, reason="", code="rpc.reverted"))
    decide = _proof(http).for_one_request(lambda: APP)  # type: ignore[arg-type]
    assert decide("kms", BOOT_INFO).is_allowed
    assert _refusal(lambda: decide("app", BOOT_INFO), PolicyDenied) == "auth.proof.absent"


def test_one_that_is_not_decided_together_is_not_counted_as_allowed(decided) -> None:  # noqa: ARG001
    denied = {"isAllowed": False, "gatewayAppId": "", "reason": "no"}
    allowed = {"isAllowed": True, "gatewayAppId": "", "reason": ""}
    http = Routes(all=_all(allowed, denied), kms=_answer(), app=_answer(**denied))
    decide = _proof(http).for_one_request(lambda: APP)  # type: ignore[arg-type]
    assert decide("kms", BOOT_INFO).is_allowed
    assert _refusal(lambda: decide("app", BOOT_INFO), PolicyDenied) == "auth.proof.disagrees"


def test_a_dead_function_is_asked_once(decided) -> None:  # noqa: ARG001
    http = Routes(all=UnavailableError("net.timeout", "no answer in time"), kms=_answer())
    decide = _proof(http).for_one_request(lambda: APP)  # type: ignore[arg-type]
    assert _refusal(lambda: decide("kms", BOOT_INFO), UnavailableError) == "net.timeout"
    assert http.asked == ["all"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_answers_answers_nothing(decided, count: int) -> None:  # noqa: ARG001
    answers = [{"isAllowed": True, "gatewayAppId": "", "reason": ""}] * count
    http = Routes(all=_all(answers=answers), kms=_answer(proof=None))
    authorizer = _proof(http)  # type: ignore[arg-type]
    decide = authorizer.for_one_request(lambda: APP)
    assert _refusal(lambda: decide("kms", BOOT_INFO), PolicyDenied) == "auth.proof.absent"
    with refuses("auth.api.malformed", ProtocolError):
        authorizer._ask((APP, APP), "")


def test_a_lone_surrogate_in_one_of_several_answers_is_malformed() -> None:
    answers = [{"isAllowed": True, "gatewayAppId": "", "reason": "\ud800"}] * 2
    with refuses("auth.api.malformed", ProtocolError):
        _proof(Routes(all=_all(answers=answers)))._ask((APP, APP), "")  # type: ignore[arg-type]


def test_a_second_question_that_cannot_be_formed_is_left_out(decided) -> None:  # noqa: ARG001
    def following() -> chain.Subject:
        raise PolicyDenied("kms.no_attestation", "No attestation provided")

    http = Routes(kms=_answer())
    assert _proof(http).for_one_request(following)("kms", BOOT_INFO).is_allowed  # type: ignore[arg-type]
    assert http.asked == ["kms"]


def test_a_first_question_that_is_the_second_is_asked_alone(decided) -> None:  # noqa: ARG001
    http = Routes(app=_answer())
    assert _proof(http).for_one_request(lambda: APP)("app", BOOT_INFO).is_allowed  # type: ignore[arg-type]
    assert http.asked == ["app"]


@pytest.mark.parametrize(("remembered", "asked"), [("kms", ["app"]), ("app", ["kms"])])
def test_what_is_remembered_is_not_asked_with_the_other(decided, remembered, asked) -> None:  # noqa: ARG001
    http = Routes(kms=_answer(), app=_answer())
    authorizer = _proof(http, allow_cache=60)  # type: ignore[arg-type]
    authorizer.authorize(remembered, BOOT_INFO)
    http.asked.clear()
    decide = authorizer.for_one_request(lambda: APP)
    assert decide("kms", BOOT_INFO).is_allowed
    assert decide("app", BOOT_INFO).is_allowed
    assert http.asked == asked


def test_n58_allows_that_came_together_are_remembered_one_by_one(decided: list[chain.Decision]) -> None:
    decided[:] = [_decided(), _decided(is_allowed=False)]
    authorizer = _proof(Routes(all=_all()), allow_cache=60)  # type: ignore[arg-type]
    authorizer.for_one_request(lambda: APP)("kms", BOOT_INFO)
    assert authorizer.recall("kms", BOOT_INFO) is not None
    assert authorizer.recall("app", BOOT_INFO) is None


def test_the_clock_may_not_fall_behind_an_accepted_head(decided: list[chain.Decision]) -> None:
    decided[0] = _decided(is_allowed=False)
    told: list[int] = []
    _proof(Function(_answer()), raise_floor=told.append).authorize("app", BOOT_INFO)
    assert told == [HEAD_TIMESTAMP]


def test_the_proof_decides_and_not_the_function(decided: list[chain.Decision]) -> None:
    decided[0] = _decided(is_allowed=False)
    decision = _proof(Function(_answer(isAllowed=True))).authorize("app", BOOT_INFO)
    assert (decision.is_allowed, decision.reason) == (False, "Compose hash not allowed")


def test_an_answer_that_contradicts_its_proof_is_refused(decided) -> None:  # noqa: ARG001
    http = Function(_answer(isAllowed=False, reason="no"))
    assert _refusal(lambda: _proof(http).authorize("app", BOOT_INFO), PolicyDenied) == "auth.proof.disagrees"


def test_n57_a_proof_that_proves_nothing_is_refused() -> None:
    with pytest.raises(DstackError) as refusal:
        _proof(Function(_answer())).authorize("app", BOOT_INFO)
    assert refusal.value.code == "proof.header.mismatch"


def test_n57_an_allow_without_a_proof_is_refused() -> None:
    http = Function(_answer(proof=None))
    assert _refusal(lambda: _proof(http).authorize("app", BOOT_INFO), PolicyDenied) == "auth.proof.absent"


def test_n57_a_function_without_a_proof_says_why() -> None:
    http = Function(_answer(isAllowed=False, reason="no", code="proof.provider.cannot_prove", proof=None))
    with pytest.raises(PolicyDenied) as refusal:
        _proof(http).authorize("app", BOOT_INFO)
    assert refusal.value.message == "no [proof.provider.cannot_prove]"


def test_n57_a_backend_that_is_down_refuses_in_its_own_words() -> None:
    http = Function({"isAllowed": False, "gatewayAppId": "", "reason": "authorization backend unavailable"})
    with pytest.raises(PolicyDenied) as refusal:
        _proof(http).authorize("app", BOOT_INFO)
    assert refusal.value.message == "authorization backend unavailable"


def test_n57_a_dead_or_slow_function_is_a_refusal() -> None:
    assert (
        _refusal(lambda: _proof(DeadFunction()).authorize("app", BOOT_INFO), UnavailableError)
        == "net.timeout"
    )


@pytest.mark.parametrize("make", [_proof, lambda http: WebhookAuthorizer("http://hook", http)])
def test_n57_a_500_is_a_refusal_that_quotes_it(make) -> None:
    with pytest.raises(UnavailableError) as refusal:
        make(Function(b"x" * 2000, 500)).authorize("app", BOOT_INFO)
    assert refusal.value.code == "auth.api.status"
    assert refusal.value.message.endswith(f" returned 500: {'x' * 512}")


def test_names_itself_as_upstreams_kms_does() -> None:
    http = Function(_answer())
    WebhookAuthorizer("http://hook", http).authorize("app", BOOT_INFO)
    assert http.headers["user-agent"].startswith("dstack-kms/")


def test_facts_are_proven_once_in_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [NOW]
    facts = chain.ContractFacts(
        gateway_app_id="g", app_implementation=bytes(20), finalized_number=5, expires_at=NOW
    )
    monkeypatch.setattr(authorization.chain, "contract_facts", lambda *_arguments, **_options: facts)
    body = {"status": "ok", "kmsContractAddr": "", "gatewayAppId": "", "chainId": 1, "appImplementation": ""}
    http = Function({**body, "proof": EMPTY_PROOF})
    authorizer = _proof(http, now=lambda: clock[0])
    for _ in range(3):
        assert authorizer.info().gateway_app_id == "g"
    assert len(http.asked) == 1
    clock[0] += authorization.INFO_MEMORY
    authorizer.info()
    assert len(http.asked) == 2


def test_an_endpoint_that_is_down_is_asked_for_facts_once_in_a_few_seconds() -> None:
    """However many wait for the answer: they hold a thread each."""
    clock = [NOW]
    http = Function(b"down", 500)
    authorizer = _proof(http, now=lambda: clock[0])
    for _ in range(3):
        with refuses("auth.api.status", UnavailableError):
            authorizer.info()
    assert len(http.asked) == 1
    clock[0] += authorization.INFO_MEMORY
    with refuses("auth.api.status", UnavailableError):
        authorizer.info()
    assert len(http.asked) == 2


def test_a_refusal_names_the_webhook_without_what_may_be_secret_in_its_url() -> None:
    webhook = WebhookAuthorizer("http://user:word@[::1]:81/token?key=1", Function(b"no", 500))
    with pytest.raises(UnavailableError) as refusal:
        webhook.authorize("app", BOOT_INFO)
    assert refusal.value.message == "auth api http://[::1]:81 returned 500: no"


@pytest.mark.parametrize(
    "body",
    [
        b'{"isAllowed":"true","gatewayAppId":"","reason":""}',
        b'{"isAllowed":1,"gatewayAppId":"","reason":""}',
        b'{"isAllowed":true,"gatewayAppId":""}',
        b'{"isAllowed":true,"gatewayAppId":"","reas',
        b"",
        b"[]",
        b'{"isAllowed":true,"gatewayAppId":"","reason":"","isAllowed":true}',
        b'{"isAllowed":true,"gatewayAppId":"\\ud800","reason":""}',
        b'{"isAllowed":true,"gatewayAppId":"","reason":"","proof":' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("make", [_proof, lambda http: WebhookAuthorizer("http://hook", http)])
def test_n57_a_malformed_answer_is_a_refusal(make, body: bytes) -> None:
    call = make(Function(body)).authorize
    assert _refusal(lambda: call("app", BOOT_INFO), ProtocolError) == "auth.api.malformed"


def test_n57_a_quorum_that_disagrees_is_a_refusal() -> None:
    quorum = Quorum(UnavailableError("quorum.disagreement", "1 of 2"))
    http = Function(_answer())
    assert (
        _refusal(lambda: _proof(http, quorum=quorum).authorize("app", BOOT_INFO), UnavailableError)
        == "quorum.disagreement"
    )
    assert http.asked == []


def test_allows_are_asked_for_again_by_default(decided) -> None:  # noqa: ARG001
    http = Function(_answer())
    authorizer = _proof(http)
    authorizer.authorize("app", BOOT_INFO)
    authorizer.authorize("app", BOOT_INFO)
    assert len(http.asked) == 2


def test_n58_a_cached_allow_expires(decided) -> None:  # noqa: ARG001
    clock = [NOW]
    http = Function(_answer())
    authorizer = _proof(http, allow_cache=60, now=lambda: clock[0])
    for _ in range(3):
        authorizer.authorize("app", BOOT_INFO)
    assert len(http.asked) == 1
    clock[0] = NOW + 60
    authorizer.authorize("app", BOOT_INFO)
    assert len(http.asked) == 2


def test_n58_a_cached_allow_ends_with_its_blocks(decided: list[chain.Decision]) -> None:
    clock = [NOW]
    decided[0] = _decided(expires_at=NOW + 5)
    http = Function(_answer())
    authorizer = _proof(http, allow_cache=60, now=lambda: clock[0])
    authorizer.authorize("app", BOOT_INFO)
    clock[0] = NOW + 5
    authorizer.authorize("app", BOOT_INFO)
    assert len(http.asked) == 2


def test_n58_an_allow_is_cached_for_exactly_what_was_asked(decided) -> None:  # noqa: ARG001
    http = Function(_answer())
    authorizer = _proof(http, allow_cache=60)
    authorizer.authorize("app", BOOT_INFO)
    authorizer.authorize("kms", BOOT_INFO)
    authorizer.authorize("app", msgspec.structs.replace(BOOT_INFO, compose_hash=bytes([8]) * 32))
    assert len(http.asked) == 3


@pytest.mark.parametrize("allow_cache", [0, 60])
def test_who_remembers_nothing_says_so(decided, allow_cache: int) -> None:  # noqa: ARG001
    authorizer = _proof(Function(_answer()), allow_cache=allow_cache)
    authorizer.authorize("app", BOOT_INFO)
    assert authorizer.remembers == (authorizer.recall("app", BOOT_INFO) is not None)


def test_a_refusal_is_never_cached(decided: list[chain.Decision]) -> None:
    decided[:] = [_decided(is_allowed=False), _decided()]
    authorizer = _proof(Function(_answer()), allow_cache=60)
    assert not authorizer.authorize("app", BOOT_INFO).is_allowed
    assert authorizer.authorize("app", BOOT_INFO).is_allowed


def test_the_webhook_is_believed_and_says_so() -> None:
    webhook = WebhookAuthorizer("http://hook/", Function(_answer(gatewayAppId="g")))
    assert webhook.mode == "webhook"
    assert webhook.authorize("app", BOOT_INFO).gateway_app_id == "g"


def test_webhook_info_is_what_the_server_says() -> None:
    body = {
        "status": "ok",
        "kmsContractAddr": "0x11",
        "gatewayAppId": "g",
        "chainId": 5,
        "appImplementation": "0x22",
        "appAuthImplementation": "0x22",
    }
    info = WebhookAuthorizer("http://hook", Function(body)).info()
    assert (info.chain_id, info.kms_contract_address, info.finalized_block) == (5, "0x11", 0)


def test_dev_mode_has_no_contract() -> None:
    assert DevAuthorizer("any").info().chain_id is None
    assert DevAuthorizer("any").authorize("app", BOOT_INFO).gateway_app_id == "any"
