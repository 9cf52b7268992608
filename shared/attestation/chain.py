"""From a verifier's own anchor down to the leaf of a Nitro document (spec attestation section 4.4 step 4).

The walk is a line, not a search: each certificate must be issued by the one before it, so an extra, missing
or misplaced certificate is refused. Names and validity come before a signature, extensions after it.
"""

from collections import OrderedDict
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from shared.attestation.anchor import TrustAnchor
from shared.attestation.certificate import Certificate, anchor_key
from shared.errors import InvalidEvidence

if TYPE_CHECKING:
    from shared.attestation.ak_chain import AkCache
    from shared.attestation.revocation import ChainLink, RevocationCache

# AWS uses three intermediates (region, zone, instance); each one costs a P-384 verification.
MAX_INTERMEDIATES = 8

Key = tuple[tuple[TrustAnchor, ...], tuple[bytes, ...]]
ChainT = TypeVar("ChainT", "VerifiedPath", "VerifiedLeaf")


class VerifiedPath(msgspec.Struct, frozen=True):
    """An anchor and the intermediates below it, verified: the issuer that the next certificate must name.

    The path holds for times in `not_before..not_after`; `path_length` is how many more CAs it allows, None
    any.
    """

    anchor: TrustAnchor
    subject: bytes
    key: ec.EllipticCurvePublicKey
    path_length: int | None
    not_before: int
    not_after: int


class VerifiedLeaf(msgspec.Struct, frozen=True):
    """A leaf's P-384 key and the anchor above it. The whole chain is valid in `not_before..not_after`."""

    anchor: TrustAnchor
    key: ec.EllipticCurvePublicKey
    not_before: int
    not_after: int


class ChainCache:
    """Remembers verified chains: an enclave keeps its leaf for hours, an instance its CAs for a day.

    A key is everything that the verification depended on, the anchors and the exact certificates from the
    anchor down; what it finds counts only inside its validity. The upper parts of a path are entries too. The
    numbers are bounded, least recently used first out. Only the document's own signature is verified every
    time.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self.paths = _Recent[VerifiedPath](size)
        self.leaves = _Recent[VerifiedLeaf](size)
        self._revocation: RevocationCache | None = None
        self._attestation_keys: AkCache | None = None

    @property
    def revocation(self) -> "RevocationCache":
        """What is remembered of revocation lists, made with the first ones."""
        if self._revocation is None:
            from shared.attestation.revocation import RevocationCache  # noqa: PLC0415 - most enclaves have no list

            self._revocation = RevocationCache()
        return self._revocation

    @property
    def attestation_keys(self) -> "AkCache":
        """What is remembered of vTPM keys, made with the first GCP evidence."""
        if self._attestation_keys is None:
            from shared.attestation.ak_chain import AkCache  # noqa: PLC0415 - RSA is loaded with it

            self._attestation_keys = AkCache(self._size)
        return self._attestation_keys


class _Recent(Generic[ChainT]):
    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, ChainT] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key, now: int) -> ChainT | None:
        """Return what was stored under `key` if it is valid at `now`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.not_before <= now <= entry.not_after:
                return None
            self._entries.move_to_end(key)
            return entry

    def store(self, key: Key, entry: ChainT) -> None:
        """Remember a verified entry."""
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)


def verify_leaf(
    leaf: bytes,
    intermediates: tuple[bytes, ...],
    *,
    now: int,
    anchors: tuple[TrustAnchor, ...],
    cache: ChainCache | None = None,
) -> VerifiedLeaf:
    """Verify anchor -> intermediates -> leaf at `now` (unix seconds).

    `intermediates` are DER, topmost first, without a root. Raises `InvalidEvidence("nitro.chain.*")`:
    `length`, `anchor`, `malformed`, `algorithm`, `name`, `not_yet_valid`, `expired`, `signature`, `critical`,
    `not_ca`, `path_length`, `key_usage`, `eku`, `leaf_is_ca`, `key`.
    """
    if len(intermediates) > MAX_INTERMEDIATES:
        raise InvalidEvidence(
            "nitro.chain.length",
            f"chain has {len(intermediates)} intermediates, at most {MAX_INTERMEDIATES} are read",
        )
    if cache is None:
        return _verify_leaf(leaf, intermediates, now, anchors, None)
    key = (anchors, (*intermediates, leaf))
    verified = cache.leaves.find(key, now)
    if verified is None:
        verified = _verify_leaf(leaf, intermediates, now, anchors, cache.paths)
        cache.leaves.store(key, verified)
    return verified


def _verify_leaf(
    leaf: bytes,
    intermediates: tuple[bytes, ...],
    now: int,
    anchors: tuple[TrustAnchor, ...],
    paths: _Recent[VerifiedPath] | None,
) -> VerifiedLeaf:
    certificate = Certificate.parse(leaf)
    path = _verify_path(intermediates, certificate, now, anchors, paths)
    _check_issued(certificate, path, now)
    constraints = certificate.constraints()
    if constraints.ca:
        raise InvalidEvidence(
            "nitro.chain.leaf_is_ca", f"leaf {certificate.name!r} is a certificate authority"
        )
    if not constraints.digital_signature:
        raise InvalidEvidence(
            "nitro.chain.key_usage", f"leaf {certificate.name!r} may not make digital signatures"
        )
    _check_usage(certificate, client_auth=constraints.client_auth)
    return VerifiedLeaf(
        anchor=path.anchor,
        key=certificate.key(),
        not_before=max(path.not_before, certificate.not_before),
        not_after=min(path.not_after, certificate.not_after),
    )


