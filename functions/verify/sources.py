"""Where a verifier outside a TEE gets endorsements: the vendors' services over this machine's own network."""

from shared.attestation.endorsements import Endorsements
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import EndorsementSource
from shared.net.fetch import HttpClient
from shared.net.issuers import PRODUCTION_HOSTS, IssuerClient
from shared.net.pccs import DEFAULT_PCCS_URLS, PccsClient


def endorsement_source(
    *, bundle: Endorsements, pccs_url: str, offline: bool, external: bool
) -> EndorsementSource:
    """Return a source that prefers `bundle` and fetches the rest, or nothing when `offline`.

    `pccs_url` replaces the default collateral services. `external` says that other anchors than the vendors'
    are configured: then the collateral service may be asked over plain http, and the same host for issuers
    and lists, as simulations serve them. Raises `ConfigError("pccs.config.*")`.
    """
    if offline:
        return EndorsementSource(None, None, bundle=bundle)
    http = HttpClient(DirectDialer())
    urls = (pccs_url,) if pccs_url else DEFAULT_PCCS_URLS
    origins = (origin_of(pccs_url),) if pccs_url and external else ()
    return EndorsementSource(
        PccsClient(urls, http, allow_plain_http=external),
        IssuerClient(http, hosts=PRODUCTION_HOSTS, origins=origins),
        bundle=bundle,
    )


def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
