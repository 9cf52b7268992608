"""The agent's four HTTP faces (spec guest-agent section 1.2).

A: the app's socket, B: that of clients of before 0.5, C: the external port, D: the host's way in.
"""

from collections.abc import Mapping, Sequence

from google.protobuf.empty_pb2 import Empty
from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enclave.agent.guest import Guest
from enclave.agent.methods_v0 import REVISION, dstack_guest, public_app_info, tappd, worker
from enclave.agent.methods_v1 import HealthCheck, dstack_guest_v1, unwatched, worker_v1
from enclave.agent.procedures import PUBLIC_BODY_BYTES, Methods, methods, service
from shared.rpc import guest_api_pb2 as host_pb
from shared.version import __version__

VERSION = f"v{__version__} ({REVISION})"

Limits = Mapping[str, int]

NO_LIMITS: Limits = {}


def internal_app(guest: Guest, limits: Limits = NO_LIMITS) -> ASGIApp:
    """Return A: DstackGuest at the root and below `/v0`, that of v1 below `/v1`."""
    v0, v1 = service("", dstack_guest(guest, limits)), service("", dstack_guest_v1(guest, limits))
    return Router(routes=[v0.route(""), v0.route("/v0"), v1.route("/v1")], redirect_slashes=False)


def tappd_app(guest: Guest, limits: Limits = NO_LIMITS) -> ASGIApp:
    """Return B."""
    return Router(routes=[service("Tappd", tappd(guest, limits)).route()], redirect_slashes=False)


def external_app(
    guest: Guest,
    limits: Limits = NO_LIMITS,
    *,
    pages: Sequence[BaseRoute] = (),
    health: HealthCheck = unwatched,
) -> ASGIApp:
    """Return C: Worker, and the pages that are for everybody."""
    v0 = service("Worker", worker(guest, limits), largest=PUBLIC_BODY_BYTES)
    v1 = service("Worker", worker_v1(guest, limits, health), largest=PUBLIC_BODY_BYTES)
    routes = [v0.route(), v0.route("/prpc/v0"), v1.route("/prpc/v1"), *pages]
    return _Versioned(Router(routes=routes, redirect_slashes=False))


def guest_api_app(guest: Guest, limits: Limits = NO_LIMITS, *, more: Methods | None = None) -> ASGIApp:
    """Return D: Info, and what `more` adds."""
    own = methods(limits, prompt={"Info": (Empty, lambda _: _guest_info(guest))}, blocking={})
    return Router(routes=[service("", own | (more or {})).route("/api")], redirect_slashes=False)


def _guest_info(guest: Guest) -> host_pb.GuestInfo:
    """Return what the host may know: no more than everybody."""
    info = public_app_info(guest)
    return host_pb.GuestInfo(
        version=__version__,
        app_id=info.app_id,
        instance_id=info.instance_id,
        app_cert=info.app_cert,
        tcb_info=info.tcb_info,
        device_id=info.device_id,
    )


class _Versioned:
    """ASGI middleware that names the version in every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-app-version"] = VERSION
            await send(message)

        await self._app(scope, receive, named)
