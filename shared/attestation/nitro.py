"""Nitro enclave documents: what the NSM signed, and whether to believe it (spec attestation 4.3-4.5)."""

import hmac
from typing import TypeVar

import msgspec

from shared.attestation.cbor import Value, decode_strict
from shared.attestation.certificate import MAX_CERTIFICATE
from shared.attestation.chain import MAX_INTERMEDIATES, verify_leaf
from shared.attestation.chain import ChainCache as ChainCache  # noqa: PLC0414 - its callers make one
from shared.attestation.cose import CoseSign1, parse_sign1, verify_es384
from shared.attestation.trust import NitroAnchors, TrustAnchor
from shared.errors import InvalidEvidence

T = TypeVar("T", str, int, bytes, list[Value], dict[int | str, Value])

PCR_LENGTH = 48
PCR_COUNT = 32  # registers of the NSM, 0 to 31
IMAGE_PCRS = (0, 1, 2)
MAX_USER_DATA = 512
MAX_NONCE = 512
MAX_PUBLIC_KEY = 1024

_FIELDS = frozenset(
    {
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
        "public_key",
        "user_data",
        "nonce",
    }
)
_MAX_TIMESTAMP = 1 << 63


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


class NitroPolicy(msgspec.Struct, frozen=True):
    """How old (`max_age`) and how far in the future (`max_future`) a document may be, in seconds.

    There is no switch for debug enclaves: their registers are zero and say nothing.
    """

    max_age: int = 3600
    max_future: int = 300

    def check(self, document: NitroDocument, now: int) -> None:
        """Refuse by age: `nitro.stale`, `nitro.future`."""
        age_ms = now * 1000 - document.timestamp_ms
        if age_ms > self.max_age * 1000:
            raise InvalidEvidence(
                "nitro.stale",
                f"document was made {age_ms // 1000} seconds ago, at most {self.max_age} are allowed",
            )
        if age_ms < -self.max_future * 1000:
            raise InvalidEvidence(
                "nitro.future",
                f"document is {-age_ms // 1000} seconds in the future, at most {self.max_future} are allowed",
            )


class VerifiedNitroDocument(msgspec.Struct, frozen=True):
    """A document that was verified, under which anchor, and the second from which it no longer would be."""

    document: NitroDocument
    trust_anchor: TrustAnchor
    valid_until: int

    @property
    def anchor(self) -> str:
        """The name of the trust anchor."""
        return self.trust_anchor.name

    @property
    def simulated(self) -> bool:
        """Whether the anchor is another one than AWS's own root."""
        return not self.trust_anchor.production


_DEFAULT_POLICY = NitroPolicy()


def parse_document(cose: bytes) -> NitroDocument:
    """Parse a document without verifying it.

    Raises `InvalidEvidence`: `cose.*` and `cbor.*` for the encoding; `nitro.payload`, `nitro.field` (a
    missing or unknown field, or one of another type), `nitro.digest`, `nitro.pcr.index`, `nitro.pcr.length`,
    `nitro.pcr.missing`, `nitro.certificate.size`, `nitro.chain.length`, `nitro.user_data.size`,
    `nitro.nonce.size`, `nitro.public_key.size`.
    """
    return _document(parse_sign1(cose))


def verify_document(
    cose: bytes,
    *,
    now: int,
    anchors: NitroAnchors,
    policy: NitroPolicy = _DEFAULT_POLICY,
    chain_cache: ChainCache | None = None,
    report_data: bytes | None = None,
    nonce: bytes | None = None,
    public_key: bytes | None = None,
) -> VerifiedNitroDocument:
    """Verify a Nitro enclave document at `now` (unix seconds).

    1. Parse: COSE_Sign1, ES384, no unsigned header, payload and envelope consumed to the last byte.
    2. Fields: digest SHA384, known PCR indexes of 48 bytes, PCR0 to 2 present, sizes within the NSM's limits.
    3. Freshness against `now`: `policy`.
    4. Chain: leaf <- cabundle[n] ... cabundle[1] <- one of `anchors`, every certificate valid at `now`;
       cabundle[0] is never used.
    5. Signature of the document under the leaf's key.
    6. Expectations, where the caller has them: `user_data` is `report_data`, `nonce`, `public_key`.
    7. Debug: a zero PCR0, 1 or 2 is refused, also where zero is what was expected.

    The caller still owes: an expectation for `user_data` (or a nonce), a decision on the PCRs, and, when
    `simulated` is set, saying so. Revocation is not looked at.

    Raises `InvalidEvidence`: those of `parse_document`, `nitro.stale`, `nitro.future`, `nitro.chain.*`,
    `cose.signature.*`, `nitro.user_data`, `nitro.nonce`, `nitro.public_key`, `nitro.debug`.
    """
    message = parse_sign1(cose)
    document = _document(message)
    policy.check(document, now)
    leaf = verify_leaf(
        document.certificate, document.cabundle[1:], now=now, anchors=anchors, cache=chain_cache
    )
    verify_es384(message, leaf.key)
    _expect("user_data", document.user_data, report_data)
    _expect("nonce", document.nonce, nonce)
    _expect("public_key", document.public_key, public_key)
    if zero := [index for index in IMAGE_PCRS if not any(document.pcrs[index])]:
        raise InvalidEvidence(
            "nitro.debug",
            f"PCR{zero[0]} is all zeros: the enclave runs in debug mode, where nothing is measured",
        )
    valid_until = min(document.timestamp + policy.max_age, leaf.not_after) + 1
    return VerifiedNitroDocument(document, leaf.anchor, valid_until)


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


def _document(message: CoseSign1) -> NitroDocument:
    fields = decode_strict(message.payload, indefinite_top_map=True)
    if not isinstance(fields, dict):
        raise InvalidEvidence("nitro.payload", "payload of the document is not a map")
    if unknown := fields.keys() - _FIELDS:
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
        pcrs=_pcrs(_field(fields, "pcrs", dict)),
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


def _pcrs(raw: dict[int | str, Value]) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for index, value in raw.items():
        if not isinstance(index, int) or not 0 <= index < PCR_COUNT:
            raise InvalidEvidence("nitro.pcr.index", f"pcr index is {index!r}, expected 0 to {PCR_COUNT - 1}")
        if not isinstance(value, bytes) or len(value) != PCR_LENGTH:
            raise InvalidEvidence("nitro.pcr.length", f"PCR{index} is not {PCR_LENGTH} bytes")
        pcrs[index] = value
    if missing := [index for index in IMAGE_PCRS if index not in pcrs]:
        raise InvalidEvidence(
            "nitro.pcr.missing", f"document has no PCR{missing[0]}, expected PCR0, PCR1 and PCR2"
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
