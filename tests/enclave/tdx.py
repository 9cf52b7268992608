"""Simulated TDX guests on a machine of one's own, in this process, and that machine's vsock."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.tdx_guest import running_tdx_guest
from enclave.vsock.transport import UnixStandIn
from tests.enclave.gcp import GUEST_APP_ID, Guest, Vendors, app_compose
from tests.enclave.hosts import HOST_CID

GUEST_CID = 1000


class TdxMachine:
    """Starts guests of one OS image below `directory`. `host` is the machine's own side of the vsock."""

    def __init__(self, vendors: Vendors, directory: Path, sockets: Path, stack: ExitStack) -> None:
        self.vendors = vendors
        self.sockets = sockets
        self.host = UnixStandIn(sockets, HOST_CID)
        self._directory = directory
        self._stack = stack
        self._count = 0
        self._image = directory / "tdx-image"
        self._image.mkdir()
        (self._image / "kernel").write_bytes(b"kernel")

    def start(
        self,
        files: dict[str, bytes] | None = None,
        *,
        sys_config: dict[str, Any] | None = None,
        boots_itself: bool = False,
        **compose: Any,
    ) -> Guest:
        """Boot a guest whose app-compose holds `files` and the vendors' roots."""
        self._count += 1
        own = self._directory / f"tdx{self._count}"
        own.mkdir()
        document = own / "app-compose.json"
        document.write_bytes(app_compose(self.vendors.roots | (files or {}), **compose))
        guest = running_tdx_guest(
            GuestFiles(self._image, document, own / "disk"),
            self.vendors.authority.intel,
            GUEST_APP_ID,
            vsock=UnixStandIn(self.sockets, GUEST_CID),
            sys_config=sys_config,
            boots_itself=boots_itself,
        )
        return Guest(self._stack.enter_context(guest))


@contextmanager
def tdx_machine(vendors: Vendors, directory: Path) -> Iterator[TdxMachine]:
    """Give the machine, and switch its guests off at the end."""
    # a socket's path is short, and a test's directory is not
    with tempfile.TemporaryDirectory() as sockets, ExitStack() as stack:
        yield TdxMachine(vendors, directory, Path(sockets), stack)
