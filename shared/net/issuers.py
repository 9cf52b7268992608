"""Issuer certificates and revocation lists, from the addresses that certificates name (N-11).

The addresses come from evidence, so they are believed in nothing: only the vendors' own hosts are asked, a
bounded number of times, and what comes back counts by its signature alone. Plain http is what these addresses
are in practice; nothing secret travels and everything is signed.
"""

import base64
import contextlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.ak_chain import MAX_DEPTH, is_issued_by
from shared.attestation.anchor import TrustAnchor
from shared.attestation.crl import MAX_LIST, RevocationList, ca_issuers_urls, crl_urls, names_list
from shared.attestation.revocation import ChainLink
from shared.attestation.tpm_certificate import MAX_CERTIFICATE, TpmCertificate
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient
from shared.net.fresh_cache import FreshCache

T = TypeVar("T")

GOOGLE_HOSTS = ("privateca-content-*.storage.googleapis.com",)
"""Where Google's Certificate Authority Service publishes the issuers and lists of its vTPM keys: a bucket for
each authority, named by a UUID, as in published attestation-key certificates of Confidential VMs."""

AWS_HOSTS = (
    "aws-nitro-enclaves-crl.s3.amazonaws.com",
    "crl-*-aws-nitro-enclaves.s3.*.amazonaws.com",
)
"""Where AWS publishes the lists of its Nitro authorities: the root's bucket and one for each region, as in
the chains of real attestation documents."""

PRODUCTION_HOSTS = (*GOOGLE_HOSTS, *AWS_HOSTS)

MAX_URLS = 4  # real certificates name one issuer and one or two lists
MAX_FETCHES = 8  # for one piece of evidence; a Google chain takes one issuer and one or two lists
FETCH_TIMEOUT = 5.0
"""Seconds for one fetch: never what is left to one caller, because others may wait for the same one."""
TOTAL_TIMEOUT = 15.0
"""Seconds after which one call begins no further fetch."""

# PEM takes a third more than DER; Google's service publishes either.
_MAX_CERTIFICATE_BODY = 2 * MAX_CERTIFICATE
_MAX_LIST_BODY = MAX_LIST + MAX_LIST // 2
_CACHE_SIZE = 256
# An issuer stays for years. A revocation should be noticed on the same day, whatever the list's own schedule.
_ISSUER_REFRESH = 86_400
_LIST_REFRESH = 6 * 3600

_PORTS = {"http": 80, "https": 443}
# The last two labels are names: no rule holds for a whole top-level domain, and none for an address.
_RULE = re.compile(r"(?:[a-z0-9*-]+\.)+[a-z0-9-]+\.[a-z]+")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")
_SEQUENCE = b"\x30"


class _List(msgspec.Struct, frozen=True):
    der: bytes
    parsed: RevocationList


