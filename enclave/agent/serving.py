"""The agent's servers: one state, four ways in, and all end when one of them does."""

import socket
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Final

import msgspec
from starlette.types import ASGIApp

from enclave.agent.config import AgentConfig
from enclave.agent.evidence import evidence_route
from enclave.agent.guest import Guest
from enclave.agent.http import external_app, guest_api_app, internal_app, tappd_app
from enclave.agent.sockets import activated, listen, listen_to_host
from enclave.agent.supervision import READY, STOPPING, notify, watch, watchdog_seconds
from enclave.agent.views import NO_VIEWS, Views
from enclave.log import log_event
from enclave.platform import Platform
from enclave.serving.attested_tls import build_plain_server
from enclave.serving.http_protocol import Limits
from enclave.serving.together import Part, run_together

LIMITS: Final = Limits(connections=4096, keep_alive_seconds=10)
"""A thousand clients of one app may ask at once, beside those that keep their connections."""

OUTSIDE: Final = Limits(connections=2048, keep_alive_seconds=10, head_bytes=16 * 1024)
"""For whoever reaches the guest from elsewhere: what all of them together hold must fit a small enclave."""


class Sockets(msgspec.Struct, frozen=True):
    """What the services listen on. The external one may have several, the host's none."""

    internal: socket.socket
    tappd: socket.socket
    external: tuple[socket.socket, ...]
    guest_api: socket.socket | None


def open_sockets(
    platform: Platform,
    config: AgentConfig,
    environment: MutableMapping[str, str],
    *,
    evidence: tuple[str, int] | None = None,
) -> Sockets:
    """Bind everything: the two inner sockets are systemd's where it passes them.

    `evidence` is the address where the measured image wants challenges answered, besides the external port.
    Raises `ConfigError`: `agent.activation`, `agent.listener`; `UnavailableError`: `agent.listen`, and the
    guest's own.
    """
    passed = activated(environment)
    internal = passed[0] if passed else listen(platform, config.internal)
    tappd = passed[1] if len(passed) > 1 else listen(platform, config.internal_v0)
    external = [listen(platform, config.external)]
    if evidence is not None and evidence[1] != config.external.port:
        external.append(platform.tee.listen(*evidence))
    return Sockets(internal, tappd, tuple(external), listen_to_host(platform, config.guest_api))


def agent_parts(
    guest: Guest,
    sockets: Sockets,
    config: AgentConfig,
    *,
    views: Views = NO_VIEWS,
) -> list[Part]:
    """Return the servers, each with what it listens on."""
    limits = config.default.limits
    outside = [evidence_route(guest.outside, guest.identity.app_id), *views.pages]
    parts = [
        _part(internal_app(guest, limits), LIMITS, sockets.internal),
        _part(tappd_app(guest, limits), LIMITS, sockets.tappd),
        _part(external_app(guest, limits, pages=outside, health=views.health), OUTSIDE, *sockets.external),
    ]
    if sockets.guest_api is not None:
        parts.append(_part(guest_api_app(guest, limits, more=views.host), OUTSIDE, sockets.guest_api))
    return parts


def serve(
    parts: Sequence[Part],
    guest: Guest,
    environment: Mapping[str, str],
    *,
    watched: tuple[str, int] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> bool:
    """Answer until SIGTERM, SIGINT, or the end of one server; returns whether it was a signal.

    `ready` is called, and systemd told, when all sockets are answered; with the external address `watched`,
    its watchdog is told all the time. What is being answered at the end is answered before this returns.
    """
    seconds = watchdog_seconds(environment)

    async def beside() -> None:
        for part in parts:
            await part.server.answering.wait()
        guest.want_app_cert(time.monotonic())
        ready()
        notify(READY, environment)
        if watched is not None and seconds is not None:
            await watch(watched, seconds, environment)

    stopped = run_together(parts, beside)
    notify(STOPPING, environment)
    return stopped


def raise_open_files() -> None:
    """Let this process have as many connections as it may: the default is a thousand."""
    import resource  # noqa: PLC0415 - only daemons change themselves

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _part(app: ASGIApp, limits: Limits, *sockets: socket.socket) -> Part:
    return Part(build_plain_server(app, limits=limits, draining=_draining), sockets)


def _draining(connections: int) -> None:
    if connections:
        log_event("agent.draining", connections=connections)
