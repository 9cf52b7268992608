"""The forwarder's configuration file (TOML), checked before anything is opened.

transport = "vsock"                 # or "unix" with `directory` and `cid`, whom this process stands in for

[limits]                            # all optional
connections = 1024

[[inbound]]                         # parent: TCP -> enclave
name = "kms"
listen = "0.0.0.0:12001"
target = "vsock://16:8000"

[[outbound]]                        # parent: CONNECT from the enclave -> TCP
name = "egress"
listen = 3128                       # vsock port
peers = [16]                        # CIDs that may use it; absent: any
allow = [{ host = "kms.example.com", ports = [12001] }, { host = "rpc.example.com" }]

[[offer]]                           # parent: the bytes of a file, to whoever connects
name = "env"
listen = 9100                       # vsock port
file = "/var/lib/dstack/encrypted-env"
peers = [16]

[[bridge]]                          # enclave: TCP on loopback -> the parent's proxy
name = "proxy"
listen = "127.0.0.1:3128"
target = "vsock://3:3128"

[[ingress]]                         # enclave: vsock -> TCP on loopback
name = "web"
listen = 443                        # vsock port
target = "127.0.0.1:8443"
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from enclave.vsock.transport import AfVsock, UnixStandIn, VsockAddress, VsockTransport, parse_address
from shared.errors import ConfigError

DEFAULT_PORTS = (443, 12001)
"""What an allowed host without a port list may be reached on: HTTPS and the KMS (spec deploy 5B.5)."""

MAX_HOST_LENGTH = 253  # of a DNS name

_MAX_CONFIG_BYTES = 1 << 20
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_TCP_LISTEN = re.compile(r"(\[[0-9a-f:.]+\]|[0-9.]+):([0-9]{1,5})")

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_VsockPort = Annotated[int, msgspec.Meta(ge=0, lt=0xFFFF_FFFF)]
_Cid = Annotated[int, msgspec.Meta(ge=0, lt=0xFFFF_FFFF)]
_Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")]
_Count = Annotated[int, msgspec.Meta(ge=1, le=65536)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one forwarder grants in all; times are seconds."""

    connections: _Count = 1024
    connections_per_listener: _Count = 512  # so that a flood at one rule leaves room for the others
    head_bytes: Annotated[int, msgspec.Meta(ge=64, le=65536)] = 8192  # of a CONNECT request
    head_seconds: _Seconds = 5.0
    connect_seconds: _Seconds = 10.0  # name resolution included
    idle_seconds: _Seconds = 300.0  # no byte in either direction
    drain_seconds: _Seconds = 10.0  # what running connections get when the forwarder stops


class TcpAddress(msgspec.Struct, frozen=True):
    """A numeric address to listen on; port 0 is any free port."""

    host: str
    port: int


class TcpToVsock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that carries a TCP listener's connections to one VSOCK address (`inbound` and `bridge`)."""

    name: _Name
    listen: str
    target: str
    connections: _Count | None = None  # in place of limits.connections_per_listener

    @property
    def listen_address(self) -> TcpAddress:
        """`listen`, parsed: `127.0.0.1:3128` or `[::1]:3128`."""
        return _tcp_address(self.name, self.listen)

    @property
    def target_address(self) -> VsockAddress:
        """`target`, parsed."""
        return parse_address(self.target)


class VsockToTcp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that carries a VSOCK listener's connections to one TCP port of this machine (`ingress`)."""

    name: _Name
    listen: _VsockPort
    target: str
    peers: tuple[_Cid, ...] | None = None
    connections: _Count | None = None  # in place of limits.connections_per_listener

    @property
    def target_address(self) -> TcpAddress:
        """`target`, parsed: `127.0.0.1:8443` or `[::1]:8443`."""
        return _tcp_address(self.name, self.target)

    def check(self) -> None:
        """Raise `ConfigError`: `forwarder.config.listen`, `forwarder.config.ingress` for another machine."""
        address = self.target_address
        if not ipaddress.ip_address(address.host).is_loopback or not address.port:
            raise ConfigError(
                "forwarder.config.ingress",
                f"rule {self.name}: got {self.target!r}, expected a port on loopback",
            )


class FileOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that sends a file's bytes to whoever connects to a VSOCK port, and nothing where it is absent.

    The file is read anew for each connection, and at most 1 MiB of it is sent.
    """

    name: _Name
    listen: _VsockPort
    file: str
    peers: tuple[_Cid, ...] | None = None
    connections: _Count | None = None  # in place of limits.connections_per_listener


class Allowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host that may be reached: an exact lower-case name, or an address, and its ports."""

    host: str
    ports: Annotated[tuple[_Port, ...], msgspec.Meta(min_length=1)] = DEFAULT_PORTS


class ConnectProxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that serves CONNECT on a VSOCK port. An empty `allow` denies everything."""

    name: _Name
    listen: _VsockPort
    allow: tuple[Allowed, ...] = ()
    peers: tuple[_Cid, ...] | None = None
    connections: _Count | None = None  # in place of limits.connections_per_listener

    def allows(self, host: str, port: int) -> bool:
        """Say whether `host` (as the client wrote it, any case) may be reached on `port`."""
        host = host.lower()
        return any(entry.host == host and port in entry.ports for entry in self.allow)


Rule = TcpToVsock | ConnectProxy | VsockToTcp | FileOffer


class ForwarderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    transport: Literal["vsock", "unix"] = "vsock"
    directory: str | None = None
    cid: _Cid | None = None
    limits: Limits = Limits()
    inbound: tuple[TcpToVsock, ...] = ()
    outbound: tuple[ConnectProxy, ...] = ()
    bridge: tuple[TcpToVsock, ...] = ()
    ingress: tuple[VsockToTcp, ...] = ()
    offer: tuple[FileOffer, ...] = ()

    def open_transport(self) -> VsockTransport:
        """Return the transport that the file names."""
        if self.transport == "vsock":
            return AfVsock()
        if self.directory is None or self.cid is None:
            raise ConfigError("forwarder.config.unix", "transport unix needs a directory and a cid")
        return UnixStandIn(Path(self.directory), self.cid)

    def check(self) -> None:
        """Raise `ConfigError` (`forwarder.config.*`, `vsock.address.malformed`) for what types cannot say."""
        if (self.transport == "unix") != (self.directory is not None and self.cid is not None):
            raise ConfigError(
                "forwarder.config.unix", "directory and cid are needed by transport unix and by it alone"
            )
        rules: list[Rule] = [*self.inbound, *self.outbound, *self.bridge, *self.ingress, *self.offer]
        names = [rule.name for rule in rules]
        if not names:
            raise ConfigError("forwarder.config.empty", "got no rule, expected inbound, outbound or bridge")
        if len(set(names)) != len(names):
            raise ConfigError("forwarder.config.name", f"rule names must be unique, got {', '.join(names)}")
        for rule in (*self.inbound, *self.bridge):
            _ = rule.listen_address, rule.target_address
        for rule in self.bridge:
            if not ipaddress.ip_address(rule.listen_address.host).is_loopback:
                raise ConfigError(
                    "forwarder.config.bridge", f"rule {rule.name}: got {rule.listen!r}, expected loopback"
                )
        for entrance in self.ingress:
            entrance.check()
        for proxy in self.outbound:
            for entry in proxy.allow:
                _check_host(proxy.name, entry.host)


def parse_config(text: str) -> ForwarderConfig:
    """Parse and check a configuration.

    Raises `ConfigError("forwarder.config.invalid")` for broken TOML, wrong types and unknown keys, and the
    other `forwarder.config.*` codes for values that make no sense.
    """
    try:
        config = msgspec.toml.decode(text, type=ForwarderConfig)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # a number too long is a ValueError
        sentence = str(error)
        raise ConfigError("forwarder.config.invalid", sentence[:1].lower() + sentence[1:]) from error
    config.check()
    return config


def load_config(path: Path) -> ForwarderConfig:
    """Read and parse a configuration file; `ConfigError("forwarder.config.unreadable")` where it cannot."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("forwarder.config.unreadable", f"cannot read {path}: {error}") from error
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ConfigError("forwarder.config.unreadable", f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
    return parse_config(text)


def _tcp_address(rule: str, text: str) -> TcpAddress:
    match = _TCP_LISTEN.fullmatch(text)
    host = match[1].strip("[]") if match else ""
    if match is None or int(match[2]) > 65535 or not _is_numeric(host):
        raise ConfigError("forwarder.config.listen", f"rule {rule}: got {text!r}, expected ADDRESS:PORT")
    return TcpAddress(host, int(match[2]))


def _check_host(rule: str, host: str) -> None:
    """Refuse what could mean more than one thing: wildcards, capitals, trailing dots, odd address forms."""
    labels = host.split(".")
    looks_numeric = labels[-1].isdigit() or labels[-1].startswith("0x") or ":" in host
    well_formed = len(host) <= MAX_HOST_LENGTH and all(_LABEL.fullmatch(label) for label in labels)
    if _is_numeric(host) or (well_formed and not looks_numeric):
        return
    raise ConfigError(
        "forwarder.config.host",
        f"rule {rule}: got host {host!r}, expected an exact lower-case name or address",
    )


def _is_numeric(host: str) -> bool:
    """Say whether `host` is an IP address in its one canonical spelling."""
    try:
        return str(ipaddress.ip_address(host)) == host
    except ValueError:
        return False
