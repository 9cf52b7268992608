"""The tunnel to a gateway, as text: keys, and the configuration of one interface (spec gateway section 1.2).

`wg-quick` runs commands that a configuration names, so nothing of a gateway's answer is written before it is
read as what it has to be, and then what was read is written, never the text.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv6Address, NetmaskValueError
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import ProtocolError
from shared.rpc import gateway_pb2 as pb

INTERFACE: Final = "dstack-wg0"
PORT: Final = 9182
"""UDP, of the guest's end."""

KEEPALIVE: Final = 25
"""Seconds."""

KEY_BYTES: Final = 32

MAX_SERVERS: Final = 64
"""Nodes of one gateway; upstream's clusters have a handful."""

_KEY_CHARACTERS: Final = 44
_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_ENDPOINT: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]{1,253})):(?P<port>[0-9]{1,5})"
)
_NUMBERS: Final = re.compile(r"[0-9.]+")


class WireGuardKey(msgspec.Struct, frozen=True):
    """A key pair, in base64 as WireGuard writes keys."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"WireGuardKey(public={self.public!r})"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the gateway. `host` is an address, or a name that the guest's resolver is asked for."""

    public_key: str
    address: IPv4Address
    host: IPv4Address | IPv6Address | str
    port: int

    @property
    def endpoint(self) -> str:
        """Where it is reached."""
        return (
            f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"
        )


class Tunnel(msgspec.Struct, frozen=True):
    """What a gateway assigned: our address in the tunnel, and its nodes by their public keys."""

    address: IPv4Address
    servers: tuple[Server, ...]

    def config(self, key: WireGuardKey) -> bytes:
        """Return the configuration for `wg-quick`, which holds our private key."""
        lines = [
            "[Interface]",
            f"PrivateKey = {key.private}",
            f"ListenPort = {PORT}",
            f"Address = {self.address}/32",
        ]
        for server in self.servers:
            lines += [
                "",
                "[Peer]",
                f"PublicKey = {server.public_key}",
                f"AllowedIPs = {server.address}/32",
                f"Endpoint = {server.endpoint}",
                f"PersistentKeepalive = {KEEPALIVE}",
            ]
        return ("\n".join(lines) + "\n").encode()


def new_key() -> WireGuardKey:
    """Return a fresh key."""
    return key_of(base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode())


def key_of(private: str) -> WireGuardKey:
    """Return the pair of a private key. Raises `ProtocolError("gateway.key")`, which does not show it."""
    raw = _decode_key(private)
    if raw is None:
        raise ProtocolError("gateway.key", f"a wireguard key is not {KEY_BYTES} bytes in base64")
    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    return WireGuardKey(private, base64.b64encode(public).decode())


def read_tunnel(answer: pb.RegisterCvmResponse, own: WireGuardKey) -> Tunnel:
    """Read what a gateway assigned to the guest with the key `own`; no two nodes share a key or an address.

    Raises `ProtocolError("gateway.answer")` for what no interface can be made of, or what would lead
    elsewhere than to the gateway: addresses of the machine itself, of its link, or of many.
    """
    count = len(answer.wg.servers)
    if not 1 <= count <= MAX_SERVERS:
        raise ProtocolError("gateway.answer", f"the gateway has {count} nodes, expected 1 to {MAX_SERVERS}")
    address = _address(answer.wg.client_ip, "client_ip")
    servers = sorted((_server(peer) for peer in answer.wg.servers), key=lambda server: server.public_key)
    _check_distinct((own.public, *(server.public_key for server in servers)), "public key")
    _check_distinct((str(address), *(str(server.address) for server in servers)), "address")
    return Tunnel(address, tuple(servers))


def _server(peer: pb.WireGuardPeer) -> Server:
    if _decode_key(peer.pk) is None:
        raise ProtocolError(
            "gateway.answer", f"a node's key is no {KEY_BYTES} bytes in base64: {peer.pk[:64]!a}"
        )
    host, port = _endpoint(peer.endpoint)
    return Server(public_key=peer.pk, address=_address(peer.ip, "ip"), host=host, port=port)


def _endpoint(text: str) -> tuple[IPv4Address | IPv6Address | str, int]:
    match = _ENDPOINT.fullmatch(text)
    port = int(match["port"]) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ProtocolError("gateway.answer", f"a node's endpoint is {text[:80]!a}, expected host:port")
    try:
        if match["v6"]:
            return IPv6Address(match["v6"]), port
        if _NUMBERS.fullmatch(match["host"]):
            return IPv4Address(match["host"]), port
    except AddressValueError as error:
        raise ProtocolError("gateway.answer", f"a node's endpoint has no address: {text[:80]!a}") from error
    if _NAME.fullmatch(match["host"]) is None:
        raise ProtocolError("gateway.answer", f"a node's endpoint has no host name: {text[:80]!a}")
    return match["host"], port


def _address(text: str, what: str) -> IPv4Address:
    """Read an address, with or without its network's length as older gateways write it."""
    try:
        address = IPv4Interface(text).ip if len(text) <= len("255.255.255.255/32") else None
    except (AddressValueError, NetmaskValueError):
        address = None
    if address is None or _leads_elsewhere(address):
        raise ProtocolError("gateway.answer", f"{what} is {text[:40]!a}, expected an address of one machine")
    return address


def _leads_elsewhere(address: IPv4Address) -> bool:
    return (
        address.is_loopback
        or address.is_link_local  # a cloud's metadata server among them
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


def _check_distinct(values: Iterable[str], what: str) -> None:
    listed = list(values)
    if len(set(listed)) != len(listed):
        raise ProtocolError("gateway.answer", f"two ends of the tunnel have the same {what}")


def _decode_key(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True) if len(text) == _KEY_CHARACTERS else b""
    except (binascii.Error, ValueError):
        return None
    # the last character has bits that mean nothing: one key has one text
    return raw if len(raw) == KEY_BYTES and base64.b64encode(raw).decode() == text else None
