"""`python -m tests.interop.nitro_machine`: one simulated enclave with a KMS, as a process of its own."""

import socket
import sys
from pathlib import Path

from enclave.kms import daemon
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from tests.enclave.conftest import registers


class Network:
    """Where names lead: a KMS's to its enclave, all else to this machine's loopback."""

    def __init__(self, vsock: UnixStandIn, enclaves: dict[str, int]) -> None:
        self._vsock, self._enclaves = vsock, enclaves

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        if host in self._enclaves:
            return self._vsock.connect(self._enclaves[host], port, timeout)
        return socket.create_connection(("127.0.0.1", port), timeout)


def main(directory: Path, authority: Path, vsock: Path, cid: int, enclaves: list[str]) -> int:
    transport = UnixStandIn(vsock, cid)
    tee = NitroTee(SimulatedNsm(registers(cid), SimulatedAuthority.load(authority)), transport)
    named = (one.split("=") for one in enclaves)
    network = Network(transport, {name: int(number) for name, number in named})
    tee.dialer = lambda: network  # type: ignore[method-assign, return-value, assignment]
    return daemon.main([], Platform(image=directory, writable=directory, tee=tee))


if __name__ == "__main__":
    places = (Path(one) for one in sys.argv[1:4])
    sys.exit(main(*places, int(sys.argv[4]), sys.argv[5:]))
