"""What may pass between an enclave and the network, through the forwarder on its parent (deploy spec 5B.5).

None of it is measured: the enclave has to hold with every port open and every name reachable. It keeps the
parent's network from being used for something else.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError

EVIDENCE_PORT: Final = 8090
"""The parent's port that leads to the enclave's evidence responder; no app's port may be the same."""

MAX_PORTS: Final = 64  # rules of one security group: 60 by default, one of them the evidence's
MAX_EGRESS: Final = 256

_RESERVED: Final = {22: "no one logs in on a parent", EVIDENCE_PORT: "it serves the evidence"}
_PORT: Final = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?(?:/tcp)?")
_EGRESS: Final = re.compile(r"([a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\]):([0-9]{1,5})")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class ForwardedPort(msgspec.Struct, frozen=True, order=True):
    """TCP port `listen` of the parent leads to vsock port `target` of the enclave."""

    listen: int
    target: int

    def __str__(self) -> str:
        return f"{self.listen}:{self.target}"


class EgressTarget(msgspec.Struct, frozen=True, order=True):
    """A host, by the one name or address that the enclave asks for, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_ports(texts: Iterable[str]) -> tuple[ForwardedPort, ...]:
    """Read `PORT` or `PORT:VSOCK_PORT`, as a compose file's short form has them.

    Raises `ConfigError`: `nitro.ports.form` (ranges, addresses and udp included), `nitro.ports.reserved`,
    `nitro.ports.duplicate`, `nitro.ports.count`.
    """
    found: list[ForwardedPort] = []
    for text in texts:
        match = _PORT.fullmatch(text)
        listen, target = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not (0 < listen <= 65535 and 0 < target <= 65535):
            raise ConfigError(
                "nitro.ports.form", f"got port {text[:40]!a}, expected PORT or PORT:VSOCK_PORT, tcp"
            )
        if listen in _RESERVED:
            raise ConfigError("nitro.ports.reserved", f"port {listen} cannot be used: {_RESERVED[listen]}")
        if any(one.listen == listen for one in found):
            raise ConfigError("nitro.ports.duplicate", f"port {listen} is given twice")
        found.append(ForwardedPort(listen, target))
    if len(found) >= MAX_PORTS:
        raise ConfigError("nitro.ports.count", f"got {len(found)} ports, fewer than {MAX_PORTS} are possible")
    return tuple(found)


def read_egress(texts: Iterable[str]) -> tuple[EgressTarget, ...]:
    """Read `HOST:PORT`; the name is exact and in lower case. Raises `ConfigError("nitro.egress.form")`."""
    found: list[EgressTarget] = []
    for text in texts:
        match = _EGRESS.fullmatch(text)
        host = match[1].strip("[]") if match else ""
        if match is None or not 0 < int(match[2]) <= 65535 or not _is_host(host):
            raise ConfigError(
                "nitro.egress.form", f"got {text[:80]!a}, expected HOST:PORT in lower case, no wildcard"
            )
        target = EgressTarget(host, int(match[2]))
        if target not in found:
            found.append(target)
    if len(found) > MAX_EGRESS:
        raise ConfigError(
            "nitro.egress.count", f"got {len(found)} targets, at most {MAX_EGRESS} are possible"
        )
    return tuple(found)


def url_egress(url: str) -> str:
    """Return the `HOST:PORT` that a URL leads to. Raises `ConfigError("nitro.egress.url")`."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        host = parts.hostname or ""
    except ValueError:
        port, host = 0, ""
    if not port or not host:
        raise ConfigError("nitro.egress.url", f"got {url[:120]!a}, expected https://HOST[:PORT]")
    return str(EgressTarget(host, port))


def _is_host(host: str) -> bool:
    """Say whether the forwarder takes the name: an exact DNS name, or an address in its one spelling."""
    try:
        return str(ipaddress.ip_address(host)) == host
    except ValueError:
        pass
    labels = host.split(".")
    odd = labels[-1].isdigit() or labels[-1].startswith("0x") or ":" in host
    return not odd and all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?", label) for label in labels)
