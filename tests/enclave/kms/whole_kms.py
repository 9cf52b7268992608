"""`python -m tests.enclave.kms.whole_kms DIRECTORY`: the KMS daemon as a process, in a simulated enclave.

The directory is its image and its disk, with `etc/kms/kms.toml`; the CA of its documents is written there.
Its network is this machine's.
"""

import sys
from pathlib import Path

from enclave.kms import daemon
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.net.dialer import DirectDialer
from tests.enclave.conftest import registers


def main() -> int:
    directory = Path(sys.argv[1])
    authority = SimulatedAuthority.create()
    (directory / "root.pem").write_bytes(authority.root_pem)
    tee = NitroTee(SimulatedNsm(registers(1), authority), UnixStandIn(directory / "v", 16))
    tee.dialer = DirectDialer  # type: ignore[method-assign, assignment]
    return daemon.main([], Platform(image=directory, writable=directory, tee=tee))


if __name__ == "__main__":
    sys.exit(main())
