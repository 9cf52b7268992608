"""Intel's collateral for one platform model, from a caching service or from Intel (spec attestation 3.6).

What comes back is signed and is checked when it is used, so a service can withhold but not invent. Which
services are asked is configuration: nothing in evidence, and nothing that a service says, names a URL.
"""

import binascii
import re
import time
from collections.abc import Callable, Sequence
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from shared.attestation.collateral import MAX_CHAIN, MAX_CRL, MAX_TEXT, CollateralFacts, describe
from shared.attestation.endorsements import TdxCollateral
from shared.attestation.pck import PckCa, join_pem, split_pem
from shared.ec_key import ec_key
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient
from shared.net.response import Response
from shared.strict_json import decode_json

PHALA_PCCS = "https://pccs.phala.network"
INTEL_PCS = "https://api.trustedservices.intel.com"
DEFAULT_PCCS_URLS = (PHALA_PCCS, INTEL_PCS)

# Intel's own service has no route for it. This is the distribution point that its root certificate names: a
# constant, so that no answer can send us anywhere.
INTEL_ROOT_CRL_URL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

FETCH_TIMEOUT = 30.0
"""Seconds for one `fetch`, however many services are asked; a healthy one takes under two."""
MAX_SERVICES = 8  # each may use up its share of the time
MAX_SIGNED_BYTES = MAX_TEXT + 1024  # the object with its signature around it
_MAX_CERTIFICATES = 4  # a chain has two
_MAX_HOST_IN_ERROR = 80

_SUFFIXES = ("/sgx/certification/v4", "/tdx/certification/v4")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})+")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----\s*")


class _Service(msgspec.Struct, frozen=True):
    """One configured base URL, without a slash at its end; `host` is what errors name."""

    base: str
    host: str
    is_intel: bool


class _SignedAnswer(msgspec.Struct, frozen=True):
    """The members that an answer may have; others mean nothing to us."""

    signature: str
    tcb_info: msgspec.Raw = msgspec.field(name="tcbInfo", default=msgspec.Raw(b""))
    enclave_identity: msgspec.Raw = msgspec.field(name="enclaveIdentity", default=msgspec.Raw(b""))


def _accept_any(_: CollateralFacts) -> None:
    """Refuse nothing."""


