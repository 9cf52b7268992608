"""Whom a workload believes, from measured settings, and the verification of its peers' evidence.

Own evidence goes through here too: a workload that its own policy would refuse does not start.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from enclave.log import log_event
from enclave.platform import Platform
from enclave.tee.tee import Clock
from shared.attestation.policy import DEFAULT_POLICY, Policy, Revocation, parse_policy
from shared.attestation.trust import Signer
from shared.net.peer_verifier import PeerVerifier

if TYPE_CHECKING:  # loaded where collateral is configured
    from shared.net.endorsement_source import EndorsementSource

__all__ = ["FETCH_TIMEOUT", "PeerVerifier", "Trust", "TrustSettings", "establish_trust"]

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
