"""The admin listener: off by default, behind a token, beside the main one (spec kms section 2.3).

With TLS it also hands over root keys: to whoever has the token and shows evidence that the policy allows.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import NamedTuple

from google.protobuf.empty_pb2 import Empty
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from enclave.kms.audit import AUDIT, AuditLog
from enclave.kms.callers import CallerVerifier
from enclave.kms.image_cache import ImageCache
from enclave.kms.reception import Audited, Caller
from enclave.kms.service import KmsService, context
from enclave.kms.token_auth import TokenAuth, TokenGuard
from enclave.log import log_event
from enclave.serving.attested_tls import ContextFactory, build_plain_server, build_server, run_server
from enclave.serving.prpc import Procedure, PrpcService
from shared.rpc import kms_pb2 as pb

STOP_SECONDS = 10.0


class Handover(NamedTuple):
    """What hands over root keys, and what tells who asks for them."""

    service: KmsService
    callers: CallerVerifier


def admin_app(
    cache: ImageCache, auth: TokenAuth, handover: Handover | None = None, audit: AuditLog = AUDIT
) -> ASGIApp:
    """Return the ASGI application of the admin listener. `handover` needs attested TLS in front of it."""

    def clear(request: pb.ClearImageCacheRequest, _caller: Caller) -> Empty:
        cache.clear(request.image_hash, request.config_hash)
        log_event("kms.image_cache.cleared")
        return Empty()

    def identify(chain: list[bytes]) -> Caller:
        if handover is None:
            return None
        with context("invalid quote"):
            return handover.callers.verify(chain)

    procedures: dict[str, Procedure[Caller]] = {
        "ClearImageCache": Procedure(pb.ClearImageCacheRequest, clear)
    }
    auth_mode = ""
    if handover is not None:
        procedures["GetKmsKey"] = Procedure(pb.GetKmsKeyRequest, handover.service.get_kms_key)
        auth_mode = handover.service.auth_mode
    service = PrpcService("Admin", procedures, identify, reception=Audited(audit, auth_mode))
    routes = [service.route(), Route("/health", _health)]
    return TokenGuard(Router(routes=routes, redirect_slashes=False), auth, audit=audit)


@contextmanager
def serving_beside(
    app: ASGIApp, listener: socket, context_factory: ContextFactory | None = None
) -> Iterator[None]:
    """Serve `app` on `listener` in a thread of its own for as long as the block runs.

    Behind attested TLS with a `context_factory`, else in plain HTTP.
    """
    if context_factory is None:
        server = build_plain_server(app)
    else:
        server = build_server(app, context_factory=context_factory)
    thread = threading.Thread(target=run_server, args=(server, [listener]), name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("OK")
