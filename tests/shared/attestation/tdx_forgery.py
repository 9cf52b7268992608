"""TDX evidence with any fault, under a throw-away Intel."""

import struct
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from enclave.simulator.tdx import Identity, SimulatedIntel, SimulatedTdx
from shared.attestation.anchor import TrustAnchor
from shared.attestation.endorsements import Endorsements, TdxCollateral
from shared.attestation.policy import TdxPolicy
from shared.attestation.tdx import CollateralCache, VerifiedTdx, verify_tdx
from shared.attestation.tdx_quote import ParsedQuote, parse_quote
from shared.attestation.trust import TrustAnchors

NOW = 1_767_225_600
DAY = 86_400
REPORT_DATA = bytes(range(64))
DEFAULT_POLICY = TdxPolicy()
AUTHORITY = x509.ObjectIdentifier("2.5.29.35")
SGX = x509.ObjectIdentifier("1.2.840.113741.1.13.1")


class TdxForge:
    """One Intel, its anchors, and collateral of `NOW` without a fault."""

    def __init__(self, intel: SimulatedIntel | None = None) -> None:
        self.intel = intel or SimulatedIntel.create()
        self.anchors: tuple[TrustAnchor, ...] = TrustAnchors.production().with_extra(self.intel.root_pem).tdx
        self.collateral = self.intel.collateral(NOW)
        self.quote = SimulatedTdx(self.intel).quote(REPORT_DATA)

    def verify(
        self,
        quote: bytes | None = None,
        *collaterals: TdxCollateral,
        now: int = NOW,
        policy: TdxPolicy = DEFAULT_POLICY,
        report_data: bytes | None = REPORT_DATA,
        anchors: tuple[TrustAnchor, ...] | None = None,
        cache: CollateralCache | None = None,
    ) -> VerifiedTdx:
        return verify_tdx(
            self.quote if quote is None else quote,
            now=now,
            anchors=self.anchors if anchors is None else anchors,
            policy=policy,
            endorsements=Endorsements(tdx=collaterals or (self.collateral,)),
            report_data=report_data,
            cache=cache,
        )

    def altered(self, **fields: Any) -> TdxCollateral:
        """The collateral with fields replaced."""
        return msgspec.structs.replace(self.collateral, **fields)


def certification_at(quote: ParsedQuote) -> int:
    """Return where the inner certification data (its type) starts in the quote."""
    return quote.raw.index(quote.certification_data) - 6


def recertified(quote: bytes, kind: int, data: bytes) -> bytes:
    """Return the quote with other inner certification data, which no signature covers."""
    parsed = parse_quote(quote)
    inner = (
        parsed.qe_report_raw
        + parsed.qe_report_signature
        + struct.pack("<H", len(parsed.qe_auth_data))
        + parsed.qe_auth_data
        + struct.pack("<HI", kind, len(data))
        + data
    )
    auth = parsed.signature + parsed.attestation_key + struct.pack("<HI", 6, len(inner)) + inner
    return parsed.signed + struct.pack("<I", len(auth)) + auth


def leaf(
    issuer: Identity,
    public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    extension: bytes | None,
    *,
    issuer_name: str | None = None,
    not_after: int = NOW + 365 * DAY,
    authority: bytes | None = None,
) -> x509.Certificate:
    """Return a PCK leaf with any key, SGX extension and authority key identifier (content of both)."""
    named = issuer.certificate.subject
    if issuer_name is not None:
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Forged PCK")]))
        .issuer_name(named)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(NOW - 365 * DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SGX, extension), critical=False)
    if authority is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(AUTHORITY, authority), critical=False)
    return builder.sign(issuer.key, SHA256())


def redated(identity: Identity, issuer: Identity, not_before: int, not_after: int) -> Identity:
    """Return the same certificate with another validity (unix seconds), signed anew by its issuer."""
    old = identity.certificate
    builder = x509.CertificateBuilder(
        old.issuer,
        old.subject,
        old.public_key(),
        old.serial_number,
        datetime.fromtimestamp(not_before, UTC),
        datetime.fromtimestamp(not_after, UTC),
        list(old.extensions),
    )
    return Identity(builder.sign(issuer.key, SHA256()), identity.key)
