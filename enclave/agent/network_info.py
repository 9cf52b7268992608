"""What the guest's kernel says of its network (spec guest-agent section 2.12).

Of the interfaces the host is told about its own and the gateway's tunnel. Docker's bridges and what
containers connect to stay with the guest.
"""

import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from enclave.agent.commands import command_output
from enclave.agent.system_info import read_text
from shared.errors import DstackError
from shared.rpc import guest_api_pb2 as pb

SHOWN_INTERFACES: Final = ("dstack-wg", "enp", "eth")
"""What the names of interfaces begin with that are told about."""

WG_SECONDS: Final = 5.0
MAX_ENTRIES: Final = 256
"""Of name servers, gateways, interfaces, and addresses of one interface."""

_GATEWAY_FLAG: Final = 0x2
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLM_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_NETLINK_SECONDS: Final = 5.0
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix, flags, scope, interface
_ATTRIBUTE: Final = struct.Struct("=HH")


class Address(NamedTuple):
    """One address of an interface, which is known by the kernel's number."""

    interface: int
    address: str
    prefix: int


Addresses = Callable[[], Sequence[Address]]


def wireguard() -> str:
    """Return what `wg` prints, which hides private keys. Raises `UnavailableError("agent.command.*")`."""
    return command_output("wg", seconds=WG_SECONDS)


def interface_addresses() -> Sequence[Address]:
    """Ask the kernel for the addresses of all interfaces. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_NETLINK_SECONDS)
        kernel.bind((0, 0))
        length = _HEADER.size + _ADDRESS.size
        kernel.send(
            _HEADER.pack(length, _RTM_GETADDR, _NLM_REQUEST_DUMP, 1, 0)
            + _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        )
        found: list[Address] = []
        while True:
            addresses, is_last = parse_addresses(kernel.recv(1 << 16))
            found += addresses
            if is_last:
                return found


class NetworkReader:
    """Reads files below `root`; `addresses` and `wg` are the kernel and the command."""

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        addresses: Addresses = interface_addresses,
        wg: Callable[[], str] = wireguard,
    ) -> None:
        self._root = root
        self._addresses = addresses
        self._wg = wg

    def read(self) -> pb.NetworkInformation:
        """Return what there is. Blocks."""
        try:
            wg_info = self._wg()
        except DstackError as error:
            wg_info = error.message
        return pb.NetworkInformation(
            dns_servers=self._name_servers(),
            gateways=[pb.Gateway(address=address) for address in self._gateways()],
            interfaces=self._interfaces(),
            wg_info=wg_info,
        )

    def _name_servers(self) -> list[str]:
        lines = [line.split() for line in read_text(self._root / "etc/resolv.conf").splitlines()]
        return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"][:MAX_ENTRIES]

    def _gateways(self) -> list[str]:
        routes = [line.split() for line in read_text(self._root / "proc/net/route").splitlines()[1:]]
        found = [
            _ipv4(words[2])
            for words in routes
            if len(words) > 7 and words[1] == words[7] == "0" * 8 and _number(words[3]) & _GATEWAY_FLAG
        ]
        routes = [line.split() for line in read_text(self._root / "proc/net/ipv6_route").splitlines()]
        found += [
            _ipv6(words[4])
            for words in routes
            if len(words) > 8 and words[0] == "0" * 32 and words[1] == "00" and words[4] != "0" * 32
        ]
        return [*dict.fromkeys(address for address in found if address)][:MAX_ENTRIES]

    def _interfaces(self) -> list[pb.Interface]:
        try:
            named = sorted(one.name for one in (self._root / "sys/class/net").iterdir())
            addresses = self._addresses()
        except OSError:
            return []
        return [self._interface(name, addresses) for name in named if name.startswith(SHOWN_INTERFACES)][
            :MAX_ENTRIES
        ]

    def _interface(self, name: str, addresses: Sequence[Address]) -> pb.Interface:
        directory = self._root / "sys/class/net" / name
        index = _decimal(read_text(directory / "ifindex"))
        own = [one for one in addresses if one.interface == index][:MAX_ENTRIES]
        counters = ("rx_bytes", "tx_bytes", "rx_errors", "tx_errors")
        counts: Mapping[str, int] = {
            counter: _decimal(read_text(directory / "statistics" / counter)) for counter in counters
        }
        return pb.Interface(
            name=name,
            addresses=[pb.IpAddress(address=one.address, prefix=one.prefix) for one in own],
            **counts,
        )


def parse_addresses(dump: bytes) -> tuple[list[Address], bool]:
    """Read one datagram of the kernel's answer; returns whether it was the last too."""
    found: list[Address] = []
    position = 0
    while len(dump) - position >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(dump, position)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return found, True
        if kind == _RTM_NEWADDR:
            found += _address(dump[position + _HEADER.size : position + length])
        position += _aligned(length)
    return found, False


def _address(message: bytes) -> list[Address]:
    family, prefix, _, _, interface = _ADDRESS.unpack_from(message)
    attributes: dict[int, bytes] = {}
    position = _ADDRESS.size
    while len(message) - position >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(message, position)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = message[position + _ATTRIBUTE.size : position + length]
        position += _aligned(length)
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw is None or family not in (socket.AF_INET, socket.AF_INET6):
        return []
    return [Address(interface, socket.inet_ntop(family, raw), prefix)]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _ipv4(digits: str) -> str:
    return str(ipaddress.IPv4Address(_number(digits).to_bytes(4, "little"))) if len(digits) == 8 else ""


def _ipv6(digits: str) -> str:
    return str(ipaddress.IPv6Address(_number(digits))) if len(digits) == 32 else ""


def _number(digits: str) -> int:
    try:
        return max(int(digits, 16), 0)
    except ValueError:
        return 0


def _decimal(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else 0
