"""Whom a workload believes, from measured settings, and the verification of its peers' evidence.

Own evidence goes through here too: a workload that its own policy would refuse does not start.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from enclave.log import log_event
from enclave.platform import Platform
from enclave.tee.tee import Clock
from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.envelope import decode_envelope
from shared.attestation.policy import DEFAULT_POLICY, Policy, Revocation, parse_policy
from shared.attestation.trust import Signer, TrustAnchors
from shared.attestation.verify import VerifiedAttestation, VerifierCache, verify_attestation

if TYPE_CHECKING:  # loaded where collateral is configured
    from shared.net.endorsement_source import EndorsementSource

FETCH_TIMEOUT = 10.0
"""Seconds for one fetch, of collateral, an issuer or a list. A client waits 60 for its whole call."""


class TrustSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a measured configuration says: `roots` (PEM), `policy` and `tls_roots` are paths in the image.

    `pccs` are the URLs that collateral is fetched from. Without one, a guest that needs collateral itself
    asks the public services; another one fetches none, and refuses peers that need some. Plain http is
    for simulations: it takes an extra root, and a real KMS refuses to start with one.
    """

    roots: Mapping[Signer, tuple[str, ...]] = {}
    policy: str = ""
    pccs: tuple[str, ...] = ()
    tls_roots: str = ""

    @property
    def has_extra_roots(self) -> bool:
        """Whether anybody is believed besides the vendors' own roots."""
        return any(paths for paths in self.roots.values())


class PeerVerifier:
    """Verifies evidence under one set of anchors and one policy, at the time that `now` tells.

    What the evidence needs besides itself is gathered through `endorsements`; None gathers nothing. That may
    take several times `FETCH_TIMEOUT`: never call `verify` on an event loop.
    """

    def __init__(
        self,
        *,
        anchors: TrustAnchors,
        now: Callable[[], int],
        policy: Policy = DEFAULT_POLICY,
        endorsements: "EndorsementSource | None" = None,
    ) -> None:
        self.anchors = anchors
        self.policy = policy
        self.now = now
        self._endorsements = endorsements
        self._cache = VerifierCache()

    def verify(self, envelope: bytes, report_data: bytes) -> VerifiedAttestation:
        """Return verified evidence over exactly `report_data`.

        Raises what `verify_attestation` raises, and what gathering its endorsements does.
        """
        now = self.now()
        attestation = decode_envelope(envelope)
        endorsements = NO_ENDORSEMENTS
        if self._endorsements is not None:
            endorsements = self._endorsements.gather(
                attestation, anchors=self.anchors, policy=self.policy, now=now
            )
        return verify_attestation(
            attestation,
            now=now,
            anchors=self.anchors,
            policy=self.policy,
            endorsements=endorsements,
            report_data=report_data,
            cache=self._cache,
        )


class Trust(msgspec.Struct, frozen=True):
    """The clock, and the verifier that uses it."""

    clock: Clock
    verifier: PeerVerifier


def establish_trust(platform: Platform, settings: TrustSettings) -> Trust:
    """Read what `settings` name and return the clock and the verifier of this workload.

    Raises `ConfigError`: `image.*`, `trust.anchor.*`, `policy.*`, `pccs.config.*`, `issuers.config.*`,
    `net.roots.invalid`.
    """
    anchors = platform.anchors(settings.roots)
    policy = parse_policy(platform.read_measured(settings.policy)) if settings.policy else DEFAULT_POLICY
    clock = platform.tee.clock(anchors)
    source = _source(platform, settings, policy)
    verifier = PeerVerifier(anchors=anchors, now=clock.now, policy=policy, endorsements=source)
    return Trust(clock, verifier)


def _source(platform: Platform, settings: TrustSettings, policy: Policy) -> "EndorsementSource | None":
    needs_collateral = bool(settings.pccs) or platform.tee.needs_collateral
    if not needs_collateral and policy.nitro.revocation is not Revocation.REQUIRED:
        return None
    # PLC0415: an enclave whose peers are enclaves fetches nothing, and loads none of this
    from shared.net.endorsement_source import EndorsementSource  # noqa: PLC0415
    from shared.net.fetch import HttpClient  # noqa: PLC0415
    from shared.net.issuers import IssuerClient  # noqa: PLC0415
    from shared.net.pccs import DEFAULT_PCCS_URLS, PccsClient  # noqa: PLC0415

    external = settings.has_extra_roots
    tls_roots = platform.read_measured(settings.tls_roots) if settings.tls_roots else None
    http = HttpClient(platform.dialer(), ca_roots=tls_roots)
    pccs = None
    if needs_collateral:
        urls = settings.pccs or DEFAULT_PCCS_URLS
        pccs = PccsClient(urls, http, allow_plain_http=external, timeout=FETCH_TIMEOUT)
    # A simulated Google publishes where the simulated Intel does.
    origins = [f"{url.scheme}://{url.netloc}" for url in map(urlsplit, settings.pccs) if external]
    issuers = IssuerClient(http, origins=origins, timeout=FETCH_TIMEOUT, tell=_tell)
    return EndorsementSource(pccs, issuers, tell=_tell)


def _tell(sentence: str) -> None:
    log_event("endorsements.renewal_failed", message=sentence)
