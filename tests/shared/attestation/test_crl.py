"""Revocation lists one by one, and the addresses in certificates."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from enclave.simulator import revocation_lists
from enclave.simulator.revocation_lists import sign_list
from shared.attestation import crl
from shared.attestation.crl import (
    MAX_LIST,
    MAX_URL,
    MAX_URLS,
    RevocationList,
    ca_issuers_urls,
    crl_urls,
    issuer_of,
    names_list,
)
from tests.shared.attestation.forgery import NOW, refuses

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lister")])
WEEK = int(revocation_lists.LIFETIME.total_seconds())
HTTP = "http://lists.invalid/a.crl"

Extensions = tuple[tuple[x509.ExtensionType, bool], ...]


def partition(
    *names: str | x509.GeneralName,
    users: bool = False,
    authorities: bool = False,
    indirect: bool = False,
    attributes: bool = False,
    reasons: frozenset[x509.ReasonFlags] | None = None,
) -> x509.IssuingDistributionPoint:
    full = [n if isinstance(n, x509.GeneralName) else x509.UniformResourceIdentifier(n) for n in names]
    return x509.IssuingDistributionPoint(
        full or None, None, users, authorities, reasons, indirect, attributes
    )


def listed(*extensions: tuple[x509.ExtensionType, bool], revoked: tuple[int, ...] = ()) -> bytes:
    return sign_list(NAME, KEY, now=NOW, revoked=revoked, extensions=extensions)


def certificate(
    *points: str | x509.DistributionPoint, ca: bool | None = False, issuers: tuple[str, ...] = ()
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2040, 1, 1, tzinfo=UTC))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if points:
        made = [
            x509.DistributionPoint([x509.UniformResourceIdentifier(p)], None, None, None)
            if isinstance(p, str)
            else p
            for p in points
        ]
        builder = builder.add_extension(x509.CRLDistributionPoints(made), critical=False)
    if issuers:
        access = [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
            )
            for url in issuers
        ]
        ocsp = x509.AccessDescription(
            AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://ocsp.invalid")
        )
        builder = builder.add_extension(x509.AuthorityInformationAccess([ocsp, *access]), critical=False)
    return builder.sign(KEY, SHA256())


def der(made: x509.Certificate) -> bytes:
    return made.public_bytes(Encoding.DER)


def test_a_list_tells_its_issuer_its_times_and_what_it_names() -> None:
    read = RevocationList.parse(listed(revoked=(5, 1 << 150)))
    assert read.issuer == NAME.public_bytes()
    assert (read.this_update, read.next_update) == (NOW, NOW + WEEK)
    assert [read.holds(serial) for serial in (5, 6, 1 << 150)] == [True, False, True]
    assert read.is_signed_by(KEY.public_key())
    assert issuer_of(listed()) == read.issuer


def test_a_list_is_current_from_its_first_to_its_last_second() -> None:
    read = RevocationList.parse(listed())
    times = (NOW - 1, NOW, NOW + WEEK, NOW + WEEK + 1)
    assert [read.is_current(now) for now in times] == [False, True, True, False]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_lists_of_both_curves_are_verified(curve: ec.EllipticCurve) -> None:
    key, other = ec.generate_private_key(curve), ec.generate_private_key(curve)
    read = RevocationList.parse(sign_list(NAME, key, now=NOW))
    assert read.is_signed_by(key.public_key())
    assert not read.is_signed_by(other.public_key())


def test_lists_of_rsa_are_verified() -> None:
    key = rsa.generate_private_key(public_exponent=0x10001, key_size=2048)
    read = RevocationList.parse(sign_list(NAME, key, now=NOW))
    assert read.is_signed_by(key.public_key())
    assert not read.is_signed_by(KEY.public_key())
    assert not RevocationList.parse(listed()).is_signed_by(key.public_key())


def test_every_flip_of_a_list_is_refused_or_breaks_its_signature() -> None:
    whole = listed(revoked=(5,))
    for at in range(len(whole)):
        altered = bytearray(whole)
        altered[at] ^= 1 << at % 8
        try:
            read = RevocationList.parse(bytes(altered))
        except crl.InvalidEvidence:
            continue
        assert not read.is_signed_by(KEY.public_key()), at


def test_n01_refuses_bytes_after_a_list() -> None:
    with refuses("crl.malformed"):
        RevocationList.parse(listed() + b"\0")


@pytest.mark.parametrize("garbage", [b"", b"\x30\x00", b"-----BEGIN X509 CRL-----", b"\x30\x82\xff\xff"])
def test_refuses_what_is_no_list(garbage: bytes) -> None:
    for read in (RevocationList.parse, issuer_of):
        with refuses("crl.malformed"):
            read(garbage)


def test_refuses_a_certificate_in_place_of_a_list() -> None:
    with refuses("crl.malformed"):
        RevocationList.parse(der(certificate()))


def test_n03_refuses_a_list_that_is_too_long_before_reading_it() -> None:
    with refuses("crl.size"):
        RevocationList.parse(bytes(MAX_LIST + 1))


def test_n03_refuses_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl, "MAX_ENTRIES", 2)
    assert RevocationList.parse(listed(revoked=(1, 2)))
    with refuses("crl.entries"):
        RevocationList.parse(listed(revoked=(1, 2, 3)))


def test_refuses_another_signature_algorithm() -> None:
    start = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(start)
        .next_update(start + timedelta(days=1))
    )
    signed = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    # a list with no extensions has the same version
    with refuses("crl.algorithm"):
        RevocationList.parse(signed.public_bytes(Encoding.DER))


def test_a_list_over_sha512_is_read() -> None:
    start = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(start)
        .next_update(start + timedelta(days=1))
    )
    signed = builder.sign(KEY, SHA512()).public_bytes(Encoding.DER)
    assert RevocationList.parse(signed).is_signed_by(KEY.public_key())


def test_refuses_a_list_that_never_ends() -> None:
    # the second time of the two is cut out, and the lengths around it are mended
    whole = listed()
    times = b"\x17\x0d" + b"260101000000Z" + b"\x17\x0d"
    at = whole.index(times) + 15
    cut = bytearray(whole[:at] + whole[at + 15 :])
    assert (cut[:2], cut[3]) == (b"\x30\x81", 0x30)
    cut[2] -= 15
    cut[4] -= 15
    with refuses("crl.next_update"):
        RevocationList.parse(bytes(cut))


def test_refuses_an_unknown_critical_extension_of_a_list() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert RevocationList.parse(listed((unknown, False)))
    with refuses("crl.critical"):
        RevocationList.parse(listed((unknown, True)))


def test_refuses_an_unknown_critical_extension_of_an_entry() -> None:
    start = datetime.fromtimestamp(NOW, UTC)
    for critical in (False, True):
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(5)
            .revocation_date(start)
            .add_extension(x509.CertificateIssuer([x509.DirectoryName(NAME)]), critical=critical)
            .build()
        )
        signed = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(NAME)
            .last_update(start)
            .next_update(start + timedelta(days=1))
            .add_revoked_certificate(entry)
            .sign(KEY, SHA256())
            .public_bytes(Encoding.DER)
        )
        if critical:
            with refuses("crl.critical"):
                RevocationList.parse(signed)
        else:
            assert RevocationList.parse(signed).holds(5)


def test_refuses_extensions_that_cannot_be_read() -> None:
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.35"), b"\x05\x00")
    with refuses("crl.malformed"):
        RevocationList.parse(listed((broken, False)))


@pytest.mark.parametrize(
    "scope",
    [
        partition(HTTP, indirect=True),
        partition(HTTP, attributes=True),
        partition(HTTP, reasons=frozenset({x509.ReasonFlags.key_compromise})),
        partition(x509.DirectoryName(NAME)),
        x509.IssuingDistributionPoint(
            None,
            x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "part")]),
            False,
            False,
            None,
            False,
            False,
        ),
        x509.DeltaCRLIndicator(1),
    ],
)
@pytest.mark.parametrize("critical", [True, False])
def test_refuses_a_list_that_is_not_complete(scope: x509.ExtensionType, *, critical: bool) -> None:
    with refuses("crl.scope"):
        RevocationList.parse(listed((scope, critical)))


def test_a_partition_covers_certificates_that_name_its_address() -> None:
    part = RevocationList.parse(listed((partition(HTTP), True)))
    assert part.covers(certificate(HTTP))
    assert part.covers(certificate("http://other.invalid", HTTP))
    assert not part.covers(certificate("http://other.invalid"))
    assert not part.covers(certificate())


def test_a_partition_by_kind_covers_that_kind() -> None:
    whole = RevocationList.parse(listed())
    users = RevocationList.parse(listed((partition(users=True), True)))
    authorities = RevocationList.parse(listed((partition(authorities=True), True)))
    for kind, covers in (
        (True, (True, False, True)),
        (False, (True, True, False)),
        (None, (True, True, False)),
    ):
        made = certificate(ca=kind)
        assert tuple(part.covers(made) for part in (whole, users, authorities)) == covers


# --- addresses ---


def test_addresses_of_issuers_and_lists_are_read_in_order() -> None:
    made = der(certificate(HTTP, "https://second.invalid", HTTP, issuers=("http://ca.invalid/ca.der",)))
    assert crl_urls(made) == (HTTP, "https://second.invalid")
    assert ca_issuers_urls(made) == ("http://ca.invalid/ca.der",)


def test_a_certificate_without_addresses_has_none() -> None:
    made = certificate()
    assert (crl_urls(der(made)), ca_issuers_urls(der(made)), names_list(made)) == ((), (), False)


def test_n11_only_plain_http_addresses_are_given_to_a_fetcher() -> None:
    kept = "HTTP://kept.invalid"
    dropped = ("file:///etc/passwd", "ldap://x.invalid", "http://a b", "http://x/\r\nHost: y", "ftp://x", "")
    made = certificate(*dropped, kept)
    assert crl_urls(der(made)) == (kept,)
    assert names_list(made)


def test_n11_number_and_length_of_addresses_are_bounded() -> None:
    many = [f"http://{index}.invalid" for index in range(100)]
    assert crl_urls(der(certificate(*many))) == tuple(many[:MAX_URLS])
    longest = "http://" + "a" * (MAX_URL - 7)
    assert crl_urls(der(certificate(longest + "a", longest))) == (longest,)


def test_a_distribution_point_without_an_address_still_names_a_list() -> None:
    point = x509.DistributionPoint(None, None, None, [x509.DirectoryName(NAME)])
    made = certificate(point)
    assert crl_urls(der(made)) == ()
    assert names_list(made)


def test_refuses_a_certificate_that_cannot_be_read() -> None:
    for read in (crl_urls, ca_issuers_urls):
        with refuses("crl.certificate"):
            read(b"nothing")


def test_refuses_extensions_of_a_certificate_that_cannot_be_read() -> None:
    whole = der(certificate(HTTP))
    # the distribution points become an integer
    oid = bytes.fromhex("0603551d1f04")
    at = whole.index(oid) + len(oid) + 1
    altered = bytearray(whole)
    altered[at] = 0x02
    with refuses("crl.certificate"):
        crl_urls(bytes(altered))


def test_real_certificates_name_their_lists(shared_data: Callable[[str], Path]) -> None:
    from shared.attestation.envelope import NitroEnclaveQuote, decode_envelope  # noqa: PLC0415 - one test's
    from shared.attestation.nitro import parse_document  # noqa: PLC0415 - as above

    path = shared_data("attestation/upstream/nitro/nitro_attestation.bin")
    quote = decode_envelope(path.read_bytes()).quote
    assert isinstance(quote, NitroEnclaveQuote)
    document = parse_document(quote.nsm_quote)
    named = [len(crl_urls(made)) for made in (*document.cabundle, document.certificate)]
    assert named == [0, 1, 1, 0, 0]
