"""From a vTPM's attestation-key certificate up to a trust anchor (spec attestation section 5.3 step 5).

Evidence carries the attestation key's certificate alone; issuers come from elsewhere, unordered and
untrusted. A chain is a search with a small bound, and an issuer counts by its exact name and its signature.
"""

from collections.abc import Sequence
from functools import lru_cache, partial

import msgspec

from shared.attestation.anchor import TrustAnchor
from shared.attestation.crl import ca_issuers_urls as ca_issuers_urls  # noqa: PLC0414 - what a fetcher needs is in one place
from shared.attestation.crl import crl_urls as crl_urls  # noqa: PLC0414 - as above
from shared.attestation.issuer_key import PublicKey, load_key
from shared.attestation.recent import Recent
from shared.attestation.revocation import ChainLink
from shared.attestation.tpm_certificate import EK_USAGE, TpmCertificate, TpmConstraints
from shared.errors import InvalidEvidence

# Attestation key, intermediate, root: Google has one certificate between. The anchor is not counted.
MAX_DEPTH = 4
MAX_CANDIDATES = 64
# Signatures that one search may verify; a real chain takes two.
MAX_CHECKS = 16


class VerifiedAkChain(msgspec.Struct, frozen=True, kw_only=True):
    """An attestation key under an anchor. `certificates` are DER, the attestation key's first, no root.

    The whole chain is valid in `not_before..not_after`; `links` say who issued each, for revocation.
    """

    anchor: TrustAnchor
    key: PublicKey
    certificates: tuple[bytes, ...]
    links: tuple[ChainLink, ...]
    not_before: int
    not_after: int


class AkCache:
    """Remembers certificates: parsed ones with their keys, who signed them, and verified chains.

    A chain's key is the anchors and the certificate's exact bytes. It counts only inside its validity and
    where its issuers are given again, so that a verdict does not depend on what was verified before.
    """

    def __init__(self, size: int = 256) -> None:
        self.parsed = Recent[bytes, tuple[TpmCertificate, PublicKey]](size)
        self.signatures = Recent[tuple[bytes, bytes], bool](2 * size)
        self.chains = Recent[tuple[tuple[TrustAnchor, ...], bytes], VerifiedAkChain](size)


# Anchors are few and used by every verification.
_anchor_key = lru_cache(maxsize=16)(load_key)


def read_ak(der: bytes, cache: AkCache | None = None) -> tuple[TpmCertificate, PublicKey]:
    """Return a certificate and its key, nothing verified.

    Raises `InvalidEvidence`: `gcp.chain.malformed`, `gcp.chain.algorithm`, `gcp.chain.key`.
    """
    return _read_ak(der) if cache is None else cache.parsed.find(der, partial(_read_ak, der))


def _read_ak(der: bytes) -> tuple[TpmCertificate, PublicKey]:
    certificate = TpmCertificate.parse(der)
    return certificate, certificate.key()


def verify_ak_chain(
    ak_certificate: bytes,
    candidates: Sequence[bytes],
    *,
    now: int,
    anchors: tuple[TrustAnchor, ...],
    cache: AkCache | None = None,
) -> VerifiedAkChain:
    """Verify an attestation-key certificate up to one of `anchors` at `now` (unix seconds).

    `candidates` are issuers that the chain may be built with, DER in any order; unreadable ones and those of
    others are passed over. Every certificate is valid at `now`, every issuer a CA within its path length that
    may sign certificates, and the attestation key's certificate is no CA and may sign.

    Raises `InvalidEvidence("gcp.chain.*")`: `count` (too many candidates), `work` (too many that look like
    issuers), `depth`, `anchor` (no issuer was given and no anchor issued it), `signature`, `malformed`,
    `algorithm`, `key`, `not_yet_valid`, `expired`, `critical`, `not_ca`, `key_usage`, `path_length`, `eku`,
    `leaf_is_ca`.
    """
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidEvidence(
            "gcp.chain.count", f"{len(candidates)} issuer certificates were given, at most {MAX_CANDIDATES}"
        )
    if cache is None:
        return _verify(ak_certificate, candidates, now, anchors, None)
    known = cache.chains.get((anchors, ak_certificate))
    if (
        known is not None
        and known.not_before <= now <= known.not_after
        and set(known.certificates[1:]) <= set(candidates)
    ):
        return known
    chain = _verify(ak_certificate, candidates, now, anchors, cache)
    cache.chains.store((anchors, ak_certificate), chain)
    return chain


def is_issued_by(child: bytes, issuer: bytes) -> bool:
    """Tell whether a certificate names another one as its issuer and carries its signature (both DER).

    Validity and extensions are not looked at. Raises `InvalidEvidence`: `gcp.chain.malformed`,
    `gcp.chain.algorithm`, `gcp.chain.key`.
    """
    certificate, authority = TpmCertificate.parse(child), TpmCertificate.parse(issuer)
    return certificate.issuer == authority.subject and certificate.is_signed_by(authority.key())


def _verify(
    ak_certificate: bytes,
    candidates: Sequence[bytes],
    now: int,
    anchors: tuple[TrustAnchor, ...],
    cache: AkCache | None,
) -> VerifiedAkChain:
    leaf, key = read_ak(ak_certificate, cache)
    leaf.check_validity(now)
    anchor, path = _Search(candidates, anchors, now, cache or AkCache()).upwards(leaf)
    _check_leaf(leaf)
    certificates = [leaf, *(step.certificate for step in path)]
    issuers = [*path, None]
    links = tuple(
        ChainLink(
            certificate=certificate.parsed,
            issuer=certificate.issuer,
            issuer_spki=anchor.spki if issuer is None else issuer.certificate.spki,
            issuer_key=_anchor_key(anchor.spki) if issuer is None else issuer.key,
            authority=anchor if issuer is None else issuer.certificate,
            signs_lists=issuer is None or issuer.signs_lists,
        )
        for certificate, issuer in zip(certificates, issuers, strict=True)
    )
    return VerifiedAkChain(
        anchor=anchor,
        key=key,
        certificates=tuple(certificate.der for certificate in certificates),
        links=links,
        not_before=max(anchor.not_before, *(certificate.not_before for certificate in certificates)),
        not_after=min(anchor.not_after, *(certificate.not_after for certificate in certificates)),
    )


