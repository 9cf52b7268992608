"""`python -m tests.enclave.init.whole_enclave DIRECTORY -- COMMAND`: a simulated enclave, booted by our init.

The directory holds its image, the hypervisor's authority in `authority`, and its vsock in `v`. The KMS is
whatever listens at port 8000 of context 16 there. Time stands still, as it does for that KMS.
"""

import sys
from functools import partial
from pathlib import Path

from enclave.init.boot import Machine, main
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.enclave_boot import SimulatedKernel
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from tests.enclave.conftest import NOW, StandInDialer, registers

KMS_CID, KMS_PORT = 16, 8000
ENCLAVE_CID = 17


def run() -> int:
    directory = Path(sys.argv[1])
    vsock = UnixStandIn(directory / "v", ENCLAVE_CID)
    nsm = SimulatedNsm(registers(2), SimulatedAuthority.load(directory / "authority"), clock=lambda: NOW)
    tee = NitroTee(nsm, vsock)
    tee.dialer = partial(StandInDialer, vsock, KMS_CID, KMS_PORT)  # type: ignore[method-assign, assignment]
    machine = Machine(SimulatedKernel(), tuple(sys.argv[3:]), sleep=lambda _seconds: None)
    return main(None, Platform(image=directory, writable=directory, tee=tee), machine)


if __name__ == "__main__":
    sys.exit(run())
