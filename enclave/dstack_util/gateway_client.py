"""RegisterCvm: how a guest makes itself known to its gateway (spec gateway section 1.2).

The host names the addresses; who may answer there is in the guest's keys. The KMS signed the gateway's
certificate only after it had verified the gateway's evidence and asked the contract, so its root and the
exact app id decide, as they do for the gateway about us. Nothing is sent before that.
"""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec

from enclave.dstack_util.gateway_cache import GatewayIdentity
from enclave.dstack_util.wireguard import Tunnel, read_tunnel
from enclave.log import log_event
from shared.compose.model import PortPolicy
from shared.errors import (
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    UnavailableError,
)
from shared.hex import decode_hex_setting
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import Dialer
from shared.net.response import Response
from shared.ratls.app_peer import SERVER, check_app_chain
from shared.ratls.tls_identity import TlsIdentity
from shared.rpc import gateway_pb2 as pb
from shared.rpc.codec import from_json, to_json

ANY_GATEWAY: Final = "any"
"""A gateway app id that turns the check off. It is for development: no KMS of ours gives it to an app."""

APP_ID_BYTES: Final = 20
DEFAULT_PORT: Final = 443

TOTAL: Final = 60.0
"""Seconds for all URLs together: a boot waits for them."""

EXCHANGE: Final = 10.0
"""Seconds to connect to one gateway, and as many for its answer."""

MAX_ANSWER: Final = 256 * 1024
"""Bytes: a node takes some two hundred, twice."""

MAX_REFUSAL: Final = 300
"""Characters of a refusal's text that are worth showing."""

_WANTS_EVIDENCE: Final = "no attestation provided"


