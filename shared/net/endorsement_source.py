"""What a piece of evidence needs to be verified: from a bundle, from memory, or fetched.

Nothing is asked of anybody for evidence that does not hold together by itself, so that whoever sends garbage
cannot make us send requests. What is returned is believed no more than what came with the evidence: the
verifier checks all of it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit

import msgspec

from shared.attestation.ak_chain import VerifiedAkChain, is_issued_by, read_ak, verify_ak_chain
from shared.attestation.anchor import TrustAnchor
from shared.attestation.chain import ChainCache, issued_links
from shared.attestation.collateral import CollateralFacts, describe
from shared.attestation.crl import RevocationList, names_list
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements, TdxCollateral
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    TdxQuote,
)
from shared.attestation.gcp import precheck_gcp
from shared.attestation.nitro import verify_document
from shared.attestation.nitro_document import VerifiedDocument
from shared.attestation.nitro_tpm import verify_nitro_tpm
from shared.attestation.pck import PckCa, PckChain
from shared.attestation.policy import NitroPolicy, Policy, Revocation, TdxPolicy
from shared.attestation.recent import Recent
from shared.attestation.revocation import ChainLink
from shared.attestation.tdx import precheck_tdx
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, InvalidEvidence, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.fresh_cache import FreshCache
from shared.net.issuers import IssuerClient
from shared.net.pccs import DEFAULT_PCCS_URLS, PccsClient

_Key = tuple[bytes, PckCa]

# Platform models times two authorities; all that Intel has made are fewer.
CACHE_SIZE = 64
# A TCB recovery should be noticed on the same day.
COLLATERAL_REFRESH = 6 * 3600


class EndorsementSource:
    """Gathers endorsements for evidence; safe to share between threads, memory bounded.

    `bundle` is preferred wherever it holds what is needed and that is current. `pccs` None fetches no
    collateral, `issuers` None neither issuers nor lists: both None is offline. `tell(sentence)` hears of
    renewals that failed while the older collateral still served. Raises `ConfigError("endorsements.bundle")`
    where a piece of the bundle cannot be read.
    """

    def __init__(
        self,
        pccs: PccsClient | None,
        issuers: IssuerClient | None,
        *,
        bundle: Endorsements = NO_ENDORSEMENTS,
        cache_size: int = CACHE_SIZE,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._pccs = pccs
        self._issuers = issuers
        self._bundle = bundle
        self._facts: Recent[TdxCollateral, CollateralFacts] = Recent(2 * cache_size)
        self._chains = ChainCache()
        try:
            for collateral in bundle.tdx:
                self._describe(collateral)
            self._bundled_lists = [_BundledList(der, RevocationList.parse(der)) for der in bundle.crls]
        except InvalidEvidence as error:
            raise ConfigError(
                "endorsements.bundle", f"the bundle of endorsements cannot be used: {error} [{error.code}]"
            ) from error
        self._collateral: FreshCache[_Key, TdxCollateral] = FreshCache(
            cache_size,
            refresh_after=COLLATERAL_REFRESH,
            ends=lambda found: _ends(self._describe(found)),
            tell=tell,
        )

    def gather(
        self, attestation: Attestation, *, anchors: TrustAnchors, policy: Policy, now: int
    ) -> Endorsements:
        """Return what verifying `attestation` at `now` (unix seconds) needs, and nothing else.

        1. The evidence's own check: structure and sizes; for GCP the vTPM's signature and registers; for TDX
           domain and root, and a PCK chain that is signed down from there; for Nitro the whole document.
        2. What is needed of the bundle, where it is current.
        3. What is missing from memory, else fetched. Revocation lists are fetched only where the policy
           requires them.

        Raises what the evidence's own check raises (`tdx.precheck_tdx`, `gcp.precheck_gcp`,
        `nitro.verify_document`), under the codes that verification would give; `InvalidEvidence`:
        `tdx.dcap.chain`, `issuers.*`, `gcp.chain.*`, `crl.*`; `UnavailableError`: `endorsements.offline`
        naming what is missing, `pccs.unavailable`, `issuers.*`, `net.*`; `ProtocolError`: `issuers.content`,
        `net.*`.
        """
        match attestation.quote:
            case TdxQuote(quote=quote):
                return Endorsements(
                    tdx=self._for_tdx(_pck_chain(quote, anchors.tdx, policy.tdx), policy.tdx, now)
                )
            case GcpTdxQuote():
                return self._for_gcp(attestation.quote, attestation, anchors, policy, now)
            case NitroEnclaveQuote(nsm_quote=document):
                return self._for_nitro(partial(verify_document, document), anchors, policy.nitro, now)
            case NitroTpmQuote(attestation_doc=document):
                verify = partial(verify_nitro_tpm, document, attestation.runtime_events)
                return self._for_nitro(verify, anchors, policy.nitro, now)
            case _:  # SEV-SNP, which is not verified
                return NO_ENDORSEMENTS

    def _for_gcp(
        self,
        quote: GcpTdxQuote,
        attestation: Attestation,
        anchors: TrustAnchors,
        policy: Policy,
        now: int,
    ) -> Endorsements:
        precheck_gcp(quote, attestation.runtime_events)
        pck = _pck_chain(quote.tdx.quote, anchors.tdx, policy.tdx)
        key_certificate = quote.tpm.ak_cert
        read_ak(key_certificate)[0].check_validity(now)
        chain = self._ak_chain(key_certificate, anchors.gcp_tpm, now)
        return Endorsements(
            tdx=self._for_tdx(pck, policy.tdx, now),
            certificates=chain.certificates[1:],
            crls=self._lists(chain.links, policy.gcp.revocation, now),
        )

    def _ak_chain(self, certificate: bytes, anchors: tuple[TrustAnchor, ...], now: int) -> VerifiedAkChain:
        bundled = self._bundle.certificates
        try:
            return verify_ak_chain(certificate, bundled, now=now, anchors=anchors)
        except InvalidEvidence as error:
            if self._issuers is None:
                raise _offline("issuer of the attestation key's certificate") from error
        found = self._issuers.issuers_of(certificate, anchors=anchors, known=bundled, now=now)
        return verify_ak_chain(certificate, found, now=now, anchors=anchors)

    def _for_nitro(
        self,
        verify: Callable[..., VerifiedDocument],
        anchors: TrustAnchors,
        policy: NitroPolicy,
        now: int,
    ) -> Endorsements:
        mode = policy.revocation
        if mode is Revocation.OFF or (mode is Revocation.IF_AVAILABLE and not self._bundled_lists):
            return NO_ENDORSEMENTS
        without = msgspec.structs.replace(policy, revocation=Revocation.OFF)
        verified = verify(now=now, anchors=anchors, policy=without, chain_cache=self._chains)
        document = verified.document
        links = issued_links(document.certificate, document.cabundle[1:], verified.trust_anchor)
        return Endorsements(crls=self._lists(links, mode, now))

    def _lists(self, links: Sequence[ChainLink], mode: Revocation, now: int) -> tuple[bytes, ...]:
        """Return the bundle's lists of a chain's issuers, and in strict mode those that it lacks."""
        if mode is Revocation.OFF:
            return ()
        issuers = {link.issuer for link in links}
        bundled = [listed for listed in self._bundled_lists if listed.parsed.issuer in issuers]
        found = [listed.der for listed in bundled]
        if mode is Revocation.REQUIRED:
            missing = [
                link
                for link in links
                if names_list(link.certificate) and not any(listed.serves(link, now) for listed in bundled)
            ]
            if missing and self._issuers is None:
                raise _offline(f"current revocation list of {missing[0].issuer_name}")
            if self._issuers is not None:
                found += self._issuers.lists_of(missing, now=now)
        return tuple(dict.fromkeys(found))

    def _for_tdx(self, chain: PckChain | None, policy: TdxPolicy, now: int) -> tuple[TdxCollateral, ...]:
        if chain is None:  # the platform's chain can only come with its collateral
            return self._bundle.tdx
        key = chain.fmspc, chain.ca
        check = partial(_check_current, policy=policy, now=now)
        bundled = [(self._describe(found), found) for found in self._bundle.tdx]
        current = [
            (facts.issued, found)
            for facts, found in bundled
            if (facts.fmspc, facts.ca) == key and _passes(check, facts)
        ]
        if current:
            return (max(current, key=lambda item: item[0])[1],)
        found = self._collateral.get(
            key,
            now,
            fetch=partial(self._fetch, key, check),
            check=lambda found: check(self._describe(found)),
        )
        return (found,)

    def _fetch(
        self, key: _Key, check: Callable[[CollateralFacts], None], held: TdxCollateral | None
    ) -> TdxCollateral:
        fmspc, ca = key
        if self._pccs is None:
            raise _offline(f"current collateral for fmspc {fmspc.hex()} of the {ca} ca")
        before = None if held is None else _order(self._describe(held))

        def check_fetched(facts: CollateralFacts) -> None:
            check(facts)
            if before is not None and _order(facts) < before:
                raise InvalidEvidence("endorsements.older", "collateral is older than what was seen before")

        return self._pccs.fetch(fmspc, ca, check_fetched)

    def _describe(self, collateral: TdxCollateral) -> CollateralFacts:
        return self._facts.find(collateral, partial(describe, collateral))


def production_source(
    *,
    bundle: Endorsements = NO_ENDORSEMENTS,
    pccs_url: str = "",
    offline: bool = False,
    external: bool = False,
    http: HttpClient | None = None,
) -> EndorsementSource:
    """Return a source over the public services, or over the collateral service that is configured.

    `external` is for simulated anchors: `pccs_url` may then be plain http, and issuers and revocation lists
    are fetched from its origin too. `http` is how to reach them, None dials directly and takes the system's
    roots. Raises `ConfigError`: `pccs.config.*`, `issuers.config.*`, `endorsements.bundle`.
    """
    if offline:
        return EndorsementSource(None, None, bundle=bundle)
    http = HttpClient(DirectDialer()) if http is None else http
    parts = urlsplit(pccs_url)
    pccs = PccsClient((pccs_url,) if pccs_url else DEFAULT_PCCS_URLS, http, allow_plain_http=external)
    origins = (f"{parts.scheme}://{parts.netloc}",) if external and pccs_url else ()
    return EndorsementSource(pccs, IssuerClient(http, origins=origins), bundle=bundle)


class _BundledList(msgspec.Struct, frozen=True):
    """A bundle's revocation list, parsed."""

    der: bytes
    parsed: RevocationList

    def serves(self, link: ChainLink, now: int) -> bool:
        """Tell whether this list says of the link's certificate, at `now`, whether it is revoked."""
        return (
            self.parsed.issuer == link.issuer
            and self.parsed.is_current(now)
            and self.parsed.covers(link.certificate)
            and self.parsed.is_signed_by(link.issuer_key)
        )


