"""The tunnel's interface on this machine: its configuration, what may reach its port, and its handshakes."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from enclave.dstack_util.machine import PRIVATE, Machine, run_checked
from enclave.dstack_util.wireguard import INTERFACE, PORT, Tunnel, WireGuardKey
from shared.errors import StorageError

CONFIG_PATH: Final = f"/etc/wireguard/{INTERFACE}.conf"
CHAIN: Final = "DSTACK_WG"

_MAX_CONFIG: Final = 64 * 1024


def is_configured(machine: Machine) -> bool:
    """Tell whether a gateway ever assigned something to this boot."""
    return _config_path(machine).exists()


def bring_up(machine: Machine, tunnel: Tunnel, key: WireGuardKey, *, force: bool) -> bool:
    """Make the interface what `tunnel` says, and return whether it was made anew.

    An interface that is up and of the same configuration is left alone, unless `force`: connections go
    through it. The port is closed to others before it opens. Raises `StorageError`: `setup.write`,
    `setup.unreadable`, `setup.command`; `UnavailableError`: `setup.tool`, `setup.command.timeout`.
    """
    config = tunnel.config(key)
    is_up = machine.run("wg", "show", INTERFACE).code == 0
    _close_port(machine, tunnel)
    if is_up and not force and _read_config(machine) == config:
        return False
    if is_up:
        run_checked(machine, "ip", "link", "delete", "dev", INTERFACE)
    machine.write(_config_path(machine), config, PRIVATE)
    run_checked(machine, "wg-quick", "up", INTERFACE)
    return True


def latest_handshake(machine: Machine) -> int:
    """Return when a node last shook hands with us, in unix seconds; 0 for never, or without an interface."""
    done = machine.run("wg", "show", INTERFACE, "latest-handshakes")
    if done.code != 0:
        return 0
    times = [line.rpartition(b"\t")[2] for line in done.stdout.splitlines()]
    return max((int(time) for time in times if time.isdigit() and len(time) <= 12), default=0)


def _close_port(machine: Machine, tunnel: Tunnel) -> None:
    """Let nobody but the gateway's nodes reach the tunnel's port.

    The chain is replaced in one step, so that it is never half there. The second tool is for IPv6; a machine
    without it has no rules for it.
    """
    hosts = [server.host for server in tunnel.servers]
    _replace_chain(machine, "iptables", [host for host in hosts if not isinstance(host, IPv6Address)])
    if machine.has("ip6tables-restore"):
        _replace_chain(machine, "ip6tables", [host for host in hosts if isinstance(host, IPv6Address)])


def _replace_chain(machine: Machine, tool: str, hosts: list[IPv4Address | str] | list[IPv6Address]) -> None:
    rules = [f"-A {CHAIN} -s {host} -j ACCEPT" for host in dict.fromkeys(hosts)]
    table = ["*filter", f":{CHAIN} - [0:0]", *rules, f"-A {CHAIN} -j DROP", "COMMIT", ""]
    run_checked(machine, f"{tool}-restore", "-w", "--noflush", stdin="\n".join(table).encode())
    jump = ("INPUT", "-p", "udp", "--dport", str(PORT), "-j", CHAIN)
    if machine.run(tool, "-w", "-C", *jump).code != 0:
        run_checked(machine, tool, "-w", "-I", *jump)


def _config_path(machine: Machine) -> Path:
    return machine.path(CONFIG_PATH)


def _read_config(machine: Machine) -> bytes:
    path = _config_path(machine)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CONFIG)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError("setup.unreadable", f"{path} cannot be read: {error.strerror}") from error
