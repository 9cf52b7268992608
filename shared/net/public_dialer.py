"""Connections to hosts that somebody else named: only to addresses of the public internet.

A server that we ask may answer with a redirect or a token service of its choosing, and a project that is
handed in names registries. Were that an address of the machine's own network, we would carry their requests
there: cloud metadata services answer anyone who asks from within.
"""

import ipaddress
import socket
from collections.abc import Collection

from shared.errors import PolicyDenied, UnavailableError
from shared.net.dialer import Dialer

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All else of IPv6 is some network's own, or an IPv4 address in one of the forms that `ipaddress` takes for
# global: ::127.0.0.1, ::ffff:0:127.0.0.1, a network's own NAT64 prefix.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Of protocols, and of relays that no longer exist; clouds have put metadata services there.
_PROTOCOLS = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))


class PublicDialer:
    """Dials names whose every address is public, by the address that was checked.

    With `loopback`, addresses of this machine are taken too. The names in `internal` (lower case) are the
    operator's own, and dialed wherever they lead.
    """

    def __init__(
        self, dialer: Dialer, *, loopback: bool = False, internal: Collection[str] = frozenset()
    ) -> None:
        self._dialer = dialer
        self._loopback = loopback
        self._internal = internal

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """See `Dialer.dial`. Raises `PolicyDenied("net.address.private")` too."""
        if host in self._internal:
            return self._dialer.dial(host, port, timeout)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnavailableError("net.unreachable", f"cannot resolve {host[:80]!r}") from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        for address in addresses:
            if not is_public(address) and not (self._loopback and _is_loopback(address)):
                raise PolicyDenied(
                    "net.address.private",
                    f"{host[:80]!r} has the address {address}, expected one of the public internet: this"
                    " machine's own networks are not for others to name",
                )
        return self._dialer.dial(addresses[0], port, timeout)


def is_public(address: str) -> bool:
    """Tell whether a textual IP address is of the public internet, what it embeds included."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _GLOBAL_UNICAST:
            return False
    elif any(parsed in network for network in _PROTOCOLS):
        return False
    return parsed.is_global and not parsed.is_multicast


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
