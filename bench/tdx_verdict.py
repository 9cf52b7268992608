"""The TDX and GCP verdicts against the cryptography in them, and the replay of a long event log."""

import hashlib
from collections.abc import Callable

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from bench.measure import Bar, Result, compare, timed
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.collateral import collateral_json
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    Quote,
    RuntimeEvent,
    TdxEvent,
    TdxQuote,
    encode_v0,
)
from shared.attestation.event_log import RUNTIME_EVENT_TYPE, event_digest, replay
from shared.attestation.tdx_quote import parse_quote
from shared.attestation.tpm_quote import parse_signature
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifierCache, verify_attestation
from tests.shared.attestation.gcp_forgery import EVENTS as GCP_EVENTS
from tests.shared.attestation.gcp_forgery import NOW, GcpForge

REPORT_DATA = bytes(64)
ROUND, ROUNDS = 10, 40
EVENTS = tuple(
    RuntimeEvent(name, payload)
    for name, payload in (
        ("system-preparing", b""),
        ("app-id", b"\x11" * 20),
        ("compose-hash", b"\x22" * 32),
        ("instance-id", b"\x33" * 20),
        ("boot-mr-done", b""),
        ("key-provider", b'{"name":"none","id":""}'),
        ("storage-fs", b"zfs"),
        ("system-ready", b""),
    )
)
LONG_LOG = 4096
"""The longest log that is replayed; more is refused before any hash."""


def tdx() -> Result:
    """Measure a whole verdict, envelope decoded and events replayed, against dcap-qvl alone."""
    intel = SimulatedIntel.create()
    guest = SimulatedTdx(intel)
    for event in EVENTS:
        guest.extend_rtmr(3, event_digest(event, "sha384"))
    quote = guest.quote(REPORT_DATA)
    log = tuple(TdxEvent(3, RUNTIME_EVENT_TYPE, b"", event.event, event.payload) for event in EVENTS)
    envelope = encode_v0(Attestation(TdxQuote(quote, log), EVENTS, REPORT_DATA, "{}"))
    collateral = intel.collateral(NOW)
    anchors = TrustAnchors.production().with_extra(intel.root_pem)
    endorsements, cache = Endorsements(tdx=(collateral,)), VerifierCache()

    def verdict() -> None:
        verify_attestation(
            envelope,
            now=NOW,
            anchors=anchors,
            endorsements=endorsements,
            report_data=REPORT_DATA,
            cache=cache,
        )

    parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral_json(collateral))
    root = anchors.tdx[-1].der

    def bare() -> None:
        dcap_qvl.verify_with_root_ca(quote, parsed, root, NOW)

    what = "verify_attestation of a TDX envelope against dcap-qvl's verify of its quote"
    return compare("tdx-verdict", what, verdict, bare, bar=Bar("at most", 1.5))


def gcp() -> Result:
    """Measure with the machine's key and its authority's lists remembered, as between a guest's requests."""
    return _gcp("gcp-verdict", "chain and lists remembered", bar=Bar("at most", 1.2), remember=True)


def gcp_cold() -> Result:
    """Measure with nothing of the vTPM half remembered.

    It has no bar: `reading` alone, which judges nothing, takes what the bar of remembered chains allows.
    """
    return _gcp("gcp-cold", "nothing remembered", bar=None, remember=False)


def _gcp(name: str, condition: str, *, bar: Bar | None, remember: bool) -> Result:
    """Measure what a GCP verdict adds to its TDX half against the signatures that are in what it adds.

    Five of P-256: of the quote, of two certificates and of two revocation lists.
    """
    forge = GcpForge()
    evidence = forge.evidence()
    report_data = parse_quote(evidence.tdx.quote).report.report_data
    log = tuple(TdxEvent(3, RUNTIME_EVENT_TYPE, b"", event.event, event.payload) for event in GCP_EVENTS)
    half = TdxQuote(evidence.tdx.quote, log)
    anchors, endorsements = forge.anchors, forge.endorsements
    known = VerifierCache()

    def judged(quote: Quote) -> Callable[[], object]:
        attestation = Attestation(quote, GCP_EVENTS, report_data, "{}")

        def verdict() -> None:
            cache = known if remember else VerifierCache(collateral=known.collateral)
            verify_attestation(attestation, now=NOW, anchors=anchors, endorsements=endorsements, cache=cache)

        return verdict

    signature_checks, reading = _tpm_signatures(forge, evidence)
    subjects = (judged(GcpTdxQuote(half, evidence.tpm)), judged(half), signature_checks, reading)
    for subject in subjects:
        subject()
    rounds = [[timed(subject, ROUND).cpu for subject in subjects] for _ in range(ROUNDS)]
    whole, tdx_half, signatures, read = (min(times) for times in zip(*rounds, strict=True))
    return Result(
        name=name,
        what=f"what GCP evidence adds to the verdict of its TDX half, against five raw checks; {condition}",
        ours=whole - tdx_half,
        reference=signatures,
        ratio=(whole - tdx_half) / signatures,
        bar=bar,
        detail={
            "whole ms": whole * 1e3,
            "tdx half ms": tdx_half * 1e3,
            "reading and checking by the library alone, against the raw checks": read / signatures,
        },
    )


def long_log() -> Result:
    """Measure the replay of the longest log against hashing its events: linear, so the ratio is constant."""
    events = tuple(RuntimeEvent(f"event-{index}", bytes(32)) for index in range(LONG_LOG))

    def raw() -> None:
        register = bytes(48)
        for event in events:
            text = b"\x01\x00\x00\x08:" + event.event.encode() + b":" + event.payload
            register = hashlib.sha384(register + hashlib.sha384(text).digest()).digest()

    what = f"replay of {LONG_LOG} runtime events against their bare hashes"
    ours = lambda: replay(events, "sha384")  # noqa: E731 - a subject, as raw is
    return compare("event-replay", what, ours, raw, bar=Bar("at most", 2.0), count=2)


def _tpm_signatures(
    forge: GcpForge, evidence: GcpTdxQuote
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what checks the same five signatures and nothing else: with keys at hand, and from the bytes."""
    signature = parse_signature(evidence.tpm.signature)
    quoted = encode_dss_signature(signature.r, signature.s)
    checks = [(forge.key.public_key(), quoted, evidence.tpm.message)]
    endorsements = forge.endorsements
    encoded = (evidence.tpm.ak_cert, *endorsements.certificates)
    chain = [x509.load_der_x509_certificate(der) for der in encoded]
    root = x509.load_pem_x509_certificates(forge.google.root_pem)[0]
    for certificate, issuer in zip(chain, [*chain[1:], root], strict=False):
        checks.append((issuer.public_key(), certificate.signature, certificate.tbs_certificate_bytes))
    lists = [x509.load_der_x509_crl(der) for der in endorsements.crls]
    by_name = {certificate.subject: certificate.public_key() for certificate in (*chain, root)}
    checks += [(by_name[found.issuer], found.signature, found.tbs_certlist_bytes) for found in lists]

    algorithm = ECDSA(SHA256())

    def raw() -> None:
        for key, signature, message in checks:
            key.verify(signature, message, algorithm)

    def reading() -> None:
        read = [x509.load_der_x509_certificate(der) for der in encoded]
        keys = [*(certificate.public_key() for certificate in read), root.public_key()]
        keys[0].verify(quoted, evidence.tpm.message, algorithm)
        for certificate, key in zip(read, keys[1:], strict=True):
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, algorithm)
        for der in endorsements.crls:
            found = x509.load_der_x509_crl(der)
            by_name[found.issuer].verify(found.signature, found.tbs_certlist_bytes, algorithm)

    return raw, reading
