"""Documents that AWS's hypervisor signs, for enclaves and for NitroTPMs (spec attestation 4.3, 4.4, 5.5).

Both have one encoding, one chain and one way to be verified. They differ in the name of their registers, and
in what these mean, which `nitro` and `nitro_tpm` know.
"""

import hmac
from functools import partial
from typing import TypeVar

import msgspec

from shared.attestation.anchor import TrustAnchor
from shared.attestation.cbor import Value, decode_strict
from shared.attestation.certificate import MAX_CERTIFICATE
from shared.attestation.chain import MAX_INTERMEDIATES, ChainCache, VerifiedLeaf, issued_links, verify_leaf
from shared.attestation.cose import CoseSign1, parse_sign1, verify_es384
from shared.attestation.endorsements import Endorsements
from shared.attestation.policy import NitroPolicy
from shared.attestation.revocation import RevocationResult, check_revocation, unconsulted
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence

T = TypeVar("T", str, int, bytes, list[Value], dict[int | str, Value])

PCR_LENGTH = 48
MAX_USER_DATA = 512
MAX_NONCE = 512
MAX_PUBLIC_KEY = 1024

_FIELDS = frozenset(
    {"module_id", "digest", "timestamp", "certificate", "cabundle", "public_key", "user_data", "nonce"}
)
_MAX_TIMESTAMP = 1 << 63


class DocumentKind(msgspec.Struct, frozen=True):
    """What tells two kinds of documents apart.

    The map's name, how many registers exist, and which of them must be there. A document with the other name,
    or with both, is of no kind.
    """

    registers: str
    count: int
    required: tuple[int, ...]


