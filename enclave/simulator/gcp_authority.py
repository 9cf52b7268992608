"""What simulated Google Cloud guests share: a throw-away Intel and Google, and what both publish."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.pccs import CollateralServer
from enclave.simulator.tdx import SimulatedIntel
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.pck import parse_pck_chain
from shared.errors import StorageError

_INTEL, _GOOGLE, _DEVICE = "intel", "google", "device-id"

BACKDATE = 60
"""Seconds. What is published must not be from a verifier's future, whose second began before it asked."""


class GcpAuthority(msgspec.Struct, frozen=True):
    """Both vendors, and the one machine that all simulated guests run on (`device_id`, 32 bytes)."""

    intel: SimulatedIntel
    google: SimulatedAkAuthority
    device_id: bytes

    @classmethod
    def create(cls, url: str) -> Self:
        """Make new vendors; certificates of vTPM keys will name `url` for issuers and revocation lists."""
        ppid = os.urandom(16)
        return cls(
            SimulatedIntel.create(ppid=ppid), SimulatedAkAuthority.create(url), hashlib.sha256(ppid).digest()
        )

    def save(self, directory: Path) -> None:
        """Write `intel/` and `google/`, each with its root.pem. Raises `StorageError("simulator.*")`."""
        self.intel.save(directory / _INTEL)
        self.google.save(directory / _GOOGLE)
        try:
            (directory / _DEVICE).write_text(self.device_id.hex())
        except OSError as error:
            raise StorageError(
                "simulator.authority.write", f"cannot write an authority to {directory}: {error.strerror}"
            ) from error

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises `StorageError("simulator.*")`."""
        try:
            device_id = bytes.fromhex((directory / _DEVICE).read_text())
        except (OSError, ValueError) as error:
            raise StorageError(
                "simulator.authority.read", f"{directory} holds no readable simulated authority"
            ) from error
        return cls(
            SimulatedIntel.load(directory / _INTEL), SimulatedAkAuthority.load(directory / _GOOGLE), device_id
        )

    def server(self, *, port: int = 0, clock: Callable[[], float] = time.time) -> CollateralServer:
        """Return a server of what both vendors publish, made fresh for each request."""
        platform = parse_pck_chain(self.intel.pck_chain)
        asked = {(fmspc, ca) for fmspc in ("", platform.fmspc.hex()) for ca in ("", platform.ca)}

        def now() -> int:
            return int(clock()) - BACKDATE

        def collateral(fmspc: str, ca: str) -> TdxCollateral | None:
            return self.intel.collateral(now()) if (fmspc, ca) in asked else None

        def resource(path: str) -> Callable[[], bytes]:
            return lambda: self.google.resources(now())[path]

        return CollateralServer(
            collateral, {path: resource(path) for path in self.google.resources(0)}, port=port
        )