class Endpoint(msgspec.Struct, frozen=True):
    """Where one gateway listens. `base` is the path that its methods hang below."""

    url: str
    host: str
    port: int
    base: str


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a guest registers with. `app_id` (20 bytes) is None where the keys say that any will do."""

    app_id: bytes | None
    root_pem: bytes
    endpoints: tuple[Endpoint, ...]

    def check_server(self, chain: Sequence[bytes], now: int) -> None:
        """Refuse a server that is not this gateway, by its certificates (DER, leaf first).

        Raises `InvalidEvidence("peer.app_id")` for another app of this KMS, and what `check_app_chain` does.
        """
        if self.app_id is None:
            return
        found = check_app_chain(chain, root_ca_pem=self.root_pem, now=now, role=SERVER).app_id
        if found != self.app_id:
            raise InvalidEvidence(
                "peer.app_id", f"the gateway is app {found.hex()}, expected {self.app_id.hex()}"
            )


def read_gateway(gateway_app_id: str, ca_cert: str, urls: Sequence[str]) -> Gateway:
    """Return the gateway that a guest's keys name, at the host's URLs.

    Raises `ConfigError`: `gateway.app_id` for what is neither one app id nor `any`; `gateway.urls` without a
    URL, `gateway.url` for one that is not https. Trying again does not help.
    """
    app_id = None
    if gateway_app_id != ANY_GATEWAY:
        app_id = decode_hex_setting(
            gateway_app_id, what="gateway_app_id", length=APP_ID_BYTES, code="gateway.app_id"
        )
        if not any(app_id):
            raise ConfigError("gateway.app_id", "gateway_app_id is zero")
    if not urls:
        raise ConfigError("gateway.urls", "app-compose wants a gateway, and the host names no gateway_urls")
    return Gateway(app_id=app_id, root_pem=ca_cert.encode(), endpoints=tuple(map(_endpoint, urls)))


class GatewayClient:
    """Registers with one gateway. `now` is in unix seconds, `monotonic` in seconds of no beginning."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        dialer: Dialer,
        now: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._dialer = dialer
        self._now = now
        self._monotonic = monotonic

    def register(self, identity: GatewayIdentity, ports: PortPolicy) -> Tunnel:
        """Ask the URLs in order, and return what the first one assigns that gives a usable answer.

        Raises the first URL's error when none does: `PolicyDenied("gateway.refused")`,
        `UnavailableError("gateway.unavailable")`, `ProtocolError`: `gateway.malformed`, `gateway.answer`,
        `prpc.*`; `InvalidEvidence`: `peer.app_id`, `ratls.*`; and what `AttestedConnection` raises.
        """
        request = pb.RegisterCvmRequest(
            client_public_key=identity.wireguard.public, port_policy=_port_policy(ports)
        )
        end = self._monotonic() + TOTAL
        failures: list[DstackError] = []
        for endpoint in self._gateway.endpoints:
            try:
                answer = self._ask(endpoint, to_json(request), identity, end)
                tunnel = read_tunnel(answer, identity.wireguard)
            except DstackError as error:
                log_event("gateway.failed", url=endpoint.url, code=error.code, message=error.message)
                failures.append(error)
            else:
                checked = self._gateway.app_id is not None
                log_event("gateway.registered", url=endpoint.url, gateway_checked=checked)
                return tunnel
        raise failures[0]

    def _ask(
        self, endpoint: Endpoint, body: bytes, identity: GatewayIdentity, end: float
    ) -> pb.RegisterCvmResponse:
        response = self._exchange(endpoint, body, identity.plain, end)
        if response.status != HTTPStatus.OK and _WANTS_EVIDENCE in _error_text(response.body):
            response = self._exchange(endpoint, body, identity.attested, end)
        if response.status != HTTPStatus.OK:
            raise _refusal(response)
        return from_json(pb.RegisterCvmResponse, response.body)

    def _exchange(self, endpoint: Endpoint, body: bytes, identity: TlsIdentity, end: float) -> Response:
        connection = AttestedConnection.connect_by_chain(
            self._dialer,
            endpoint.host,
            endpoint.port,
            check_chain=lambda chain: self._gateway.check_server(chain, self._now()),
            timeout=self._left(end),
            client_key=identity.key,
            client_chain=identity.chain,
        )
        with connection:
            return connection.request(
                "POST",
                f"{endpoint.base}/RegisterCvm?json",
                body,
                {"content-type": "application/json"},
                max_bytes=MAX_ANSWER,
                timeout=self._left(end),
            )

    def _left(self, end: float) -> float:
        left = min(EXCHANGE, end - self._monotonic())
        if left <= 0:
            raise UnavailableError("gateway.unavailable", f"no gateway answered within {TOTAL:g} seconds")
        return left


class _ErrorBody(msgspec.Struct, frozen=True):
    error: str


def _error_text(body: bytes) -> str:
    """Return the sentence of a refusal, empty where there is none."""
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _refusal(response: Response) -> DstackError:
    status = response.status
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnavailableError("gateway.unavailable", f"the gateway answered {status}")
    text = _error_text(response.body)
    if not text:
        return ProtocolError("gateway.malformed", f"the gateway answered {status} without an error text")
    words = text[:MAX_REFUSAL].encode("ascii", "replace").decode().rstrip(".")
    return PolicyDenied("gateway.refused", f"the gateway refused: {words}")


def _port_policy(ports: PortPolicy) -> pb.PortPolicy:
    """Return what app-compose says: an empty policy is an open one, and none at all would be unknown."""
    return pb.PortPolicy(
        ports=[pb.PortAttrs(port=rule.port, pp=rule.pp) for rule in ports.ports],
        restrict_mode=ports.restrict_mode,
    )


def _endpoint(url: str) -> Endpoint:
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError("gateway.url", f"gateway url {url[:200]!a} has an invalid port") from error
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError("gateway.url", f"gateway url is {url[:200]!a}, expected https://host[:port][/path]")
    path = parts.path.rstrip("/")
    return Endpoint(url, parts.hostname, port, path if path.endswith("/prpc") else path + "/prpc")