def _pck_chain(quote: bytes, anchors: tuple[TrustAnchor, ...], policy: TdxPolicy) -> PckChain | None:
    """Return the PCK chain of a quote that may be worth it, once that is signed down from an anchor.

    What it names is then one of the models that Intel made, and not as many as somebody cares to invent.
    """
    chain = precheck_tdx(quote, anchors=anchors, policy=policy).pck_chain
    if chain is not None:
        for child, issuer in pairwise(chain.certificates):
            if not is_issued_by(child, issuer):
                raise InvalidEvidence(
                    "tdx.dcap.chain", "a certificate of the quote's pck chain is not signed by the next one"
                )
    return chain


def _check_current(facts: CollateralFacts, policy: TdxPolicy, now: int) -> None:
    if facts.latest_issued > now or facts.issued + policy.max_collateral_age < now or _ends(facts) < now:
        raise InvalidEvidence(
            "endorsements.not_current",
            f"collateral is of {facts.issued} to {_ends(facts)}, {policy.max_collateral_age} seconds of age "
            f"are allowed, the time is {now}",
        )


def _ends(facts: CollateralFacts) -> int:
    return min(facts.next_update, facts.not_after)


def _order(facts: CollateralFacts) -> tuple[int, int]:
    """Return what must not go backwards: a source that repeats old statements hides new ones."""
    return facts.tcb_evaluation_number, facts.issued


def _passes(check: Callable[[CollateralFacts], None], facts: CollateralFacts) -> bool:
    try:
        check(facts)
    except InvalidEvidence:
        return False
    return True


def _offline(what: str) -> UnavailableError:
    return UnavailableError("endorsements.offline", f"no {what} is in the bundle, and nothing is fetched")
