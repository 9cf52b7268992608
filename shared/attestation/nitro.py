"""Nitro enclave documents: what the NSM signed, and whether to believe it (spec attestation 4.3-4.5)."""

from shared.attestation.chain import ChainCache
from shared.attestation.cose import parse_sign1
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.nitro_document import (
    DocumentKind,
    DocumentVerifier,
    Expectations,
    NitroDocument,
    VerifiedDocument,
    read_document,
)
from shared.attestation.policy import NitroPolicy
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence

PCR_COUNT = 32  # registers of the NSM, 0 to 31
IMAGE_PCRS = (0, 1, 2)

_ENCLAVE = DocumentKind("pcrs", PCR_COUNT, IMAGE_PCRS)
_DEFAULT_POLICY = NitroPolicy()


class VerifiedNitroDocument(VerifiedDocument, frozen=True):
    """An enclave's document that was verified."""


def parse_document(cose: bytes) -> NitroDocument:
    """Parse a document without verifying it.

    Raises `InvalidEvidence`: `cose.*` and `cbor.*` for the encoding; `nitro.payload`, `nitro.field` (a
    missing or unknown field, or one of another type), `nitro.digest`, `nitro.pcr.index`, `nitro.pcr.length`,
    `nitro.pcr.missing`, `nitro.certificate.size`, `nitro.chain.length`, `nitro.user_data.size`,
    `nitro.nonce.size`, `nitro.public_key.size`.
    """
    return read_document(parse_sign1(cose), _ENCLAVE)


def verify_document(  # noqa: PLR0913 - each is one thing that a verdict depends on
    cose: bytes,
    *,
    now: int,
    anchors: TrustAnchors,
    policy: NitroPolicy = _DEFAULT_POLICY,
    endorsements: Endorsements = NO_ENDORSEMENTS,
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
    6. Revocation of that chain by the lists in `endorsements`: `policy`.
    7. Expectations, where the caller has them: `user_data` is `report_data`, `nonce`, `public_key`.
    8. Debug: a zero PCR0, 1 or 2 is refused, also where zero is what was expected.

    The caller still owes: an expectation for `user_data` (or a nonce), a decision on the PCRs, and, when
    `simulated` is set, saying so.

    Raises `InvalidEvidence`: those of `parse_document`, `nitro.stale`, `nitro.future`, `nitro.chain.*`,
    `cose.signature.*`, `crl.*`, `nitro.user_data`, `nitro.nonce`, `nitro.public_key`, `nitro.debug`.
    """
    verifier = DocumentVerifier(
        now=now, anchors=anchors, policy=policy, endorsements=endorsements, chain_cache=chain_cache
    )
    expected = Expectations(report_data=report_data, nonce=nonce, public_key=public_key)
    verified = verifier.verify(cose, _ENCLAVE, expected)
    document = verified.document
    if zero := [index for index in IMAGE_PCRS if not any(document.pcrs[index])]:
        raise InvalidEvidence(
            "nitro.debug",
            f"PCR{zero[0]} is all zeros: the enclave runs in debug mode, where nothing is measured",
        )
    return VerifiedNitroDocument(document, verified.trust_anchor, verified.revocation, verified.valid_until)
