"""Simulated Google Cloud guests in this process, at a fixed time, and the service that their vendors run."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.kms.key_store import KeyMaterial
from enclave.platform import Platform
from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.gcp_authority import BACKDATE, GcpAuthority
from enclave.simulator.gcp_guest import TpmKind, running_guest
from enclave.simulator.pccs import CollateralServer
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier, TrustSettings, establish_trust
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.envelope import Attestation, GcpTdxQuote, decode_envelope
from shared.ratls.certificates import client_certificate

NOW = 1_900_000_000
GUEST_APP_ID = bytes([7]) * 20
ROOT_PATHS = {"tdx": "/intel.pem", "gcp_tpm": "/google.pem"}


class Vendors:
    """A throw-away Intel and Google, and what they publish; tests bend the public attributes.

    `published_at` is the time of what they publish, `changes` are of its documents; no collateral
    is given out while it is `withheld`, and none before `gate` is open.
    """

    def __init__(self) -> None:
        self.published_at = NOW
        self.changes: dict[str, Any] = {}
        self.withheld = False
        self.gate = threading.Event()
        self.gate.set()
        self.server = CollateralServer(self._collateral)
        self.authority = GcpAuthority.create(self.server.url)
        self.server.files.update(self.authority.files(lambda: self.published_at))

    @property
    def roots(self) -> dict[str, bytes]:
        """The two roots as files of an image."""
        return {
            ROOT_PATHS["tdx"]: self.authority.intel.root_pem,
            ROOT_PATHS["gcp_tpm"]: self.authority.google.root_pem,
        }

    def settings(self, **changes: Any) -> TrustSettings:
        """Return what an image says that believes in the two roots and asks their service."""
        roots = {signer: (path,) for signer, path in ROOT_PATHS.items()}
        return TrustSettings(**{"roots": roots, "pccs": (self.server.url,), **changes})

    def _collateral(self, fmspc: str, ca: str) -> TdxCollateral | None:
        if self.withheld or not self.gate.wait(30):
            return None
        if self.changes:
            return self.authority.intel.collateral(self.published_at - BACKDATE, **self.changes)
        return self.authority.collateral(fmspc, ca, self.published_at)


def app_compose(files: dict[str, bytes], **changes: Any) -> bytes:
    """Return an app-compose.json whose configs are these files."""
    configs = {f"c{index}": path for index, path in enumerate(files)}
    compose = {
        "services": {"main": {"configs": [{"source": s, "target": path} for s, path in configs.items()]}},
        "configs": {source: {"content": files[path].decode()} for source, path in configs.items()},
    }
    document = {
        "manifest_version": 2,
        "name": "test",
        "runner": "docker-compose",
        "docker_compose_file": json.dumps(compose),
        "key_provider": "kms",
        **changes,
    }
    return json.dumps(document).encode()


class Guest:
    """One running guest: its platform, and its certificates."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.attestor = platform.tee.attestor(None)

    def evidence(self, report_data: bytes = bytes(64)) -> Attestation:
        """Return evidence, decoded."""
        return decode_envelope(self.attestor.attest(report_data))

    def certificate(self, keys: KeyMaterial) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """Return a client certificate (DER) with evidence, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        envelope = certificate_evidence(self.attestor, key.public_key())
        issuer = (keys.temp_ca_cert, keys.temp_ca_key)
        certificate = client_certificate(key, attestation=envelope, issuer=issuer, now=NOW)
        return certificate.public_bytes(Encoding.DER), key


class Machines:
    """Starts guests of one OS image below `directory`."""

    def __init__(self, vendors: Vendors, directory: Path, stack: ExitStack) -> None:
        self.vendors = vendors
        self._directory = directory
        self._stack = stack
        self._count = 0
        self._image = directory / "os-image"
        self._image.mkdir()
        (self._image / "kernel").write_bytes(b"kernel")

    def start(
        self,
        files: dict[str, bytes] | None = None,
        *,
        app_id: bytes = GUEST_APP_ID,
        tpm: TpmKind = "software",
        sys_config: dict[str, Any] | None = None,
        boots_itself: bool = False,
        **changes: Any,
    ) -> Guest:
        """Boot a guest whose app-compose holds `files` and the vendors' roots."""
        self._count += 1
        own = self._directory / f"guest{self._count}"
        own.mkdir()
        compose = own / "app-compose.json"
        compose.write_bytes(app_compose(self.vendors.roots | (files or {}), **changes))
        sources = GuestFiles(self._image, compose, own / "disk")
        guest = running_guest(
            sources,
            self.vendors.authority,
            app_id,
            tpm=tpm,
            sys_config=sys_config,
            boots_itself=boots_itself,
        )
        return Guest(self._stack.enter_context(guest))

    def verifier(self, guest: Guest, **settings: Any) -> PeerVerifier:
        """Return the verifier of a guest, at the fixed time."""
        trust = establish_trust(guest.platform, self.vendors.settings(**settings))
        trust.verifier.now = lambda: NOW
        return trust.verifier


@contextmanager
def machines(directory: Path) -> Iterator[Machines]:
    """Give vendors whose service runs, and the machines below `directory`; stop all of it at the end."""
    vendors = Vendors()
    with vendors.server, ExitStack() as stack:
        yield Machines(vendors, directory, stack)


def with_vtpm_of(evidence: Attestation, other: Attestation) -> GcpTdxQuote:
    """Return a quote whose vTPM half is another machine's."""
    assert isinstance(evidence.quote, GcpTdxQuote)
    assert isinstance(other.quote, GcpTdxQuote)
    return GcpTdxQuote(evidence.quote.tdx, other.quote.tpm)
