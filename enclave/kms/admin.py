"""The admin listener: off by default, behind a token, beside the main one (spec kms section 2.3)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

from google.protobuf.empty_pb2 import Empty
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from enclave.kms.image_cache import ImageCache
from enclave.kms.token_auth import TokenAuth, TokenGuard
from enclave.log import log_event
from enclave.serving.attested_tls import build_plain_server, run_server
from enclave.serving.prpc import Procedure, PrpcService
from shared.rpc import kms_pb2 as pb

STOP_SECONDS = 10.0


def admin_app(cache: ImageCache, auth: TokenAuth) -> ASGIApp:
    """Return the ASGI application of the admin listener."""

    def clear(request: pb.ClearImageCacheRequest, _caller: None) -> Empty:
        cache.clear(request.image_hash, request.config_hash)
        log_event("kms.image_cache.cleared")
        return Empty()

    procedures: dict[str, Procedure[None]] = {"ClearImageCache": Procedure(pb.ClearImageCacheRequest, clear)}
    service = PrpcService("Admin", procedures, lambda _chain: None)
    routes = [service.route(), Route("/health", _health)]
    return TokenGuard(Router(routes=routes, redirect_slashes=False), auth)


@contextmanager
def serving_beside(app: ASGIApp, listener: socket) -> Iterator[None]:
    """Serve `app` on `listener` in a thread of its own for as long as the block runs."""
    server = build_plain_server(app)
    thread = threading.Thread(target=run_server, args=(server, [listener]), name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("OK")
