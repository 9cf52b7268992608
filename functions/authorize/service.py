"""The authorization webhook, free of any cloud: routes, bodies and status codes of contracts section 2.2.

It is untrusted and fails closed. An answer is what the contract said at one pinned block; with `?proof=1` it
carries the bundle from which the KMS decides for itself. Whatever goes wrong with the chain is a 200 that
denies, as upstream's KMS expects; the error's code goes to the log, and to a caller that asked for a proof.
"""

from collections.abc import Callable, Mapping
from typing import Literal
from urllib.parse import parse_qs

import msgspec

from functions.authorize.request import INVALID, parse_boot_info
from functions.authorize.settings import Settings
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.facts import Kind
from shared.errors import DstackError, PolicyDenied, ProtocolError
from shared.hex import decode_hex
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import MAX_CONTAINERS, Call, Endpoint, JsonRpc, data, quantity
from shared.net.proof_source import ProofRequest, ProofSource

# Per round trip to the node: two for a decision, two or three more for a proof; a gateway waits 30 s.
RPC_TIMEOUT = 5.0
# The reference server's limit for a body; an honest one is below 2 KiB.
MAX_BODY_BYTES = 1024 * 1024

INVALID_REQUEST = "invalid authorization request"
BACKEND_UNAVAILABLE = "authorization backend unavailable"
CONTENT_TYPE = "application/json; charset=utf-8"

_SELECTORS = {"app": abi.IS_APP_ALLOWED, "kms": abi.IS_KMS_ALLOWED}
_ROUTES: dict[tuple[str, str], Literal["info", "app", "kms"]] = {
    ("GET", "/"): "info",
    ("POST", "/bootAuth/app"): "app",
    ("POST", "/bootAuth/kms"): "kms",
}


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and a JSON object."""

    status: int
    body: dict[str, object]

    def encode(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(self.body)


class _ProofWanted(msgspec.Struct, frozen=True):
    """The caller wants a proof, at the blocks it names, or else at the node's own finalised and newest."""

    finalized: bytes | None
    head: bytes | None


class _Read(msgspec.Struct, frozen=True):
    """What the contract answered at `head`; `finalized` is there when a proof is wanted."""

    chain_id: int
    finalized: bytes | None
    head: bytes
    results: list[bytes]


class AuthorizeService:
    """Answers the webhook for one contract, from one JSON-RPC endpoint.

    `report(code, message)` is told about every failure; the answer does not show it.
    """

    def __init__(
        self,
        settings: Settings,
        rpc: Endpoint,
        report: Callable[[str, str], None] = lambda _code, _message: None,
    ) -> None:
        self._settings = settings
        self._rpc = rpc
        self._proofs = ProofSource(rpc, settings.kms_contract)
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
            return self._invalid(error) if error.code == INVALID else self._failed(error)
        if route == "info":
            return self._info(wanted)
        return self._boot_auth(route, document, wanted)

    def _info(self, wanted: _ProofWanted | None) -> Answer:
        try:
            read = self._read(wanted, abi.call(abi.GATEWAY_APP_ID), abi.call(abi.APP_IMPLEMENTATION))
            address = abi.checksum_address(abi.decode_address(read.results[1]))
            answer: dict[str, object] = {
                "status": "ok",
                "kmsContractAddr": abi.checksum_address(self._settings.kms_contract),
                "ethRpcUrl": self._settings.public_url,
                "gatewayAppId": abi.decode_string(read.results[0]),
                "chainId": read.chain_id,
                "appAuthImplementation": address,
                "appImplementation": address,
            }
            if wanted is not None:
                answer["proof"] = self._proof(ProofRequest(), read)
        except DstackError as error:
            return self._failed(error)
        return Answer(200, answer)

    def _boot_auth(self, kind: Kind, document: object, wanted: _ProofWanted | None) -> Answer:
        try:
            boot_info = parse_boot_info(document)
        except ProtocolError as error:
            return self._invalid(error)
        try:
            return Answer(200, self._decision(kind, boot_info, wanted))
        except DstackError as error:
            self._report(error.code, error.message)
            answer = _denied(BACKEND_UNAVAILABLE)
            return Answer(200, answer if wanted is None else {**answer, "code": error.code})

    def _decision(self, kind: Kind, boot_info: BootInfo, wanted: _ProofWanted | None) -> dict[str, object]:
        read = self._read(
            wanted, abi.boot_info_call(_SELECTORS[kind], boot_info), abi.call(abi.GATEWAY_APP_ID)
        )
        is_allowed, reason = abi.decode_decision(read.results[0])
        answer: dict[str, object] = {
            "isAllowed": is_allowed,
            "reason": reason,
            "gatewayAppId": abi.decode_string(read.results[1]),
        }
        if wanted is not None:
            answer["proof"] = self._proof(ProofRequest(kind, boot_info), read)
        return answer

    def _read(self, wanted: _ProofWanted | None, *calls: bytes) -> _Read:
        """Call views of the contract, all at the head that the caller names or else at the newest block."""
        finalized, head = self._blocks(wanted)
        to = f"0x{self._settings.kms_contract.hex()}"
        at = {"blockHash": f"0x{head.hex()}"}
        views: list[Call] = [("eth_call", [{"to": to, "data": f"0x{one.hex()}"}, at]) for one in calls]
        chain_id, *results = self._rpc.batch([("eth_chainId", []), *views])
        got = quantity(chain_id, what="the chain id")
        if self._settings.chain_id not in {None, got}:
            raise PolicyDenied(
                "authorize.chain_id", f"the node serves chain {got}, expected {self._settings.chain_id}"
            )
        return _Read(got, finalized, head, [data(one, what="the result of a call") for one in results])

    def _blocks(self, wanted: _ProofWanted | None) -> tuple[bytes | None, bytes]:
        """Return the finalised block, where a proof needs one, and the block to read at."""
        if wanted is None:
            return None, self._proofs.block_hashes("latest")[0]
        if wanted.finalized is not None and wanted.head is not None:
            return wanted.finalized, wanted.head
        finalized, head = self._proofs.block_hashes("finalized", "latest")
        return wanted.finalized or finalized, wanted.head or head

    def _proof(self, request: ProofRequest, read: _Read) -> dict[str, list[str]]:
        return self._proofs.gather(request, read.finalized or read.head, read.head).to_wire()

    def _invalid(self, error: DstackError) -> Answer:
        self._report(error.code, error.message)
        return Answer(400, _denied(INVALID_REQUEST))

    def _failed(self, error: DstackError) -> Answer:
        self._report(error.code, error.message)
        return Answer(500, {"status": "error", "message": BACKEND_UNAVAILABLE})


def service_from(settings: Settings, report: Callable[[str, str], None]) -> AuthorizeService:
    """Build the service over HTTP, for the entries of the clouds."""
    rpc = JsonRpc(settings.eth_rpc_url, HttpClient(DirectDialer(), timeout=RPC_TIMEOUT))
    return AuthorizeService(settings, rpc, report)


def _denied(reason: str) -> dict[str, object]:
    return {"isAllowed": False, "reason": reason, "gatewayAppId": ""}


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
    finalized, head = (
        decode_hex(values[name][-1], what=f"the query's {name}", length=32) if name in values else None
        for name in ("finalized", "head")
    )
    return _ProofWanted(finalized, head)
