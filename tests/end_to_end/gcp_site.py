"""Google Cloud on this computer: the Compute and Storage fakes, and simulated guests on their machines."""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.compute import ComputeFake
from tests.fakes.google_rest import GoogleRest
from tests.fakes.guests import Roots, SimulatedGuests
from tests.fakes.storage import Storage

PROJECT, BUCKET = "my-project", "my-project-dstack"
REPOSITORY = Path(__file__).resolve().parents[2]


class GcpSite:
    """`environment` is a user's: commands go to the fakes, and the guests' vendors are believed."""

    def __init__(self, place: Path, rest: GoogleRest, roots: Roots, guests: SimulatedGuests) -> None:
        self.place = place
        self.rest = rest
        self.guests = guests
        self.storage = Storage(rest, [BUCKET])
        self.compute = ComputeFake(rest, self._object, project=PROJECT)
        self.compute.on_boot = guests.on_boot
        self.compute.on_stop = guests.on_stop
        self.compute.nat_ip = lambda _name: self.address
        self.address = free_address()
        self.environment = user_environment(place) | verifier_environment(place, roots)
        self.environment["DSTACK_GCP_ENDPOINT"] = rest.url

    def left(self) -> dict[str, list[str]]:
        """Return all that is left in the cloud but for images that deployments share."""
        found = {kind: self.compute.names(kind) for kind in ("instance", "disk", "image", "firewall")}
        found["image"] = [name for name in found["image"] if not name.startswith("dstack-")]
        found["object"] = [key for _, key in self.storage.objects if key.startswith("deployments/")]
        return {kind: names for kind, names in found.items() if names}

    def _object(self, bucket: str, key: str) -> bytes | None:
        found = self.storage.objects.get((bucket, key))
        return None if found is None else found.data


@contextmanager
def gcp_site(place: Path, roots: Roots, apis: Sequence[str] = ()) -> Iterator[GcpSite]:
    """Give a site that has nothing in it, with more `apis` for a test to serve; leaving ends its machines."""
    with (
        GoogleRest(["compute.v1", "storage.v1", *apis]) as rest,
        SimulatedGuests(place / "guests", roots) as guests,
    ):
        yield GcpSite(place, rest, roots, guests)
        if rest.violations:
            raise AssertionError(rest.violations)


def user_environment(place: Path) -> dict[str, str]:
    """Return the environment of a user whose own files are all below `place`."""
    binaries = place / "bin"
    binaries.mkdir(exist_ok=True)
    script = binaries / "dstack-cloud"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.end_to_end.fast_clock "$@"\n')
    script.chmod(0o755)
    return {
        "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(place),
        "XDG_STATE_HOME": str(place / "state"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "DSTACK_CLOUD_CONFIG": str(place / "config.json"),
        "LANG": "C.UTF-8",
    }


def verifier_environment(place: Path, roots: Roots) -> dict[str, str]:
    """Return the settings of somebody who believes the simulated vendors beside the real ones."""
    found = {
        "DSTACK_VERIFIER_ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS": "true",
        "DSTACK_VERIFIER_ATTESTATION__URLS__PCCS": roots.pccs_url,
    }
    for name, pem in (
        ("tdx", roots.gcp.intel.root_pem),
        ("gcp_tpm", roots.gcp.google.root_pem),
        ("aws_nitro_enclave", roots.nitro.root_pem),
    ):
        path = place / f"{name}.pem"
        path.write_bytes(pem)
        found[f"DSTACK_VERIFIER_ATTESTATION__ROOT_CA__{name.upper()}"] = str(path)
    return found


def free_address() -> str:
    """Return an address of this computer's that nothing else of the tests uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.78.{port // 256}.{port % 256}"
