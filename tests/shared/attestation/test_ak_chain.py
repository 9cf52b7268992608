"""Attestation-key certificates up to an anchor: every link and every rule, refused by code."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from enclave.simulator.ak_authority import SimulatedAkAuthority
from shared.attestation.ak_chain import (
    MAX_CANDIDATES,
    MAX_CHECKS,
    MAX_DEPTH,
    AkCache,
    VerifiedAkChain,
    is_issued_by,
    read_ak,
    verify_ak_chain,
)
from shared.attestation.anchor import TrustAnchor
from shared.attestation.envelope import GcpTdxQuote, decode_envelope
from shared.attestation.issuer_key import is_signed, load_key
from shared.attestation.roots import GCP_EK_AK_ROOT
from shared.attestation.tpm_certificate import EK_USAGE, MAX_CERTIFICATE, TpmCertificate
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import NOW, USAGES, refuses

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
P256 = ec.SECP256R1()
SAMPLES = Path(__file__).parents[2] / "data" / "attestation" / "synthetic"


@dataclass
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def anchor(self) -> TrustAnchor:
        pem = self.certificate.public_bytes(Encoding.PEM)
        return TrustAnchors.production().with_extra(pem, signer="gcp_tpm").gcp_tpm[-1]


def make(
    name: str,
    issuer: Made | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    usage: Sequence[str] | None = ("key_cert_sign", "crl_sign"),
    eku: x509.ObjectIdentifier | None = None,
    critical: bool = False,
    basic: bool = True,
    not_before: int = NOW - 3600,
    not_after: int = NOW + 3600,
    key: Any = None,
    public_key: Any = None,
    issuer_name: str | None = None,
    hash_: HashAlgorithm | None = None,
    extension: x509.ExtensionType | None = None,
) -> Made:
    key = key or ec.generate_private_key(P256)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    named = issuer.certificate.subject if issuer else subject
    if issuer_name is not None:
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(named)
        .public_key(public_key or key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
    )
    if basic:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    if usage is not None:
        bits = {bit: bit in usage for bit in USAGES}
        builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
    if critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    signer = issuer.key if issuer else key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hash_ or SHA256()
    return Made(builder.sign(signer, algorithm), key)


def leaf(issuer: Made, **changes: Any) -> Made:
    return make("ak", issuer, **{"ca": False, "usage": ("digital_signature",), **changes})


@pytest.fixture(scope="module")
def root() -> Made:
    return make("root")


@pytest.fixture(scope="module")
def middle(root: Made) -> Made:
    return make("middle", root)


def verify(
    ak: Made | bytes, *candidates: Made | bytes, root: Made, now: int = NOW, cache: AkCache | None = None
) -> VerifiedAkChain:
    ders = [made if isinstance(made, bytes) else made.der for made in (ak, *candidates)]
    return verify_ak_chain(ders[0], ders[1:], now=now, anchors=(GCP_EK_AK_ROOT, root.anchor), cache=cache)


# --- what verifies ---


def test_a_chain_tells_its_key_its_anchor_its_certificates_and_its_validity(root: Made) -> None:
    middle = make("middle", root, not_before=NOW - 50, not_after=NOW + 70)
    ak = leaf(middle, not_before=NOW - 60, not_after=NOW + 60)
    chain = verify(ak, middle, root=root)
    assert chain.key == ak.key.public_key()
    assert chain.anchor == root.anchor
    assert chain.certificates == (ak.der, middle.der)
    assert (chain.not_before, chain.not_after) == (NOW - 50, NOW + 60)
    serials = [link.certificate.serial_number for link in chain.links]
    assert serials == [ak.certificate.serial_number, middle.certificate.serial_number]
    assert [link.issuer_name for link in chain.links] == ["middle", root.anchor.name]
    assert [link.signs_lists for link in chain.links] == [True, True]
    assert [link.issuer for link in chain.links] == [
        middle.certificate.subject.public_bytes(),
        root.anchor.subject,
    ]


def test_an_issuer_that_may_not_sign_lists_is_told(root: Made) -> None:
    middle = make("middle", root, usage=("key_cert_sign",))
    assert [link.signs_lists for link in verify(leaf(middle), middle, root=root).links] == [False, True]


def test_a_certificate_right_below_the_anchor_verifies(root: Made) -> None:
    assert verify(leaf(root), root=root).certificates[1:] == ()


def test_candidates_may_come_in_any_order_and_with_others(root: Made) -> None:
    one = make("one", root)
    two = make("two", one)
    ak = leaf(two)
    stray = make("stray")
    chain = verify(ak, two, stray, b"garbage", root, one, two, root=root)
    assert chain.certificates == (ak.der, two.der, one.der)
    assert chain == verify(ak, one, two, root=root)


def test_of_two_issuers_with_one_name_the_one_that_signed_is_taken(root: Made) -> None:
    middle, twin = make("middle", root), make("middle", root)
    for order in ((middle, twin), (twin, middle)):
        assert verify(leaf(middle), *order, root=root).certificates[1] == middle.der


def test_an_expired_certificate_of_an_issuer_does_not_hide_its_renewal(root: Made) -> None:
    middle = make("middle", root)
    expired = make("middle", root, key=middle.key, not_after=NOW - 1)
    assert verify(leaf(middle), expired, middle, root=root).certificates[1] == middle.der


def test_rsa_authorities_and_keys_verify() -> None:
    google = SimulatedAkAuthority.create(rsa_keys=True)
    key = rsa.generate_private_key(public_exponent=0x10001, key_size=2048)
    ak = google.issue_ak(key.public_key())
    anchors = TrustAnchors.production().with_extra(google.root_pem).gcp_tpm
    chain = verify_ak_chain(ak, (google.intermediate.der,), now=NOW, anchors=anchors)
    assert chain.key == key.public_key()


@pytest.mark.parametrize("hash_", [SHA256(), SHA384(), SHA512()])
def test_authorities_with_wider_hashes_and_curves_verify(root: Made, hash_: HashAlgorithm) -> None:
    middle = make("middle", root, key=ec.generate_private_key(ec.SECP384R1()), hash_=hash_)
    assert verify(leaf(middle, hash_=hash_), middle, root=root)


def test_the_synthetic_chain_verifies() -> None:
    quote = decode_envelope((SAMPLES / "envelopes" / "v0_gcp_tdx.bin").read_bytes()).quote
    assert isinstance(quote, GcpTdxQuote)
    pem = (SAMPLES / "gcp" / "intermediate-ca.pem").read_bytes()
    middle = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    anchors = TrustAnchors.production().with_extra((SAMPLES / "gcp" / "root-ca.pem").read_bytes()).gcp_tpm
    assert len(verify_ak_chain(quote.tpm.ak_cert, (middle,), now=NOW, anchors=anchors).links) == 2


# --- N-23: the chain ---


def test_n23_refuses_a_chain_under_no_anchor(root: Made, middle: Made) -> None:
    stranger = make("stranger")
    for ak, candidates in (
        (leaf(middle), ()),
        (leaf(stranger), (middle, root)),
        (make("self", usage=None), ()),
    ):
        with refuses("gcp.chain.anchor"):
            verify(ak, *candidates, root=root)


def test_n23_refuses_simulated_evidence_under_googles_root_alone(middle: Made) -> None:
    with refuses("gcp.chain.anchor"):
        verify_ak_chain(leaf(middle).der, (middle.der,), now=NOW, anchors=(GCP_EK_AK_ROOT,))


def test_n23_refuses_an_attackers_root_with_the_anchors_name(root: Made) -> None:
    attacker = make("root")
    middle = make("middle", attacker)
    with refuses("gcp.chain.signature"):
        verify(leaf(middle), middle, attacker, root=root)


def test_n23_refuses_an_issuer_by_name_alone(root: Made, middle: Made) -> None:
    twin = make("middle", root)
    with refuses("gcp.chain.signature"):
        verify(leaf(twin), middle, root=root)


def test_refuses_a_loop_of_certificates(root: Made) -> None:
    one, two = ec.generate_private_key(P256), ec.generate_private_key(P256)
    first = make("one", Made(make("two", key=two).certificate, two), key=one)
    second = make("two", Made(first.certificate, one), key=two)
    with refuses("gcp.chain.anchor"):
        verify(leaf(first), first, second, root=root)


@pytest.mark.parametrize(("level", "at"), [(0, NOW - 1), (1, NOW - 1), (0, NOW + 1), (1, NOW + 1)])
def test_n23_refuses_a_certificate_outside_its_validity(root: Made, level: int, at: int) -> None:
    changes = {"not_after": at} if at < NOW else {"not_before": at}
    middle = make("middle", root, **(changes if level else {}))
    ak = leaf(middle, **({} if level else changes))
    with refuses("gcp.chain.expired" if at < NOW else "gcp.chain.not_yet_valid"):
        verify(ak, middle, root=root)


@pytest.mark.parametrize(("now", "code"), [(NOW - 11, "not_yet_valid"), (NOW + 11, "expired")])
def test_refuses_an_anchor_outside_its_validity(now: int, code: str) -> None:
    root = make("root", not_before=NOW - 10, not_after=NOW + 10)
    with refuses(f"gcp.chain.{code}"):
        verify(leaf(root), root=root, now=now)


def test_refuses_an_issuer_that_is_no_authority(root: Made) -> None:
    for changes in ({"ca": False}, {"basic": False}):
        middle = make("middle", root, **changes)
        with refuses("gcp.chain.not_ca"):
            verify(leaf(middle), middle, root=root)


@pytest.mark.parametrize("usage", [None, (), ("digital_signature", "crl_sign")])
def test_refuses_an_issuer_that_may_not_sign_certificates(root: Made, usage: tuple[str, ...] | None) -> None:
    middle = make("middle", root, usage=usage)
    with refuses("gcp.chain.key_usage"):
        verify(leaf(middle), middle, root=root)


def test_refuses_authorities_beyond_a_path_length(root: Made) -> None:
    one = make("one", root, path_length=0)
    two = make("two", one)
    assert verify(leaf(one), one, root=root)
    with refuses("gcp.chain.path_length"):
        verify(leaf(two), one, two, root=root)


def test_n11_refuses_a_chain_that_is_too_deep(root: Made) -> None:
    authorities = [root]
    for index in range(MAX_DEPTH):
        authorities.append(make(f"authority {index}", authorities[-1]))
    allowed = authorities[:MAX_DEPTH]
    assert len(verify(leaf(allowed[-1]), *allowed[1:], root=root).certificates) == MAX_DEPTH
    with refuses("gcp.chain.depth"):
        verify(leaf(authorities[-1]), *authorities[1:], root=root)


def test_refuses_an_unknown_critical_extension(root: Made, middle: Made) -> None:
    with refuses("gcp.chain.critical"):
        verify(leaf(middle, critical=True), middle, root=root)
    strange = make("middle", root, critical=True)
    with refuses("gcp.chain.critical"):
        verify(leaf(strange), strange, root=root)


def test_an_extended_key_usage_counts_only_where_there_is_one(root: Made, middle: Made) -> None:
    assert verify(leaf(middle, eku=EK_USAGE), middle, root=root)
    with refuses("gcp.chain.eku"):
        verify(leaf(middle, eku=ExtendedKeyUsageOID.SERVER_AUTH), middle, root=root)
    server = make("middle", root, eku=ExtendedKeyUsageOID.SERVER_AUTH)
    with refuses("gcp.chain.eku"):
        verify(leaf(server), server, root=root)


def test_refuses_an_authority_in_place_of_an_attestation_key(root: Made, middle: Made) -> None:
    with refuses("gcp.chain.leaf_is_ca"):
        verify(middle, root=root)


@pytest.mark.parametrize("usage", [None, (), ("key_encipherment",)])
def test_refuses_an_endorsement_keys_certificate(
    root: Made, middle: Made, usage: tuple[str, ...] | None
) -> None:
    with refuses("gcp.chain.key_usage"):
        verify(leaf(middle, usage=usage), middle, root=root)


# --- N-11: work ---


def test_n11_refuses_too_many_candidates(root: Made) -> None:
    with refuses("gcp.chain.count"):
        verify(leaf(root), *[b"x"] * (MAX_CANDIDATES + 1), root=root)


def test_n11_the_work_of_a_search_is_bounded(root: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    is_signed_by = TpmCertificate.is_signed_by

    def counting(child: TpmCertificate, key: Any) -> bool:
        checked.append(child.der)
        return is_signed_by(child, key)

    monkeypatch.setattr(TpmCertificate, "is_signed_by", counting)
    twins = [make("middle", root) for _ in range(MAX_CHECKS)]
    stranger = make("middle")
    with refuses("gcp.chain.work"):
        verify(leaf(stranger), *twins, stranger, root=root)
    assert len(checked) == MAX_CHECKS
    # the anchor's own signature is the last check that is allowed
    verify(leaf(twins[-2]), *twins[:-1], root=root)


def test_n11_certificates_that_cross_sign_each_other_cost_no_more(root: Made) -> None:
    keys = [ec.generate_private_key(P256) for _ in range(7)]
    authorities = [
        make(
            f"authority {child}",
            Made(make(f"authority {parent}", key=keys[parent]).certificate, keys[parent]),
            key=keys[child],
        )
        for child in range(7)
        for parent in range(7)
        if parent != child
    ]
    with refuses("gcp.chain.work"):
        verify(leaf(authorities[0]), *authorities, root=root)


# --- one certificate ---


def test_n01_refuses_bytes_after_a_certificate(root: Made) -> None:
    with refuses("gcp.chain.malformed"):
        verify(leaf(root).der + b"\0", root=root)


def test_refuses_a_certificate_that_is_too_long() -> None:
    with refuses("gcp.chain.malformed"):
        read_ak(bytes(MAX_CERTIFICATE + 1))


@pytest.mark.parametrize("garbage", [b"", b"\x30\x00", b"\x30\x80\x00\x00", b"-----BEGIN CERTIFICATE-----"])
def test_refuses_what_is_no_certificate(garbage: bytes) -> None:
    with refuses("gcp.chain.malformed"):
        read_ak(garbage)


def test_every_flip_of_a_certificate_is_refused(root: Made) -> None:
    whole = leaf(root).der
    for at in range(len(whole)):
        altered = bytearray(whole)
        altered[at] ^= 1 << at % 8
        with pytest.raises(InvalidEvidence):
            verify(bytes(altered), root=root)


def test_refuses_another_signature_algorithm() -> None:
    signer = Made(make("ed").certificate, ed25519.Ed25519PrivateKey.generate())
    with refuses("gcp.chain.algorithm"):
        read_ak(leaf(signer).der)


def test_refuses_a_certificate_that_names_another_algorithm_inside(root: Made) -> None:
    whole = leaf(root).der
    oid = bytes.fromhex("300a06082a8648ce3d040302")
    first = whole.index(oid)
    altered = whole[: first + 11] + b"\x03" + whole[first + 12 :]
    with refuses("gcp.chain.malformed"):
        read_ak(altered)


def test_n01_refuses_bytes_behind_the_extensions(root: Made) -> None:
    long = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.5"), bytes(256))
    whole = bytearray(leaf(root, extension=long).der)
    assert (whole[1], whole[5]) == (0x82, 0x82)
    end = 8 + int.from_bytes(whole[6:8], "big")
    whole[end:end] = b"\x05\x00"
    for at in (2, 6):
        whole[at : at + 2] = (int.from_bytes(whole[at : at + 2], "big") + 2).to_bytes(2, "big")
    with refuses("gcp.chain.malformed"):
        read_ak(bytes(whole))


def test_refuses_an_old_version(root: Made) -> None:
    with refuses("gcp.chain.malformed"):
        read_ak(leaf(root).der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1))


@pytest.mark.parametrize("first", [0x80, 0xFF])
def test_refuses_a_serial_number_that_is_not_positive(root: Made, first: int) -> None:
    whole = leaf(root).der
    at = whole.index(bytes.fromhex("a003020102")) + 7
    with refuses("gcp.chain.malformed"):
        read_ak(whole[:at] + bytes([first]) + whole[at + 1 :])


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        rsa.generate_private_key(public_exponent=3, key_size=2048).public_key(),
        rsa.generate_private_key(public_exponent=0x10001, key_size=1024).public_key(),  # noqa: S505 - refused
    ],
    ids=["p-521", "ed25519", "exponent 3", "rsa-1024"],
)
def test_refuses_a_key_of_another_kind(root: Made, key: Any) -> None:
    with refuses("gcp.chain.key"):
        read_ak(leaf(root, public_key=key).der)


def test_refuses_extensions_that_cannot_be_read(root: Made) -> None:
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.14"), b"\x05\x00")
    with refuses("gcp.chain.malformed"):
        verify(leaf(root, extension=broken), root=root)


def test_a_certificate_without_a_common_name_still_has_a_name(root: Made) -> None:
    key = ec.generate_private_key(P256)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 1, UTC))
        .sign(root.key, SHA256())
    )
    assert TpmCertificate.parse(made.public_bytes(Encoding.DER)).name == "C=US"


def test_a_name_that_cannot_be_read_is_told_as_such(root: Made) -> None:
    whole = leaf(root).der
    # the common name's string becomes a bit string
    at = whole.rindex(bytes.fromhex("06035504030c02") + b"ak") + 5
    altered = whole[:at] + b"\x03" + whole[at + 1 :]
    assert TpmCertificate.parse(altered).name == "unreadable name"


# --- keys ---


RSA_SPKI = (
    rsa.generate_private_key(public_exponent=0x10001, key_size=2048)
    .public_key()
    .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
EC_SPKI = (
    ec.generate_private_key(P256).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.mark.parametrize("spki", [RSA_SPKI, EC_SPKI, GCP_EK_AK_ROOT.spki], ids=["rsa", "p-256", "google"])
def test_a_key_is_read_to_the_byte(spki: bytes) -> None:
    key = load_key(spki)
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki


@pytest.mark.parametrize(
    "spki",
    [
        b"",
        RSA_SPKI + b"\0",
        EC_SPKI + b"\0",
        EC_SPKI[:-1],
        EC_SPKI[:-64] + bytes(64),
        RSA_SPKI[:-1] + b"\x03",
        RSA_SPKI[:-6] + b"\0" + RSA_SPKI[-5:],
        RSA_SPKI[:19] + b"\x03\x82\x01\x0f\x01" + RSA_SPKI[24:],
        RSA_SPKI[:32] + b"\x01" + RSA_SPKI[33:],
    ],
    ids=[
        "empty",
        "trailing rsa",
        "trailing ec",
        "short point",
        "no point",
        "exponent",
        "even modulus",
        "odd bits",
        "no zero byte",
    ],
)
def test_refuses_a_key_in_another_form(spki: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(is|has|ends) "):
        load_key(spki)


def test_refuses_an_rsa_key_whose_parts_do_not_fill_it() -> None:
    # the outer lengths grow by two, and two bytes follow the key
    grown = bytearray(RSA_SPKI + b"\x05\x00")
    grown[3] += 2
    with pytest.raises(ValueError, match="is not one bit string"):
        load_key(bytes(grown))
    grown[22] += 2
    with pytest.raises(ValueError, match="has another exponent"):
        load_key(bytes(grown))


def test_an_algorithm_of_another_kind_of_key_is_no_signature() -> None:
    assert not is_signed(bytes.fromhex("300a06082a8648ce3d040302"), load_key(RSA_SPKI), b"", b"")
    assert not is_signed(bytes.fromhex("300d06092a864886f70d01010b0500"), load_key(EC_SPKI), b"", b"")


def test_googles_root_has_a_key_that_we_read() -> None:
    key = load_key(GCP_EK_AK_ROOT.spki)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096


# --- for fetchers ---


def test_an_issuer_is_known_by_name_and_signature(root: Made, middle: Made) -> None:
    twin = make("middle", root)
    assert is_issued_by(leaf(middle).der, middle.der)
    assert not is_issued_by(leaf(middle).der, twin.der)
    assert not is_issued_by(leaf(middle).der, root.der)
    with refuses("gcp.chain.malformed"):
        is_issued_by(leaf(middle).der, b"garbage")


# --- what is remembered ---


def test_a_remembered_chain_is_the_same_chain(root: Made, middle: Made) -> None:
    cache, ak = AkCache(), leaf(middle)
    first = verify(ak, middle, root=root, cache=cache)
    assert verify(ak, middle, root=root, cache=cache) is first
    assert (len(cache.chains), len(cache.parsed), len(cache.signatures)) == (1, 2, 2)


def test_what_is_remembered_of_a_signature_counts_for_its_key_alone(root: Made, middle: Made) -> None:
    cache, twin = AkCache(), make("middle", root)
    with refuses("gcp.chain.signature"):
        verify(leaf(twin), middle, root=root, cache=cache)
    ak = leaf(middle)
    assert verify(ak, twin, middle, root=root, cache=cache).certificates[1] == middle.der
    with refuses("gcp.chain.signature"):
        verify(ak, twin, root=root, cache=cache)


def test_a_remembered_chain_counts_only_in_its_validity(root: Made, middle: Made) -> None:
    cache, ak = AkCache(), leaf(middle, not_after=NOW + 5)
    verify(ak, middle, root=root, cache=cache)
    for now, code in ((NOW + 6, "gcp.chain.expired"), (NOW - 7200, "gcp.chain.not_yet_valid")):
        with refuses(code):
            verify(ak, middle, root=root, cache=cache, now=now)


def test_a_remembered_chain_needs_its_issuers_again(root: Made, middle: Made) -> None:
    cache, ak = AkCache(), leaf(middle)
    verify(ak, middle, root=root, cache=cache)
    with refuses("gcp.chain.anchor"):
        verify(ak, root=root, cache=cache)


def test_a_remembered_chain_counts_only_under_its_anchors(root: Made, middle: Made) -> None:
    cache, ak = AkCache(), leaf(middle)
    verify(ak, middle, root=root, cache=cache)
    with refuses("gcp.chain.anchor"):
        verify(ak, middle, root=make("other root"), cache=cache)


def test_what_is_remembered_is_bounded(root: Made) -> None:
    cache = AkCache(size=2)
    for _ in range(3):
        verify(leaf(root), root=root, cache=cache)
    assert (len(cache.chains), len(cache.parsed)) == (2, 2)
