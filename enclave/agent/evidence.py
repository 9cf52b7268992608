"""`POST /evidence`: fresh evidence over a deployer's challenge (DESIGN section 4)."""

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from enclave.tee.evidence import BoundedAttestor
from enclave.tee.tee import Attestor
from shared.attestation.report_data import deploy_challenge
from shared.errors import DstackError, ProtocolError
from shared.hex import decode_hex

MAX_BODY = 1024
"""A challenge is 64 hex digits in a small object."""

CHALLENGE_SIZE = 32


class _Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    challenge: str


def evidence_app(attestor: Attestor, app_id: bytes) -> Starlette:
    """Return the ASGI application of the route alone."""
    return Starlette(routes=[evidence_route(BoundedAttestor(attestor), app_id)])


def evidence_route(attestor: Attestor, app_id: bytes) -> Route:
    """Return the route. `attestor` is safe to use from several threads.

    Request `{"challenge": hex32}`; answer `{"attestation": hex}`, an envelope whose report_data is
    SHA512("dstack-deploy-challenge:" || challenge || app_id). A bad request is 400 with `error` and `code`.
    """

    def attest(challenge: bytes) -> bytes:
        return attestor.attest(deploy_challenge(challenge, app_id))

    async def evidence(request: Request) -> Response:
        try:
            challenge = _parse(await _bounded_body(request))
        except ProtocolError as error:
            return _failure(error, 400)
        try:
            envelope = await run_in_threadpool(attest, challenge)
        except DstackError as error:  # whatever it is, the request was in order
            return _failure(error, 503)
        return JSONResponse({"attestation": envelope.hex()})

    return Route("/evidence", evidence, methods=["POST"])


async def _bounded_body(request: Request) -> bytes:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise ProtocolError("evidence.oversize", f"the request is larger than {MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise ProtocolError(
            "evidence.disconnected", "the client left before its request was complete"
        ) from error
    return body


def _parse(body: bytes) -> bytes:
    try:
        text = msgspec.json.decode(body, type=_Challenge).challenge
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            "evidence.malformed", 'the request is not {"challenge": "<64 hex digits>"}'
        ) from error
    return decode_hex(text, what="challenge", length=CHALLENGE_SIZE, prefix=False)


def _failure(error: DstackError, status: int) -> Response:
    return JSONResponse({"error": error.message, "code": error.code}, status_code=status)
