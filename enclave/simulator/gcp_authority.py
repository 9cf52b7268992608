"""What simulated Google Cloud guests share: a throw-away Intel and Google, and what both publish."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from enclave.simulator.ak_authority import SimulatedAkAuthority
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
        google = SimulatedAkAuthority.create(url)
        return cls(SimulatedIntel.create(ppid=ppid), google, hashlib.sha256(ppid).digest())

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
        google = SimulatedAkAuthority.load(directory / _GOOGLE)
        return cls(SimulatedIntel.load(directory / _INTEL), google, device_id)

    def collateral(self, fmspc: str, ca: str, now: int) -> TdxCollateral | None:
        """Return fresh collateral at `now` (unix seconds) for this platform, None for another one.

        `fmspc` (hex) and `ca` may be empty, which any platform is.
        """
        platform = parse_pck_chain(self.intel.pck_chain)
        if fmspc not in {"", platform.fmspc.hex()} or ca not in {"", platform.ca}:
            return None
        return self.intel.collateral(now - BACKDATE)

    def files(self, now: Callable[[], int]) -> dict[str, Callable[[], bytes]]:
        """Return what Google publishes, by path, fresh at each call."""

        def read(path: str) -> bytes:
            return self.google.resources(now() - BACKDATE)[path]

        return {path: partial(read, path) for path in self.google.resources(0)}