class NitroDocument(msgspec.Struct, frozen=True):
    """The fields of a document. Certificates are DER; `cabundle` is root first; PCRs are 48 bytes each."""

    module_id: str
    digest: str
    timestamp_ms: int
    pcrs: dict[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    user_data: bytes | None
    nonce: bytes | None
    public_key: bytes | None

    @property
    def timestamp(self) -> int:
        """When the document was made, unix seconds."""
        return self.timestamp_ms // 1000


class VerifiedDocument(msgspec.Struct, frozen=True):
    """A document that was verified, under which anchor, and the second from which it no longer would be."""

    document: NitroDocument
    trust_anchor: TrustAnchor
    revocation: RevocationResult
    valid_until: int

    @property
    def anchor(self) -> str:
        """The name of the trust anchor."""
        return self.trust_anchor.name

    @property
    def simulated(self) -> bool:
        """Whether the anchor is another one than AWS's own root."""
        return not self.trust_anchor.production


class Expectations(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants a document to carry, None where anything will do."""

    report_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


class DocumentVerifier(msgspec.Struct, frozen=True, kw_only=True):
    """One verification's circumstances; `now` in unix seconds."""

    now: int
    anchors: TrustAnchors
    policy: NitroPolicy
    endorsements: Endorsements
    chain_cache: ChainCache | None

    def verify(self, cose: bytes, kind: DocumentKind, expected: Expectations) -> VerifiedDocument:
        """Verify a document but for what its registers mean: steps 1 to 7 of `nitro.verify_document`."""
        message = parse_sign1(cose)
        document = read_document(message, kind)
        self.policy.check_age(document.timestamp_ms, self.now)
        leaf = verify_leaf(
            document.certificate,
            document.cabundle[1:],
            now=self.now,
            anchors=self.anchors.nitro,
            cache=self.chain_cache,
        )
        verify_es384(message, leaf.key)
        revocation = self._revocation(document, leaf)
        _expect("user_data", document.user_data, expected.report_data)
        _expect("nonce", document.nonce, expected.nonce)
        _expect("public_key", document.public_key, expected.public_key)
        ends = [document.timestamp + self.policy.max_age + 1, leaf.not_after + 1]
        if revocation.valid_until is not None:
            ends.append(revocation.valid_until)
        return VerifiedDocument(document, leaf.anchor, revocation, min(ends))

    def _revocation(self, document: NitroDocument, leaf: VerifiedLeaf) -> RevocationResult:
        """Check the chain against the lists; certificates are read again only where there are some."""
        lists, mode = self.endorsements.crls, self.policy.revocation
        if (result := unconsulted(lists, mode)) is not None:
            return result
        chain = (document.certificate, *document.cabundle[1:])
        make = partial(issued_links, document.certificate, document.cabundle[1:], leaf.anchor)
        if self.chain_cache is None:
            return check_revocation(make(), lists, now=self.now, mode=mode)
        cache = self.chain_cache.revocation
        links = cache.links.find((leaf.anchor.sha256, *chain), make)
        return check_revocation(links, lists, now=self.now, mode=mode, cache=cache)


def _expect(name: str, got: bytes | None, expected: bytes | None) -> None:
    if expected is None:
        return
    if got is None:
        raise InvalidEvidence(f"nitro.{name}", f"document has no {name}, expected {len(expected)} bytes")
    if not hmac.compare_digest(got, expected):
        raise InvalidEvidence(
            f"nitro.{name}",
            f"{name} of the document begins {got[:16].hex()}, expected {expected[:16].hex()}",
        )


def read_document(message: CoseSign1, kind: DocumentKind) -> NitroDocument:
    """Read the payload of a document, every field accounted for.

    Raises `InvalidEvidence`: `cbor.*`, and the `nitro.*` codes of `nitro.parse_document`.
    """
    fields = decode_strict(message.payload, indefinite_top_map=True)
    if not isinstance(fields, dict):
        raise InvalidEvidence("nitro.payload", "payload of the document is not a map")
    if unknown := fields.keys() - _FIELDS - {kind.registers}:
        raise InvalidEvidence("nitro.field", f"document has unknown fields {sorted(map(str, unknown))}")
    digest = _field(fields, "digest", str)
    if digest != "SHA384":
        raise InvalidEvidence("nitro.digest", f"digest is {digest!r}, expected 'SHA384'")
    timestamp = _field(fields, "timestamp", int)
    if not 0 <= timestamp < _MAX_TIMESTAMP:
        raise InvalidEvidence("nitro.field", f"timestamp {timestamp} is not in milliseconds since 1970")
    return NitroDocument(
        module_id=_field(fields, "module_id", str),
        digest=digest,
        timestamp_ms=timestamp,
        pcrs=_pcrs(_field(fields, kind.registers, dict), kind),
        certificate=_certificate(_field(fields, "certificate", bytes)),
        cabundle=_cabundle(_field(fields, "cabundle", list)),
        user_data=_optional(fields, "user_data", MAX_USER_DATA),
        nonce=_optional(fields, "nonce", MAX_NONCE),
        public_key=_optional(fields, "public_key", MAX_PUBLIC_KEY),
    )


def _field(fields: dict[int | str, Value], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidEvidence("nitro.field", f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _optional(fields: dict[int | str, Value], name: str, limit: int) -> bytes | None:
    if fields.get(name) is None:
        return None
    value = _field(fields, name, bytes)
    if len(value) > limit:
        raise InvalidEvidence(
            f"nitro.{name}.size", f"{name} has {len(value)} bytes, at most {limit} are allowed"
        )
    return value


def _pcrs(raw: dict[int | str, Value], kind: DocumentKind) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for index, value in raw.items():
        if not isinstance(index, int) or not 0 <= index < kind.count:
            raise InvalidEvidence(
                "nitro.pcr.index", f"pcr index is {index!r}, expected 0 to {kind.count - 1}"
            )
        if not isinstance(value, bytes) or len(value) != PCR_LENGTH:
            raise InvalidEvidence("nitro.pcr.length", f"PCR{index} is not {PCR_LENGTH} bytes")
        pcrs[index] = value
    if missing := [index for index in kind.required if index not in pcrs]:
        wanted = ", ".join(f"PCR{index}" for index in kind.required)
        raise InvalidEvidence(
            "nitro.pcr.missing", f"document has no PCR{missing[0]}, expected at least {wanted}"
        )
    return pcrs


def _cabundle(raw: list[Value]) -> tuple[bytes, ...]:
    if not 0 < len(raw) <= MAX_INTERMEDIATES + 1:
        raise InvalidEvidence(
            "nitro.chain.length",
            f"cabundle has {len(raw)} certificates, expected 1 to {MAX_INTERMEDIATES + 1}",
        )
    return tuple(_certificate(certificate) for certificate in raw)


def _certificate(der: Value) -> bytes:
    if not isinstance(der, bytes):
        raise InvalidEvidence("nitro.field", "a certificate of the document is not a byte string")
    if not 0 < len(der) <= MAX_CERTIFICATE:
        raise InvalidEvidence(
            "nitro.certificate.size", f"a certificate has {len(der)} bytes, expected 1 to {MAX_CERTIFICATE}"
        )
    return der
