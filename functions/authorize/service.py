"""The authorization webhook, free of any cloud: routes, bodies and status codes of contracts section 2.2.

It is untrusted and fails closed. An answer is what the contract said at one pinned block; with `?proof=1` it
carries the bundle from which the KMS decides for itself. Whatever goes wrong with the chain is a 200 that
denies, as upstream's KMS expects; the error's code goes to the log, and to a caller that asked for a proof.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qs

import msgspec

from functions.authorize.chain_reader import Blocks, ChainReader
from functions.authorize.policy import DENIALS, PlatformPolicy, read_policy
from functions.authorize.request import INVALID, parse_boot_info
from functions.authorize.settings import Settings
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.bundle import ProofBundle
from shared.chain.decision import Subject
from shared.chain.facts import Kind
from shared.errors import DstackError, ProtocolError
from shared.hex import decode_hex
from shared.net.breaker import spare_endpoints
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import MAX_CONTAINERS, Endpoint, JsonRpc
from shared.net.proof_source import ProofRequest

# Per round trip to the node: two for a decision, one more for a proof at blocks that nobody named, and some
# where endpoints fail; a gateway waits 30 s.
RPC_TIMEOUT = 5.0
# The reference server's limit for a body; an honest one is below 2 KiB.
MAX_BODY_BYTES = 1024 * 1024

INVALID_REQUEST = "invalid authorization request"
BACKEND_UNAVAILABLE = "authorization backend unavailable"
CONTENT_TYPE = "application/json; charset=utf-8"

_SELECTORS = {"app": abi.IS_APP_ALLOWED, "kms": abi.IS_KMS_ALLOWED}
_ROUTES: dict[tuple[str, str], Literal["info", "app", "kms", "all"]] = {
    ("GET", "/"): "info",
    ("POST", "/bootAuth/app"): "app",
    ("POST", "/bootAuth/kms"): "kms",
    ("POST", "/bootAuth/all"): "all",
}
# A KMS asks about itself and about who calls it.
MAX_QUESTIONS = 2


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and a JSON object."""

    status: int
    body: dict[str, object]

    def encode(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(self.body)


class _ProofWanted(msgspec.Struct, frozen=True):
    """The caller wants a proof, at the blocks it names, or else at the endpoints' finalised and newest.

    `packed` is for the short form of it, which our key server asks for.
    """

    named: Blocks | None
    packed: bool


class AuthorizeService:
    """Answers the webhook for one contract, from JSON-RPC endpoints.

    `report(code, message)` is told about every failure; the answer does not show it. `now` is unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        endpoints: Sequence[Endpoint],
        report: Callable[[str, str], None] = lambda _code, _message: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._chain = ChainReader(
            endpoints,
            settings.kms_contract,
            chain_id=settings.chain_id,
            quorum=settings.quorum,
            max_head_age=settings.max_head_age,
            now=now,
        )
        self._report = report

    def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request: `query` without its question mark, header names in any case."""
        route = _ROUTES.get((method, path))
        if route is None:
            target = f"{path}?{query}" if query else path
            return Answer(
                404,
                {"message": f"Route {method}:{target} not found", "error": "Not Found", "statusCode": 404},
            )
        try:
            wanted = _proof_wanted(query)
            document = None if route == "info" else _decode_body(headers, body)
        except DstackError as error:
            return self._invalid(error, None) if error.code == INVALID else self._failed(error)
        if route == "info":
            return self._info(wanted)
        if route == "all":
            return self._boot_auth_all(document, wanted)
        return self._boot_auth(route, document, wanted)

    def _info(self, wanted: _ProofWanted | None) -> Answer:
        try:
            policy = self._policy()
            read = self._chain.read(
                (abi.call(abi.GATEWAY_APP_ID), abi.call(abi.APP_IMPLEMENTATION)),
                (ProofRequest(),) if wanted else (),
                wanted.named if wanted else None,
            )
            address = abi.checksum_address(abi.decode_address(read.results[1]))
            answer: dict[str, object] = {
                "status": "ok",
                "kmsContractAddr": abi.checksum_address(self._settings.kms_contract),
                "ethRpcUrl": self._settings.public_urls[0],
                "gatewayAppId": abi.decode_string(read.results[0]),
                "chainId": read.chain_id,
                "appAuthImplementation": address,
                "appImplementation": address,
            }
        except DstackError as error:
            return self._failed(error)
        if len(self._settings.rpc_urls) > 1:
            answer |= {"ethRpcUrls": self._settings.public_urls, "quorum": self._settings.quorum}
        if policy is not None:
            answer["policy"] = policy
        return Answer(200, answer | _proof(read.bundle, wanted))

    def _boot_auth(self, kind: Kind, document: object, wanted: _ProofWanted | None) -> Answer:
        try:
            boot_info = parse_boot_info(document)
        except ProtocolError as error:
            return self._invalid(error, wanted)
        try:
            return Answer(200, self._decision(kind, boot_info, wanted))
        except DstackError as error:
            self._report(error.code, error.message)
            answer = _denied(error.message if error.code in DENIALS else BACKEND_UNAVAILABLE)
            return Answer(200, answer if wanted is None else {**answer, "code": error.code})

    def _boot_auth_all(self, document: object, wanted: _ProofWanted | None) -> Answer:
        """Answer several questions at one block, with one proof; what fails for one of them fails for all."""
        try:
            subjects = _subjects(document)
        except ProtocolError as error:
            return self._invalid(error, wanted)
        try:
            decisions, bundle = self._decisions(subjects, wanted)
        except DstackError as error:
            self._report(error.code, error.message)
            reason = error.message if error.code in DENIALS else BACKEND_UNAVAILABLE
            return Answer(200, {"answers": [_denied(reason)] * len(subjects), "code": error.code})
        return Answer(200, {"answers": decisions, **_proof(bundle, wanted)})

    def _decision(self, kind: Kind, boot_info: BootInfo, wanted: _ProofWanted | None) -> dict[str, object]:
        [decision], bundle = self._decisions((Subject(kind, boot_info),), wanted)
        return decision | _proof(bundle, wanted)

    def _decisions(
        self, subjects: Sequence[Subject], wanted: _ProofWanted | None
    ) -> tuple[list[dict[str, object]], ProofBundle | None]:
        policy = self._policy()
        if policy is not None:
            for subject in subjects:
                policy.check(subject.boot_info)
        calls = [abi.boot_info_call(_SELECTORS[one.kind], one.boot_info) for one in subjects]
        read = self._chain.read(
            (*calls, abi.call(abi.GATEWAY_APP_ID)),
            tuple(ProofRequest(one.kind, one.boot_info) for one in subjects) if wanted else (),
            wanted.named if wanted else None,
        )
        *results, gateway = read.results
        gateway_app_id = abi.decode_string(gateway)
        decisions: list[dict[str, object]] = []
        for result in results:
            is_allowed, reason = abi.decode_decision(result)
            decisions.append({"isAllowed": is_allowed, "reason": reason, "gatewayAppId": gateway_app_id})
        return decisions, read.bundle

    def _policy(self) -> PlatformPolicy | None:
        return read_policy(self._settings.policy_file) if self._settings.policy_file else None

    def _invalid(self, error: DstackError, wanted: _ProofWanted | None) -> Answer:
        self._report(error.code, error.message)
        answer = _denied(INVALID_REQUEST)
        return Answer(400, answer if wanted is None else {**answer, "code": error.code})

    def _failed(self, error: DstackError) -> Answer:
        self._report(error.code, error.message)
        return Answer(500, {"status": "error", "message": BACKEND_UNAVAILABLE})


def service_from(settings: Settings, report: Callable[[str, str], None]) -> AuthorizeService:
    """Build the service over HTTP, for the entries of the clouds."""
    http = HttpClient(DirectDialer(), timeout=RPC_TIMEOUT)
    endpoints = [JsonRpc(url, http) for url in settings.rpc_urls]
    return AuthorizeService(settings, spare_endpoints(endpoints, settings.quorum), report)


def _denied(reason: str) -> dict[str, object]:
    return {"isAllowed": False, "reason": reason, "gatewayAppId": ""}


def _subjects(document: object) -> list[Subject]:
    """Read `{"questions": [{"kind": "kms", "bootInfo": {}}, ...]}`, one or two of them."""
    questions = document.get("questions") if isinstance(document, dict) else None
    if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise ProtocolError(INVALID, f"questions is no list of 1 to {MAX_QUESTIONS}")
    return [_subject(question) for question in questions]


def _subject(question: object) -> Subject:
    kind = question.get("kind") if isinstance(question, dict) else None
    if not isinstance(question, dict) or kind not in tuple(_SELECTORS):
        raise ProtocolError(INVALID, "a question is no object of a kind, app or kms, and a bootInfo")
    return Subject(kind, parse_boot_info(question.get("bootInfo")))


def _decode_body(headers: Mapping[str, str], body: bytes) -> object:
    """Decode a JSON body; what is not JSON by type or by content is a server error, as at the reference."""
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    if not body and not content_type:
        return None
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise ProtocolError("authorize.body.type", "the content type is not application/json")
    if len(body) > MAX_BODY_BYTES or body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise ProtocolError(
            "authorize.body.size",
            f"the body has {len(body)} bytes, expected at most {MAX_BODY_BYTES} and few lists and objects",
        )
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError as error:  # of any type there is one: a number that no double holds
        raise ProtocolError(INVALID, f"the body is out of range: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("authorize.body.json", f"the body is not json: {error}") from error


def _proof_wanted(query: str) -> _ProofWanted | None:
    try:
        values = parse_qs(query, keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise ProtocolError("authorize.query.invalid", f"the query is malformed: {error}") from error
    if values.get("proof") != ["1"]:
        return None
    packed = values.get("packed") == ["1"]
    named = [values[name][-1] for name in ("finalized", "head") if name in values]
    if not named:
        return _ProofWanted(None, packed)
    if len(named) == 1:
        raise ProtocolError("authorize.query.invalid", "the query names one block of two: finalized and head")
    finalized, head = (decode_hex(value, what="a block of the query", length=32) for value in named)
    return _ProofWanted((finalized, head), packed)


def _proof(bundle: ProofBundle | None, wanted: _ProofWanted | None) -> dict[str, object]:
    if bundle is None or wanted is None:
        return {}
    return {"proof": bundle.to_packed() if wanted.packed else bundle.to_wire()}
