"""One certificate revocation list, and the addresses that certificates name (RFC 5280 section 5 and 4.2).

`revocation` judges a chain with them.
"""

from collections.abc import Sequence
from typing import NoReturn, Self, TypeVar

import msgspec
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from shared.attestation import der as rules
from shared.attestation.issuer_key import ALGORITHMS, PublicKey, is_signed
from shared.errors import InvalidEvidence

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)

# Lists of attestation authorities have a handful of entries and under 1 KiB; these numbers bound parsing.
MAX_LIST = 1 << 20
MAX_ENTRIES = 20_000
# Real certificates name one or two lists and one issuer.
MAX_URLS = 8
MAX_URL = 512

_SCHEMES = ("http://", "https://")
_VERSION_2 = bytes.fromhex("020101")
_UNDERSTOOD = frozenset({ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER})
# What `cryptography` raises on der that its outer parser let through.
_UNREADABLE = (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class RevocationList(msgspec.Struct, frozen=True, kw_only=True):
    """One parsed list, not verified. `issuer` is a DER name, times are unix seconds.

    `locations` is None for a list of all of its issuer's certificates, else the addresses of this partition;
    `of_users` and `of_authorities` tell which certificates it may hold.
    """

    tbs: bytes
    algorithm: bytes
    signature: bytes
    issuer: bytes
    this_update: int
    next_update: int
    locations: frozenset[str] | None
    of_users: bool
    of_authorities: bool
    parsed: x509.CertificateRevocationList

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Parse a complete list of version 2.

        Raises `InvalidEvidence`: `crl.size`, `crl.malformed`, `crl.algorithm`, `crl.entries` (too many),
        `crl.next_update` (none: it would never end), `crl.scope` (a delta, an indirect list, or one of some
        reasons or attribute certificates), `crl.critical` (a critical extension that is not understood).
        """
        if len(der) > MAX_LIST:
            raise InvalidEvidence("crl.size", f"list has {len(der)} bytes, at most {MAX_LIST} are read")
        try:
            tbs, algorithm, signature = rules.split_signed(der)
            issuer = _issuer(tbs, algorithm)
            parsed = x509.load_der_x509_crl(der)
            entries = len(parsed)
            this_update, next_update = parsed.last_update_utc, parsed.next_update_utc
        except _UNREADABLE as error:
            raise InvalidEvidence(
                "crl.malformed", f"revocation list cannot be read: {_first_line(error)}"
            ) from error
        if algorithm not in ALGORITHMS:
            raise InvalidEvidence(
                "crl.algorithm", f"revocation list is signed with the algorithm {algorithm.hex()}"
            )
        if entries > MAX_ENTRIES:
            raise InvalidEvidence(
                "crl.entries", f"list has {entries} entries, at most {MAX_ENTRIES} are read"
            )
        if next_update is None:
            raise InvalidEvidence("crl.next_update", "revocation list does not say when the next one comes")
        scope = _scope(parsed)
        return cls(
            tbs=tbs,
            algorithm=algorithm,
            signature=signature,
            issuer=issuer,
            this_update=int(this_update.timestamp()),
            next_update=int(next_update.timestamp()),
            locations=frozenset(_uris(scope.full_name)) if scope is not None and scope.full_name else None,
            of_users=scope is None or not scope.only_contains_ca_certs,
            of_authorities=scope is None or not scope.only_contains_user_certs,
            parsed=parsed,
        )

    def is_signed_by(self, key: PublicKey) -> bool:
        """Tell whether `key` made this list's signature."""
        return is_signed(self.algorithm, key, self.signature, self.tbs)

    def is_current(self, now: int) -> bool:
        """Tell whether `now` lies between this list and the announced next one."""
        return self.this_update <= now <= self.next_update

    def holds(self, serial: int) -> bool:
        """Tell whether a certificate of this serial number is revoked or on hold."""
        return self.parsed.get_revoked_certificate_by_serial_number(serial) is not None

    def covers(self, certificate: x509.Certificate) -> bool:
        """Tell whether this list would name the certificate if it were revoked (RFC 5280 section 6.3.3 b)."""
        if not (self.of_authorities if _is_ca(certificate) else self.of_users):
            return False
        return self.locations is None or not self.locations.isdisjoint(_all_crl_uris(certificate))


def names_list(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate names a revocation list. Raises `InvalidEvidence("crl.certificate")`."""
    return _extension(certificate, x509.CRLDistributionPoints) is not None


def crl_urls(der: bytes) -> tuple[str, ...]:
    """Return the http and https addresses of revocation lists that a certificate names, at most `MAX_URLS`.

    Addresses longer than `MAX_URL` or not of plain ASCII are left out. Raises
    `InvalidEvidence("crl.certificate")` when the certificate cannot be read.
    """
    return _fetchable(_all_crl_uris(_load(der)))


def ca_issuers_urls(der: bytes) -> tuple[str, ...]:
    """Return the http and https addresses of issuer certificates that a certificate names, as `crl_urls`."""
    access = _extension(_load(der), x509.AuthorityInformationAccess)
    if access is None:
        return ()
    wanted = [
        item.access_location
        for item in access
        if item.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    ]
    return _fetchable(_uris(wanted))


def _fetchable(uris: Sequence[str]) -> tuple[str, ...]:
    usable = (
        uri
        for uri in dict.fromkeys(uris)
        if len(uri) <= MAX_URL and uri.lower().startswith(_SCHEMES) and _is_plain(uri)
    )
    return tuple(usable)[:MAX_URLS]


def _is_plain(uri: str) -> bool:
    return uri.isascii() and all("!" <= character <= "~" for character in uri)


def _all_crl_uris(certificate: x509.Certificate) -> tuple[str, ...]:
    points = _extension(certificate, x509.CRLDistributionPoints)
    return () if points is None else tuple(uri for point in points for uri in _uris(point.full_name))


def _uris(names: Sequence[x509.GeneralName] | None) -> tuple[str, ...]:
    return tuple(name.value for name in names or () if isinstance(name, x509.UniformResourceIdentifier))


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except _UNREADABLE as error:
        raise InvalidEvidence(
            "crl.certificate", f"extensions of a certificate cannot be read: {_first_line(error)}"
        ) from error


def _is_ca(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _load(der: bytes) -> x509.Certificate:
    try:
        rules.after_serial(rules.split_signed(der)[0])
        return x509.load_der_x509_certificate(der)
    except _UNREADABLE as error:
        raise InvalidEvidence(
            "crl.certificate", f"certificate cannot be read: {_first_line(error)}"
        ) from error


def issuer_of(der: bytes) -> bytes:
    """Return the issuer's name (DER) of a list that is not parsed otherwise.

    Raises `InvalidEvidence("crl.malformed")`.
    """
    try:
        tbs, algorithm, _ = rules.split_signed(der)
        return _issuer(tbs, algorithm)
    except ValueError as error:
        raise InvalidEvidence("crl.malformed", f"revocation list {error}") from error


def _issuer(tbs: bytes, algorithm: bytes) -> bytes:
    at, end = rules.element(tbs, 0, len(tbs), rules.SEQUENCE)
    if not tbs.startswith(_VERSION_2 + algorithm, at):
        raise ValueError("is not of version 2, or names another algorithm inside than outside")
    return rules.whole(tbs, at + len(_VERSION_2) + len(algorithm), end, rules.SEQUENCE)


def _scope(parsed: x509.CertificateRevocationList) -> x509.IssuingDistributionPoint | None:
    """Return the list's partition, once all that is critical in the list is understood."""
    try:
        scope = _understood(parsed.extensions)
        for entry in parsed:
            for extension in entry.extensions:
                if extension.critical:
                    _critical(f"entry has the critical extension {extension.oid.dotted_string}")
    except _UNREADABLE as error:
        raise InvalidEvidence(
            "crl.malformed", f"revocation list has unreadable extensions: {_first_line(error)}"
        ) from error
    if scope is None:
        return None
    if scope.indirect_crl:
        _out_of_scope("an indirect list")
    if scope.only_some_reasons or scope.only_contains_attribute_certs:
        _out_of_scope("a list of some reasons or of attribute certificates")
    # Without an address it cannot be told which partition this is, unless only the kind is limited.
    if scope.relative_name is not None or (scope.full_name and not _uris(scope.full_name)):
        _out_of_scope("a partition without an address")
    return scope


def _understood(extensions: x509.Extensions) -> x509.IssuingDistributionPoint | None:
    scope: x509.IssuingDistributionPoint | None = None
    for extension in extensions:
        if type(extension.value) is x509.IssuingDistributionPoint:
            scope = extension.value
        elif extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            _out_of_scope("a delta list")
        elif extension.critical and extension.oid not in _UNDERSTOOD:
            _critical(f"list has the critical extension {extension.oid.dotted_string}")
    return scope


def _out_of_scope(what: str) -> NoReturn:
    raise InvalidEvidence("crl.scope", f"revocation list is {what}, expected a complete one")


def _critical(what: str) -> NoReturn:
    raise InvalidEvidence("crl.critical", f"revocation {what}, which is not understood")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