class IssuerClient:
    """Fetches issuers and revocation lists; safe to share between threads, memory bounded.

    `hosts` are rules for host names in which `*` stands for a part of one label; such hosts are asked on the
    default ports alone. `origins` (`http://127.0.0.1:8080`) are asked whatever they are: for simulations.
    `timeout` is in seconds for one fetch. `tell(sentence)` hears of renewals that failed while an older
    answer still served. Raises `ConfigError`: `issuers.config.host`, `issuers.config.origin`.
    """

    def __init__(
        self,
        http: HttpClient,
        *,
        hosts: Sequence[str] = PRODUCTION_HOSTS,
        origins: Sequence[str] = (),
        timeout: float = FETCH_TIMEOUT,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._http = http
        self._timeout = timeout
        self._hosts = tuple(_host_pattern(rule) for rule in hosts)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    "issuers.config.origin", f"got {origin[:80]!r}, expected http(s)://host[:port]"
                )
        self._origins = frozenset(origins)
        self._certificates: FreshCache[str, TpmCertificate] = FreshCache(
            _CACHE_SIZE, refresh_after=_ISSUER_REFRESH, ends=lambda found: found.not_after, tell=tell
        )
        self._lists: FreshCache[str, _List] = FreshCache(
            _CACHE_SIZE, refresh_after=_LIST_REFRESH, ends=lambda found: found.parsed.next_update, tell=tell
        )

    def issuers_of(
        self, certificate: bytes, *, anchors: Sequence[TrustAnchor], known: Sequence[bytes] = (), now: int
    ) -> tuple[bytes, ...]:
        """Return the certificates (DER) between one and an anchor, its own issuer first, at `now`.

        `known` issuers are taken before any is fetched, and each one found must have signed the one below
        before its own addresses are read. Whether they may be issuers, and are valid, is the verifier's to
        check. Raises `InvalidEvidence`: `issuers.depth`, `issuers.none` (a certificate names no address),
        `issuers.not_issuer`, `issuers.count`, `issuers.url`, and those of reading a certificate;
        `UnavailableError`: `issuers.status`, `issuers.budget`; `ProtocolError("issuers.content")`; what the
        HTTP client raises.
        """
        budget = _Budget()
        found: list[bytes] = []
        current = TpmCertificate.parse(certificate)
        while not any(anchor.subject == current.issuer for anchor in anchors):
            if len(found) == MAX_DEPTH - 1:
                raise InvalidEvidence(
                    "issuers.depth", f"no trust anchor was reached within {MAX_DEPTH} certificates"
                )
            issuer = _known_issuer(current, known) or self._fetch_issuer(current, now, budget)
            found.append(issuer.der)
            current = issuer
        return tuple(found)

    def lists_of(self, links: Sequence[ChainLink], *, now: int) -> tuple[bytes, ...]:
        """Return a revocation list (DER) for each certificate of a verified chain that names one.

        Each is signed by the certificate's issuer, current at `now` and of the right scope. Raises
        `InvalidEvidence`: `issuers.none` (only addresses that cannot be fetched), `issuers.list` (not the
        issuer's, not current, or of other certificates), `crl.*`; otherwise as `issuers_of`.
        """
        budget = _Budget()
        found = [self._fetch_list(link, now, budget).der for link in links if names_list(link.certificate)]
        return tuple(dict.fromkeys(found))

    def _fetch_issuer(self, child: TpmCertificate, now: int, budget: "_Budget") -> TpmCertificate:
        def check(found: TpmCertificate) -> None:
            if not is_issued_by(child.der, found.der):
                raise InvalidEvidence(
                    "issuers.not_issuer",
                    f"the address in {child.name!r} holds {found.name!r}, not its issuer",
                )

        urls = self._allowed(ca_issuers_urls(child.der), f"issuers of {child.name!r}")

        def from_url(url: str) -> TpmCertificate:
            budget.spend()
            return self._certificates.get(
                url,
                now,
                fetch=lambda _: TpmCertificate.parse(
                    _der(self._get(url, _MAX_CERTIFICATE_BODY), b"CERTIFICATE")
                ),
                check=check,
            )

        return _first(urls, from_url)

    def _fetch_list(self, link: ChainLink, now: int, budget: "_Budget") -> _List:
        name = link.issuer_name

        def check(found: _List) -> None:
            if not link.signs_lists or not found.parsed.is_signed_by(link.issuer_key):
                raise InvalidEvidence("issuers.list", f"the revocation list of {name} is not signed by it")
            if not found.parsed.is_current(now) or not found.parsed.covers(link.certificate):
                raise InvalidEvidence(
                    "issuers.list", f"the revocation list of {name} is not current, or of other certificates"
                )

        der = link.certificate.public_bytes(Encoding.DER)
        urls = self._allowed(crl_urls(der), f"revocation lists of {name}")

        def from_url(url: str) -> _List:
            def fetch(held: _List | None) -> _List:
                der = _der(self._get(url, _MAX_LIST_BODY), b"X509 CRL")
                new = _List(der, RevocationList.parse(der))
                if held is not None and new.parsed.this_update < held.parsed.this_update:
                    raise InvalidEvidence(
                        "issuers.list", f"the revocation list of {name} is older than the one seen before"
                    )
                return new

            budget.spend()
            return self._lists.get(url, now, fetch=fetch, check=check)

        return _first(urls, from_url)

    def _allowed(self, urls: Sequence[str], what: str) -> Sequence[str]:
        """Return the addresses, once all of them may be asked: evidence that names another one is refused."""
        if not urls:
            raise InvalidEvidence("issuers.none", f"no address is named for the {what}")
        if len(urls) > MAX_URLS:
            raise InvalidEvidence(
                "issuers.count",
                f"{len(urls)} addresses are named for the {what}, at most {MAX_URLS} are read",
            )
        for url in urls:
            if not self._is_allowed(url):
                raise InvalidEvidence(
                    "issuers.url", f"address {url[:100]!r} for the {what} is not a vendor's"
                )
        return urls

    def _is_allowed(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in _PORTS or "@" in parts.netloc or parts.fragment:
            return False
        if f"{parts.scheme}://{parts.netloc}" in self._origins:
            return True
        host = parts.hostname or ""
        return port in {None, _PORTS[parts.scheme]} and any(rule.fullmatch(host) for rule in self._hosts)

    def _get(self, url: str, max_bytes: int) -> bytes:
        response = self._http.request("GET", url, timeout=self._timeout, max_bytes=max_bytes)
        if response.status != 200:
            raise UnavailableError("issuers.status", f"got status {response.status} from {url[:200]}")
        return response.body


class _Budget:
    """What one call may still spend; counted also where a cache then answers."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + TOTAL_TIMEOUT
        self._fetches = MAX_FETCHES

    def spend(self) -> None:
        self._fetches -= 1
        if self._fetches < 0 or time.monotonic() > self._deadline:
            raise UnavailableError(
                "issuers.budget",
                f"more than {MAX_FETCHES} fetches or {TOTAL_TIMEOUT:g} seconds would be needed",
            )


def _first(urls: Sequence[str], fetch: Callable[[str], T]) -> T:
    """Return what the first address gives that gives anything; raise the first one's error if none does."""
    failures: list[DstackError] = []
    for url in urls:
        try:
            return fetch(url)
        except DstackError as error:
            failures.append(error)
    raise failures[0]


def _known_issuer(child: TpmCertificate, known: Sequence[bytes]) -> TpmCertificate | None:
    for der in known:
        try:
            if is_issued_by(child.der, der):
                return TpmCertificate.parse(der)
        except InvalidEvidence:
            continue  # of another kind: a bundle serves several platforms
    return None


def _host_pattern(rule: str) -> re.Pattern[str]:
    if not _RULE.fullmatch(rule):
        raise ConfigError(
            "issuers.config.host", f"got {rule[:80]!r}, expected a host name, with * in its labels"
        )
    return re.compile(re.escape(rule).replace(r"\*", "[a-z0-9-]+"))


def _der(body: bytes, label: bytes) -> bytes:
    """Return the one object in a body of DER, or of PEM under `label`; what it is shows when it is parsed."""
    if body.startswith(_SEQUENCE):
        return body
    begin, end = (b"-----" + word + b" " + label + b"-----" for word in (b"BEGIN", b"END"))
    text = body.strip()
    if text.startswith(begin) and text.endswith(end):
        with contextlib.suppress(ValueError):
            return base64.b64decode(b"".join(text[len(begin) : -len(end)].split()), validate=True)
    raise ProtocolError(
        "issuers.content", f"got {len(body)} bytes that are no {label.decode().lower()} in der or pem"
    )