class PccsClient:
    """Collateral from the first of `base_urls` that gives a whole set; safe to share between threads.

    `base_urls` may end in either of the service's two path prefixes. Plain http is for simulations, whose
    caller must allow it by name. `timeout` is in seconds and for all services together. Raises
    `ConfigError`: `pccs.config.count`, `pccs.config.url`, `pccs.config.plain_http`.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        http: HttpClient,
        *,
        allow_plain_http: bool = False,
        timeout: float = FETCH_TIMEOUT,
    ) -> None:
        if not 1 <= len(base_urls) <= MAX_SERVICES:
            raise ConfigError(
                "pccs.config.count", f"got {len(base_urls)} collateral services, expected 1 to {MAX_SERVICES}"
            )
        self._services = tuple(_service(url, allow_plain_http=allow_plain_http) for url in base_urls)
        self._http = http
        self._timeout = timeout

    def fetch(
        self, fmspc: bytes, ca: PckCa, check: Callable[[CollateralFacts], None] = _accept_any
    ) -> TdxCollateral:
        """Return collateral for a platform model (`fmspc`, 6 bytes) whose certificate `ca` issued.

        It is complete, about that model, and its texts are as their signers spelled them; whether Intel's
        root stands above those is the verifier's to check. `check` may raise to refuse what one service has,
        for its age, and the next is asked.

        Raises `UnavailableError("pccs.unavailable")`, whose sentence says of each service why: what the HTTP
        client or `check` raised, `pccs.status`, `pccs.header`, `pccs.body` (and `pccs.body.*` for its JSON),
        `pccs.signature`, `pccs.fmspc`, `pccs.ca`, or what `collateral.describe` raised.
        """
        deadline = time.monotonic() + self._timeout
        failures: list[tuple[_Service, DstackError]] = []
        for position, service in enumerate(self._services):
            now = time.monotonic()
            share = (deadline - now) / (len(self._services) - position)
            try:
                found = self._fetch_from(service, ca, fmspc, now + share)
                facts = _checked(found, fmspc, ca)
                check(facts)
            except DstackError as error:
                failures.append((service, error))
            else:
                return found
        reasons = "; ".join(f"{service.host}: {error.code}: {error}" for service, error in failures)
        raise UnavailableError(
            "pccs.unavailable",
            f"no service gave collateral for fmspc {fmspc.hex()} and the {ca} ca: {reasons}",
        ) from failures[0][1]

    def _fetch_from(self, service: _Service, ca: PckCa, fmspc: bytes, deadline: float) -> TdxCollateral:
        def get(url: str, max_bytes: int) -> Response:
            return self._get(url, max_bytes, deadline)

        sgx, tdx = (service.base + suffix for suffix in _SUFFIXES)
        pck_crl = get(f"{sgx}/pckcrl?ca={ca}&encoding=der", MAX_CRL)
        tcb = get(f"{tdx}/tcb?fmspc={fmspc.hex().upper()}", MAX_SIGNED_BYTES)
        identity = get(f"{tdx}/qe/identity?update=standard", MAX_SIGNED_BYTES)
        tcb_info, tcb_signature = read_signed(tcb.body, "tcbInfo")
        qe_identity, qe_signature = read_signed(identity.body, "enclaveIdentity")
        return TdxCollateral(
            pck_crl_issuer_chain=_chain(pck_crl, "sgx-pck-crl-issuer-chain"),
            root_ca_crl=_root_crl(service, get),
            pck_crl=pck_crl.body,
            tcb_info_issuer_chain=_chain(tcb, "sgx-tcb-info-issuer-chain", "tcb-info-issuer-chain"),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=_chain(identity, "sgx-enclave-identity-issuer-chain"),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    def _get(self, url: str, max_bytes: int, deadline: float) -> Response:
        left = deadline - time.monotonic()
        response = self._http.request("GET", url, timeout=max(left, 0.0), max_bytes=max_bytes)
        if response.status != 200:
            what = "a redirect, which is not followed" if 300 <= response.status < 400 else "no answer"
            raise UnavailableError(
                "pccs.status", f"got status {response.status} for {urlsplit(url).path}, {what}"
            )
        return response


def read_signed(body: bytes, member: Literal["tcbInfo", "enclaveIdentity"]) -> tuple[str, bytes]:
    """Return the exact text of the signed object in a service's answer, and its signature (64 bytes).

    The text is cut out of the body byte for byte: Intel signed that spelling and no other (Trap 5). Raises
    `ProtocolError`: `pccs.body.size`, `pccs.body.syntax`, `pccs.body.duplicate_key`, `pccs.body.depth`,
    `pccs.body` for a missing member, `pccs.signature`.
    """
    # first: what follows takes the last of two equal keys, and does not look into the object
    decode_json(body, what="the service's answer", code="pccs.body", max_bytes=MAX_SIGNED_BYTES)
    try:
        answer = msgspec.json.decode(body, type=_SignedAnswer)
    except msgspec.DecodeError as error:
        raise ProtocolError("pccs.body", f"the service's answer has another shape: {error}") from error
    text = bytes(answer.tcb_info if member == "tcbInfo" else answer.enclave_identity).decode()
    if not text.startswith("{"):
        raise ProtocolError("pccs.body", f"the service's answer has no object {member}")
    if not _SIGNATURE.fullmatch(answer.signature):
        raise ProtocolError("pccs.signature", f"the signature of {member} is not 128 hex digits")
    return text, bytes.fromhex(answer.signature)


def _service(url: str, *, allow_plain_http: bool) -> _Service:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("pccs.config.url", f"a collateral service's url is malformed: {error}") from error
    host = parts.hostname or ""
    path = parts.path.rstrip("/")
    for suffix in _SUFFIXES:
        path = path.removesuffix(suffix)
    if not _is_base(parts, path):
        raise ConfigError(
            "pccs.config.url",
            f"the collateral service at {host[:_MAX_HOST_IN_ERROR]!r} is not given as http(s)://host[/path]",
        )
    if parts.scheme == "http" and not allow_plain_http:
        raise ConfigError(
            "pccs.config.plain_http",
            f"the collateral service {host} is plain http, expected https outside a simulation",
        )
    return _Service(
        f"{parts.scheme}://{parts.netloc}{path}", host, is_intel=host == urlsplit(INTEL_PCS).hostname
    )


def _is_base(parts: SplitResult, path: str) -> bool:
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and parts.netloc.isascii()
        and not parts.query
        and not parts.fragment
        and _PATH.fullmatch(path) is not None
    )


def _root_crl(service: _Service, get: Callable[[str, int], Response]) -> bytes:
    if service.is_intel:
        return get(INTEL_ROOT_CRL_URL, MAX_CRL).body
    text = get(f"{service.base}/sgx/certification/v4/rootcacrl", 2 * MAX_CRL).body.strip()
    if not _HEX.fullmatch(text):
        raise ProtocolError("pccs.body", f"the root crl is {len(text)} bytes that are not hex")
    return bytes.fromhex(text.decode())


def _chain(response: Response, *names: str) -> str:
    """Return a chain as PEM in the one spelling that the verifier reads; nobody signed the spelling."""
    found = [response.headers[name] for name in names if name in response.headers]
    if not found:
        raise ProtocolError("pccs.header", f"the answer has no header {' or '.join(names)}")
    text = unquote(found[0], errors="replace")
    blocks = _CERTIFICATE.findall(text) if len(text) <= MAX_CHAIN else []
    if not 1 <= len(blocks) <= _MAX_CERTIFICATES or _CERTIFICATE.sub("", text):
        raise ProtocolError(
            "pccs.header", f"header {names[0]} does not hold 1 to {_MAX_CERTIFICATES} pem certificates"
        )
    try:
        return join_pem(tuple(binascii.a2b_base64(block) for block in blocks)).decode()
    except ValueError as error:
        raise ProtocolError("pccs.header", f"header {names[0]} is not base64: {error}") from error


def _checked(found: TdxCollateral, fmspc: bytes, ca: PckCa) -> CollateralFacts:
    """Return what collateral says of itself, once it is what was asked for."""
    facts = describe(found)
    if facts.fmspc != fmspc:
        raise ProtocolError(
            "pccs.fmspc", f"the tcb info is for fmspc {facts.fmspc.hex()}, expected {fmspc.hex()}"
        )
    if facts.ca != ca:
        raise ProtocolError("pccs.ca", f"the pck crl is of the {facts.ca} ca, expected that of the {ca} ca")
    # A service that spells a text anew breaks its signature: better known here, where another can be asked.
    _check_spelling(found.tcb_info, found.tcb_info_signature, found.tcb_info_issuer_chain)
    _check_spelling(found.qe_identity, found.qe_identity_signature, found.qe_identity_issuer_chain)
    return facts


def _check_spelling(text: str, signature: bytes, chain: str) -> None:
    try:
        key = ec_key(x509.load_der_x509_certificate(split_pem(chain.encode())[0]))
        if key is None:
            raise ProtocolError(
                "pccs.signature", "the first certificate of a chain has no elliptic curve key"
            )
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), text.encode(), ec.ECDSA(SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise ProtocolError(
            "pccs.signature", f"text {text[:20]!r} is not signed by the first certificate of its chain"
        ) from error