def _check_leaf(leaf: TpmCertificate) -> None:
    allowed = leaf.constraints()
    if allowed.ca:
        raise InvalidEvidence(
            "gcp.chain.leaf_is_ca", f"attestation key certificate {leaf.name!r} is a certificate authority"
        )
    if not allowed.digital_signature:
        raise InvalidEvidence(
            "gcp.chain.key_usage", f"attestation key certificate {leaf.name!r} may not make signatures"
        )
    _check_usage(leaf, allowed)


def _check_usage(certificate: TpmCertificate, allowed: TpmConstraints) -> None:
    if not allowed.ek_usage:
        raise InvalidEvidence(
            "gcp.chain.eku",
            f"certificate {certificate.name!r} has an extended key usage without "
            f"{EK_USAGE.dotted_string} (endorsement keys)",
        )


class _Step(msgspec.Struct, frozen=True):
    """One issuer of a path, checked."""

    certificate: TpmCertificate
    key: PublicKey
    signs_lists: bool


class _Search:
    """A search upwards. Of several dead ends the first that is more than a foreign signature is reported."""

    def __init__(
        self, candidates: Sequence[bytes], anchors: tuple[TrustAnchor, ...], now: int, cache: AkCache
    ) -> None:
        self._anchors = anchors
        self._now = now
        self._cache = cache
        self._checks = 0
        self._refusal: InvalidEvidence | None = None
        self._by_subject: dict[bytes, list[tuple[TpmCertificate, PublicKey]]] = {}
        for der in dict.fromkeys(candidates):
            try:
                candidate, key = read_ak(der, cache)
            except InvalidEvidence:
                continue
            self._by_subject.setdefault(candidate.subject, []).append((candidate, key))

    def upwards(self, leaf: TpmCertificate) -> tuple[TrustAnchor, tuple[_Step, ...]]:
        """Return an anchor and the issuers between, the leaf's own first."""
        found = self._above(leaf, ())
        if found is not None:
            return found
        raise self._refusal or InvalidEvidence(
            "gcp.chain.anchor",
            f"certificate {leaf.name!r} is issued under no trust anchor, "
            f"expected one of {', '.join(anchor.name for anchor in self._anchors)}",
        )

    def _above(
        self, child: TpmCertificate, path: tuple[_Step, ...]
    ) -> tuple[TrustAnchor, tuple[_Step, ...]] | None:
        for anchor in self._anchors:
            if anchor.subject == child.issuer and self._is_signed(
                child, anchor.spki, _anchor_key(anchor.spki)
            ):
                if anchor.not_before <= self._now <= anchor.not_after:
                    return anchor, path
                self._note(
                    "not_yet_valid" if self._now < anchor.not_before else "expired",
                    f"anchor {anchor.name} is valid from {anchor.not_before} to {anchor.not_after}",
                )
        for candidate, key in self._by_subject.get(child.issuer, ()):
            if candidate.der == child.der or any(candidate.der == step.certificate.der for step in path):
                continue
            if len(path) + 1 == MAX_DEPTH:
                self._note("depth", f"chain has more than {MAX_DEPTH} certificates below an anchor")
                break
            try:
                step = self._checked(candidate, key, child, len(path))
            except InvalidEvidence as error:
                self._keep(error)
                continue
            if step is not None and (found := self._above(candidate, (*path, step))) is not None:
                return found
        return None

    def _checked(
        self, candidate: TpmCertificate, key: PublicKey, child: TpmCertificate, below: int
    ) -> _Step | None:
        """Return the candidate as the child's issuer; `below` is how many authorities the path has so far."""
        candidate.check_validity(self._now)
        if not self._is_signed(child, candidate.spki, key):
            return None
        allowed = candidate.constraints()
        if not allowed.ca:
            raise InvalidEvidence(
                "gcp.chain.not_ca", f"issuer {candidate.name!r} is not a certificate authority"
            )
        if not allowed.key_cert_sign:
            raise InvalidEvidence(
                "gcp.chain.key_usage", f"issuer {candidate.name!r} may not sign certificates"
            )
        _check_usage(candidate, allowed)
        if allowed.path_length is not None and below > allowed.path_length:
            raise InvalidEvidence(
                "gcp.chain.path_length",
                f"issuer {candidate.name!r} has {below} authorities below it, "
                f"its path length is {allowed.path_length}",
            )
        return _Step(candidate, key, allowed.crl_sign)

    def _is_signed(self, child: TpmCertificate, spki: bytes, key: PublicKey) -> bool:
        self._checks += 1
        if self._checks > MAX_CHECKS:
            raise InvalidEvidence(
                "gcp.chain.work", f"more than {MAX_CHECKS} issuers would have to be tried to build the chain"
            )
        if self._cache.signatures.find((child.der, spki), partial(child.is_signed_by, key)):
            return True
        self._note("signature", f"certificate {child.name!r} is not signed by the issuer that it names")
        return False

    def _note(self, code: str, message: str) -> None:
        self._keep(InvalidEvidence(f"gcp.chain.{code}", message))

    def _keep(self, refusal: InvalidEvidence) -> None:
        if refusal.code == "gcp.chain.work":
            raise refusal
        if self._refusal is None or self._refusal.code == "gcp.chain.signature":
            self._refusal = refusal
