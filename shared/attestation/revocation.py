"""Whether a verified chain was revoked, as far as the given lists tell (RFC 5280 section 6.3).

A list counts for a certificate when the certificate's own issuer signed it, it is current, and the
certificate is in its scope. Where it came from does not matter.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
from cryptography import x509

from shared.attestation.policy import Revocation
from shared.attestation.recent import Recent
from shared.attestation.verdict import Lane, not_applicable, skipped, verified
from shared.errors import InvalidEvidence

if TYPE_CHECKING:
    from shared.attestation.crl import RevocationList
    from shared.attestation.issuer_key import PublicKey

# One list per certificate of a few chains, and some to spare.
MAX_LISTS = 64


class Named(Protocol):
    """What has a name for messages: a certificate or an anchor."""

    @property
    def name(self) -> str:
        """The name."""


class ChainLink(msgspec.Struct, frozen=True, kw_only=True):
    """One verified certificate and who issued it; `issuer` and `issuer_spki` are DER.

    `signs_lists` tells whether the issuer may sign revocation lists; an anchor may.
    """

    certificate: x509.Certificate
    issuer: bytes
    issuer_spki: bytes
    issuer_key: "PublicKey"
    authority: "Named"
    signs_lists: bool

    @property
    def issuer_name(self) -> str:
        """Who issued it, for messages; reading a certificate's name costs more than judging most lists."""
        return self.authority.name


class RevocationResult(msgspec.Struct, frozen=True):
    """What is known of a chain's revocation. `valid_until` is the second from which it is not, None never."""

    lane: Lane
    valid_until: int | None = None


class RevocationCache:
    """Remembers parsed lists, and whose signatures they carry, by their exact bytes.

    Times, serial numbers and scopes are looked at every time.
    """

    def __init__(self, size: int = MAX_LISTS) -> None:
        self.lists: Recent[bytes, RevocationList] = Recent(size)
        self.signatures: Recent[tuple[bytes, bytes], bool] = Recent(4 * size)
        self.links: Recent[tuple[bytes, ...], tuple[ChainLink, ...]] = Recent(size)


def unconsulted(lists: Sequence[bytes], mode: Revocation) -> RevocationResult | None:
    """Return the result where no list need be looked at, None where `check_revocation` must."""
    if mode is Revocation.OFF:
        return RevocationResult(skipped("turned off by the policy"))
    if not lists and mode is Revocation.IF_AVAILABLE:
        return RevocationResult(skipped("no revocation list was given"))
    return None


def check_revocation(
    chain: Sequence[ChainLink],
    lists: Sequence[bytes],
    *,
    now: int,
    mode: Revocation,
    cache: RevocationCache | None = None,
) -> RevocationResult:
    """Check each certificate of a verified chain against the lists of its issuer, at `now` (unix seconds).

    1. A certificate that an authentic list names is refused, in every mode but `off`, also by an old list.
    2. `required`: each certificate that names a distribution point must be covered by a current list.
    3. `if_available`: one that is not covered is told in the lane.

    Lists of other issuers are not parsed. Raises `InvalidEvidence`: `crl.count`, those of
    `RevocationList.parse` for lists that name an issuer of the chain, `crl.revoked`, and in `required`
    `crl.missing`, or where there is a list that does not count `crl.signature`, `crl.scope`, `crl.expired`,
    `crl.not_yet_valid`.
    """
    if (result := unconsulted(lists, mode)) is not None:
        return result
    if len(lists) > MAX_LISTS:
        raise InvalidEvidence("crl.count", f"{len(lists)} revocation lists were given, at most {MAX_LISTS}")
    if cache is None:
        cache = RevocationCache()
    by_issuer = _lists_of({link.issuer for link in chain}, lists, cache)
    from shared.attestation.crl import names_list  # noqa: PLC0415 - loaded with the first list

    until: list[int] = []
    uncovered: list[InvalidEvidence] = []
    for link in chain:
        found = _find_current(link, by_issuer.get(link.issuer, []), now, cache)
        if isinstance(found, int):
            until.append(found)
        elif names_list(link.certificate):
            uncovered.append(found)
    if uncovered:
        if mode is Revocation.REQUIRED:
            raise uncovered[0]
        return RevocationResult(skipped(uncovered[0].message))
    if not until:
        return RevocationResult(not_applicable("no certificate of the chain names a revocation list"))
    last = min(until)
    rest = "" if len(until) == len(chain) else ", the others name none"
    reason = f"{len(until)} of {len(chain)} certificates are covered by current lists until {last}{rest}"
    return RevocationResult(verified(reason), last + 1)


def _lists_of(
    issuers: set[bytes], lists: Sequence[bytes], cache: RevocationCache
) -> "dict[bytes, list[tuple[bytes, RevocationList]]]":
    from shared.attestation.crl import RevocationList, issuer_of  # noqa: PLC0415 - loaded with the first list

    found: dict[bytes, list[tuple[bytes, RevocationList]]] = {}
    for der in lists:
        if (issuer := issuer_of(der)) in issuers:
            parsed = cache.lists.find(der, partial(RevocationList.parse, der))
            found.setdefault(issuer, []).append((der, parsed))
    return found


def _find_current(
    link: ChainLink, candidates: "list[tuple[bytes, RevocationList]]", now: int, cache: RevocationCache
) -> int | InvalidEvidence:
    """Return until when the certificate is known not to be revoked, or why that is not known."""
    why = ("missing", "no list of it was given")
    until: int | None = None
    for der, candidate in candidates:
        signed = partial(candidate.is_signed_by, link.issuer_key)
        if not link.signs_lists or not cache.signatures.find((der, link.issuer_spki), signed):
            why = ("signature", "a list in its name is not signed by it")
            continue
        if candidate.holds(link.certificate.serial_number):
            raise InvalidEvidence(
                "crl.revoked",
                f"certificate {link.certificate.serial_number:x} was revoked by {link.issuer_name}",
            )
        if not candidate.covers(link.certificate):
            why = ("scope", "its list is of other certificates")
        elif now > candidate.next_update:
            why = ("expired", f"its list ended at {candidate.next_update}, the time is {now}")
        elif now < candidate.this_update:
            why = ("not_yet_valid", f"its list starts at {candidate.this_update}, the time is {now}")
        else:
            until = max(until or 0, candidate.next_update)
    if until is not None:
        return until
    return InvalidEvidence(f"crl.{why[0]}", f"no current revocation list of {link.issuer_name}: {why[1]}")