def _verify_path(
    intermediates: tuple[bytes, ...],
    leaf: Certificate,
    now: int,
    anchors: tuple[TrustAnchor, ...],
    paths: _Recent[VerifiedPath] | None,
) -> VerifiedPath:
    """Verify what lies below the longest known part: instances of one zone share all but the last."""
    path, known = _longest_known(intermediates, now, anchors, paths)
    unknown = [Certificate.parse(der) for der in intermediates[known:]]
    if path is None:
        path = _anchored(unknown[0] if unknown else leaf, now, anchors)
    longer = []
    for certificate in unknown:
        path = _extended(path, certificate, now)
        longer.append(path)
    if paths is not None:  # and only now: of a chain that is refused nothing is kept
        for end, part in enumerate(longer, known + 1):
            paths.store((anchors, intermediates[:end]), part)
    return path


def _longest_known(
    intermediates: tuple[bytes, ...],
    now: int,
    anchors: tuple[TrustAnchor, ...],
    paths: _Recent[VerifiedPath] | None,
) -> tuple[VerifiedPath | None, int]:
    """Return the remembered path to as many of the intermediates as possible, and how many these are."""
    if paths is not None:
        for end in range(len(intermediates), 0, -1):
            path = paths.find((anchors, intermediates[:end]), now)
            if path is not None:
                return path, end
    return None, 0


def _anchored(first: Certificate, now: int, anchors: tuple[TrustAnchor, ...]) -> VerifiedPath:
    """Pick the anchor that issued the first certificate; several anchors may carry one name."""
    named = [anchor for anchor in anchors if anchor.subject == first.issuer]
    if not named:
        raise InvalidEvidence(
            "nitro.chain.anchor",
            f"certificate {first.name!r} is issued under no trust anchor, "
            f"expected one of {', '.join(anchor.name for anchor in anchors)}",
        )
    # The one that verifies; when none does the last is reported, by its signature, in the next step.
    anchor = next((a for a in named[:-1] if first.is_signed_by(anchor_key(a.spki))), named[-1])
    if not anchor.not_before <= now <= anchor.not_after:
        raise InvalidEvidence(
            "nitro.chain.not_yet_valid" if now < anchor.not_before else "nitro.chain.expired",
            f"anchor {anchor.name} is valid from {anchor.not_before} to {anchor.not_after}, not at {now}",
        )
    return VerifiedPath(
        anchor=anchor,
        subject=anchor.subject,
        key=anchor_key(anchor.spki),
        path_length=None,
        not_before=anchor.not_before,
        not_after=anchor.not_after,
    )


def _extended(path: VerifiedPath, certificate: Certificate, now: int) -> VerifiedPath:
    _check_issued(certificate, path, now)
    constraints = certificate.constraints()
    if not constraints.ca:
        raise InvalidEvidence(
            "nitro.chain.not_ca", f"intermediate {certificate.name!r} is not a certificate authority"
        )
    if not constraints.key_cert_sign:
        raise InvalidEvidence(
            "nitro.chain.key_usage", f"intermediate {certificate.name!r} may not sign certificates"
        )
    _check_usage(certificate, client_auth=constraints.client_auth)
    if path.path_length == 0:
        raise InvalidEvidence(
            "nitro.chain.path_length", f"intermediate {certificate.name!r} is beyond its issuer's path length"
        )
    limits = [constraints.path_length, None if path.path_length is None else path.path_length - 1]
    return VerifiedPath(
        anchor=path.anchor,
        subject=certificate.subject,
        key=certificate.key(),
        path_length=min((limit for limit in limits if limit is not None), default=None),
        not_before=max(path.not_before, certificate.not_before),
        not_after=min(path.not_after, certificate.not_after),
    )


def _check_issued(certificate: Certificate, path: VerifiedPath, now: int) -> None:
    if certificate.issuer != path.subject:
        raise InvalidEvidence(
            "nitro.chain.name",
            f"certificate {certificate.name!r} does not name the certificate before it as issuer",
        )
    certificate.check_validity(now)
    if not certificate.is_signed_by(path.key):
        raise InvalidEvidence(
            "nitro.chain.signature",
            f"certificate {certificate.name!r} is not signed by the issuer that it names",
        )


def _check_usage(certificate: Certificate, *, client_auth: bool) -> None:
    if not client_auth:
        raise InvalidEvidence(
            "nitro.chain.eku",
            f"certificate {certificate.name!r} has an extended key usage without client authentication",
        )


def issued_links(
    leaf: bytes, intermediates: tuple[bytes, ...], anchor: TrustAnchor
) -> "tuple[ChainLink, ...]":
    """Return who issued each certificate of a verified chain, leaf first; `anchor` is the one above it."""
    from shared.attestation.revocation import ChainLink  # noqa: PLC0415 - see above

    certificates = [Certificate.parse(der) for der in (leaf, *reversed(intermediates))]
    links = [
        ChainLink(
            certificate=certificate.x509,
            issuer=certificate.issuer,
            issuer_spki=issuer.spki,
            issuer_key=issuer.key(),
            authority=issuer,
            signs_lists=issuer.x509.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign,
        )
        for certificate, issuer in pairwise(certificates)
    ]
    links.append(
        ChainLink(
            certificate=certificates[-1].x509,
            issuer=anchor.subject,
            issuer_spki=anchor.spki,
            issuer_key=anchor_key(anchor.spki),
            authority=anchor,
            signs_lists=True,
        )
    )
    return tuple(links)
