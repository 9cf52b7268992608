"""Issuers and revocation lists: vendors' hosts alone, bounded in every way, and believed by signature."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import hypothesis.strategies as st
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from enclave.simulator.ak_authority import (
    INTERMEDIATE_LIST_PATH,
    INTERMEDIATE_PATH,
    ROOT_LIST_PATH,
    ROOT_PATH,
    SimulatedAkAuthority,
)
from enclave.simulator.pccs import CollateralServer
from enclave.simulator.revocation_lists import sign_list
from shared.attestation.ak_chain import verify_ak_chain
from shared.attestation.crl import crl_urls
from shared.attestation.envelope import NitroEnclaveQuote, decode_envelope
from shared.attestation.nitro import parse_document
from shared.attestation.revocation import ChainLink
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, DstackError
from shared.net import issuers
from shared.net.fetch import HttpClient
from shared.net.issuers import PRODUCTION_HOSTS, IssuerClient
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.net.evidence import AK
from tests.shared.net.services import NOW, RoutedDialer, plain_client, utc

GOOGLE = "http://privateca-content-62d71773-0000-21da-852e-f4f5e80d7778.storage.googleapis.com"
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(8)]


class World:
    """One authority whose addresses a loopback server answers."""

    def __init__(self, server: CollateralServer, http: HttpClient) -> None:
        self.server, self.http = server, http
        self.authority = SimulatedAkAuthority.create(server.url)
        server.files.update(self.authority.resources(NOW))
        self.anchors = TrustAnchors.production().with_extra(self.authority.root_pem, signer="gcp_tpm").gcp_tpm
        self.leaf = self.authority.issue_ak(AK.public_key())
        self.told: list[str] = []
        self.client = IssuerClient(http, origins=[server.url], tell=self.told.append)

    def issuers(
        self, leaf: bytes | None = None, known: Sequence[bytes] = (), now: int = NOW
    ) -> tuple[bytes, ...]:
        return self.client.issuers_of(leaf or self.leaf, anchors=self.anchors, known=known, now=now)

    def links(self) -> tuple[ChainLink, ...]:
        chain = verify_ak_chain(self.leaf, [self.authority.intermediate.der], now=NOW, anchors=self.anchors)
        return chain.links

    def lists(self, now: int = NOW) -> tuple[bytes, ...]:
        return self.client.lists_of(self.links(), now=now)


@pytest.fixture
def world() -> Iterator[World]:
    with CollateralServer() as server, plain_client() as http:
        yield World(server, http)


def code(call: Callable[[], object]) -> str:
    with pytest.raises(DstackError) as caught:
        call()
    return caught.value.code


def child(
    name: str,
    key: int,
    *,
    issuer: str,
    signer: int,
    urls: Sequence[str] = (),
    lists: Sequence[str] = (),
    ca: bool = True,
) -> bytes:
    """Return a certificate (DER) of `KEYS[key]` signed by `KEYS[signer]` that names addresses."""

    def names(uris: Sequence[str]) -> list[x509.GeneralName]:
        return [x509.UniformResourceIdentifier(uri) for uri in uris]

    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(KEYS[key].public_key())
        .serial_number(key + 1)
        .not_valid_before(utc(NOW) - timedelta(days=1))
        .not_valid_after(utc(NOW) + timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if urls:
        access = [
            x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, uri) for uri in names(urls)
        ]
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), critical=False)
    if lists:
        points = [x509.DistributionPoint([uri], None, None, None) for uri in names(lists)]
        builder = builder.add_extension(x509.CRLDistributionPoints(points), critical=False)
    return builder.sign(KEYS[signer], hashes.SHA256()).public_bytes(Encoding.DER)


def naming(*urls: str) -> bytes:
    return child("leaf", 0, issuer="issuer", signer=1, urls=urls)


def test_follows_addresses_up_to_an_anchor(world: World) -> None:
    assert world.issuers() == (world.authority.intermediate.der,)
    assert world.server.requests == [INTERMEDIATE_PATH]


def test_takes_pem_where_a_server_has_that(world: World) -> None:
    intermediate = world.authority.intermediate.certificate
    world.server.files[INTERMEDIATE_PATH] = intermediate.public_bytes(Encoding.PEM)
    assert world.issuers() == (world.authority.intermediate.der,)


def test_a_known_issuer_is_not_fetched(world: World) -> None:
    unrelated = child("other", 2, issuer="other", signer=2)
    assert world.issuers(known=[b"no certificate", unrelated, world.authority.intermediate.der]) == (
        world.authority.intermediate.der,
    )
    assert world.server.requests == []


def test_an_issuer_is_fetched_once(world: World) -> None:
    assert {world.issuers(), world.issuers(now=NOW + 3600)} == {(world.authority.intermediate.der,)}
    assert world.server.requests == [INTERMEDIATE_PATH]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/ca.der",
        "http://127.0.0.1:8080/ca.der",
        "http://localhost/ca.der",
        "http://[::1]/ca.der",
        "http://[::ffff:127.0.0.1]/ca.der",
        "http://2130706433/ca.der",
        "http://0x7f000001/ca.der",
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://10.0.0.1/",
        "http://192.168.0.1/",
        "http://example.com/ca.der",
        "http://storage.googleapis.com/ca.der",
        "http://evil.storage.googleapis.com/ca.der",
        "http://x.privateca-content-1.storage.googleapis.com/ca.der",
        f"{GOOGLE}.evil.example/ca.der",
        f"{GOOGLE}:8080/ca.der",
        f"{GOOGLE}:99999/ca.der",
        f"{GOOGLE}@127.0.0.1/ca.der",
        f"{GOOGLE}\\@127.0.0.1/ca.der",
        f"{GOOGLE}#fragment",
        "http://user:pass@privateca-content-1.storage.googleapis.com/ca.der",
        "https://aws-nitro-enclaves-crl.s3.amazonaws.com.evil.example/x.crl",
        "http://crl-a.b-aws-nitro-enclaves.s3.us-east-1.amazonaws.com/x.crl",
        "http:///ca.der",
        "http://[/ca.der",
    ],
)
def test_n11_an_address_that_is_no_vendors_is_never_asked(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by this client, whatever server listens there."""
    asked: list[str] = []
    monkeypatch.setattr(world.http, "request", lambda _method, url, **_: asked.append(url))
    assert code(lambda: world.issuers(naming(url))) == "issuers.url"
    # neither is an allowed one beside it
    assert code(lambda: world.issuers(naming(f"{GOOGLE}/ca.der", url))) == "issuers.url"
    assert asked == []


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/ca", "file:///etc/passwd", "ldap://127.0.0.1/cn=ca", "gopher://x/"]
)
def test_n11_an_address_of_another_scheme_is_never_asked(world: World, url: str) -> None:
    assert code(lambda: world.issuers(naming(url))) == "issuers.none"
    assert world.server.requests == []


def test_n11_many_addresses_are_refused_before_the_first_is_asked(world: World) -> None:
    urls = [f"{world.server.url}/{number}" for number in range(issuers.MAX_URLS + 1)]
    assert code(lambda: world.issuers(naming(*urls))) == "issuers.count"
    assert world.server.requests == []


def test_n11_a_chain_without_end_is_left_early(world: World) -> None:
    """Each issuer is real, and names another one above it."""
    url = world.server.url
    for level in range(7):
        world.server.files[f"/{level}"] = child(
            f"ca{level}", level, issuer=f"ca{level + 1}", signer=level + 1, urls=[f"{url}/{level + 1}"]
        )
    leaf = child("leaf", 7, issuer="ca0", signer=0, urls=[f"{url}/0"], ca=False)
    assert code(lambda: world.issuers(leaf)) == "issuers.depth"
    assert world.server.requests == ["/0", "/1", "/2"]


def test_n11_the_number_of_fetches_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers, "MAX_FETCHES", 2)
    urls = [f"{world.server.url}/absent{number}" for number in range(4)]
    assert code(lambda: world.issuers(naming(*urls))) == "issuers.status"
    assert world.server.requests == ["/absent0", "/absent1"]


def test_n11_the_time_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers, "TOTAL_TIMEOUT", -1.0)
    assert code(world.issuers) == "issuers.budget"
    assert world.server.requests == []


def test_n11_an_issuer_of_others_is_not_followed(world: World) -> None:
    """The addresses of what did not sign the certificate below are not even read."""
    url = world.server.url
    world.server.files["/stranger"] = child("issuer", 2, issuer="above", signer=3, urls=[f"{url}/above"])
    assert code(lambda: world.issuers(naming(f"{url}/stranger"))) == "issuers.not_issuer"
    assert world.server.requests == ["/stranger"]


def test_the_second_address_is_asked_where_the_first_has_nothing(world: World) -> None:
    url = world.server.url
    root_name = world.authority.root.certificate.subject.rfc4514_string().removeprefix("CN=")
    world.server.files["/second"] = child("issuer", 1, issuer=root_name, signer=2)
    leaf = naming(f"{url}/first", f"{url}/second")
    assert world.issuers(leaf) == (world.server.files["/second"],)


def test_a_certificate_without_addresses_is_refused(world: World) -> None:
    assert code(lambda: world.issuers(naming())) == "issuers.none"


def test_what_is_not_a_certificate_is_refused(world: World) -> None:
    assert code(lambda: world.issuers(b"no certificate")) == "gcp.chain.malformed"


PKCS7_DER = pkcs7.serialize_certificates([x509.load_der_x509_certificate(naming())], Encoding.DER)
PKCS7_PEM = pkcs7.serialize_certificates([x509.load_der_x509_certificate(naming())], Encoding.PEM)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "issuers.content"),
        (b"<html>", "issuers.content"),
        (PKCS7_PEM, "issuers.content"),
        (b"-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n", "issuers.content"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "gcp.chain.malformed"),
        (PKCS7_DER, "gcp.chain.malformed"),
        (b"\x30\x00", "gcp.chain.malformed"),
        (b"\x30" + bytes(10_000), "net.response.oversize"),
    ],
    ids=["empty", "html", "pkcs7 pem", "bad base64", "bad pem", "pkcs7", "bad der", "oversize"],
)
def test_an_issuer_in_another_form_is_refused(world: World, body: bytes, expected: str) -> None:
    world.server.files[INTERMEDIATE_PATH] = body
    assert code(world.issuers) == expected


def test_a_missing_issuer_is_unavailable(world: World) -> None:
    del world.server.files[INTERMEDIATE_PATH]
    assert code(world.issuers) == "issuers.status"


def test_fetches_the_list_of_each_certificate(world: World) -> None:
    assert world.lists() == (
        world.server.files[INTERMEDIATE_LIST_PATH],
        world.server.files[ROOT_LIST_PATH],
    )
    assert world.server.requests == [INTERMEDIATE_LIST_PATH, ROOT_LIST_PATH]


def test_takes_lists_in_pem(world: World) -> None:
    der = cast("bytes", world.server.files[ROOT_LIST_PATH])
    world.server.files[ROOT_LIST_PATH] = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
    assert world.lists()[1] == der


def test_a_list_is_fetched_again_on_the_same_day(world: World) -> None:
    world.lists()
    world.lists(NOW + 3600)
    assert len(world.server.requests) == 2
    world.server.files.update(world.authority.resources(NOW + 12 * 3600))
    assert world.lists(NOW + 12 * 3600)[1] == world.server.files[ROOT_LIST_PATH]


def test_a_list_serves_to_its_end_while_its_source_is_down_and_that_is_told(world: World) -> None:
    fetched = world.lists()
    world.server.files.clear()
    assert world.lists(NOW + 6 * 86_400) == fetched
    assert "issuers.status" in world.told[0]
    assert code(lambda: world.lists(NOW + 8 * 86_400)) == "issuers.status"


def test_n11_an_older_list_does_not_replace_a_newer_one(world: World) -> None:
    """Plain http: somebody on the way may repeat what was true before a revocation."""
    world.server.files.update(world.authority.resources(NOW + 3600))
    fetched = world.lists(NOW + 3600)
    world.server.files.update(world.authority.resources(NOW))
    assert world.lists(NOW + 86_400) == fetched
    assert "issuers.list" in world.told[0]


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("signature", lambda world: _list_of(world, KEYS[0]), "issuers.list"),
        ("stale", lambda world: world.authority.root.list_at(NOW - 30 * 86_400), "issuers.list"),
        ("future", lambda world: world.authority.root.list_at(NOW + 3600), "issuers.list"),
        ("empty", lambda _: b"", "issuers.content"),
        ("pem", lambda _: b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "crl.malformed"),
        ("der", lambda _: b"\x30\x00", "crl.malformed"),
        ("oversize", lambda _: b"\x30" * (2 << 20), "net.response.oversize"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_does_not_count_is_refused(
    world: World, name: str, body: Callable[[World], bytes], expected: str
) -> None:
    world.server.files[ROOT_LIST_PATH] = body(world)
    assert code(world.lists) == expected, name


def _list_of(world: World, key: ec.EllipticCurvePrivateKey) -> bytes:
    return sign_list(world.authority.root.certificate.subject, key, now=NOW)


def test_a_list_of_an_authority_that_may_not_sign_lists_is_refused(world: World) -> None:
    links = [msgspec.structs.replace(link, signs_lists=False) for link in world.links()]
    assert code(lambda: world.client.lists_of(links, now=NOW)) == "issuers.list"


def test_a_certificate_that_names_no_list_needs_none(world: World) -> None:
    bare = x509.load_der_x509_certificate(naming())
    links = [msgspec.structs.replace(link, certificate=bare) for link in world.links()]
    assert world.client.lists_of(links, now=NOW) == ()


def test_a_certificate_whose_list_cannot_be_fetched_is_refused(world: World) -> None:
    bare = x509.load_der_x509_certificate(child("leaf", 0, issuer="i", signer=1, lists=["ldap://host/list"]))
    links = [msgspec.structs.replace(link, certificate=bare) for link in world.links()]
    assert code(lambda: world.client.lists_of(links, now=NOW)) == "issuers.none"


def test_the_root_is_not_fetched(world: World) -> None:
    world.issuers()
    assert ROOT_PATH not in world.server.requests


@pytest.mark.parametrize(
    "url",
    [
        f"{GOOGLE}/032bf9d39db4fa06aade/ca.crt",
        f"{GOOGLE.replace('http', 'https')}/032bf9d39db4fa06aade/ca.crt",
        f"{GOOGLE}:80/ca.crt",
        "http://aws-nitro-enclaves-crl.s3.amazonaws.com/crl/ab4960cc-7d63-42bd-9e9f-59338cb67f84.crl",
        "http://crl-us-east-1-aws-nitro-enclaves.s3.us-east-1.amazonaws.com/crl/e7f1198f.crl",
    ],
)
def test_the_vendors_addresses_are_allowed(url: str) -> None:
    http = HttpClient(RoutedDialer(1))
    assert IssuerClient(http, hosts=PRODUCTION_HOSTS)._is_allowed(url)


@pytest.mark.parametrize("name", ["nitro_attestation.bin", "nitro_attestation_nsm_qvl.bin"])
def test_the_addresses_of_real_documents_are_allowed(shared_data: Callable[[str], Path], name: str) -> None:
    quote = decode_envelope(shared_data(f"attestation/upstream/nitro/{name}").read_bytes()).quote
    assert isinstance(quote, NitroEnclaveQuote)
    document = parse_document(quote.nsm_quote)
    urls = [url for der in (document.certificate, *document.cabundle) for url in crl_urls(der)]
    client = IssuerClient(HttpClient(RoutedDialer(1)))
    assert len(urls) >= 2
    assert all(client._is_allowed(url) for url in urls)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "127.0.0.1",
        "*",
        "*.com",
        "a.*.com",
        "*.googleapis.*",
        "a.b",
        "A.B.C",
        "[::1]",
        "a.b.c/",
    ],
)
def test_a_rule_for_hosts_must_name_a_domain(host: str) -> None:
    http = HttpClient(RoutedDialer(1))
    assert code(lambda: IssuerClient(http, hosts=[host])) == "issuers.config.host"


@pytest.mark.parametrize("origin", ["", "127.0.0.1", "ftp://host", "http://host/path", "http://user@host"])
def test_an_origin_must_be_one(origin: str) -> None:
    with pytest.raises(ConfigError) as caught:
        IssuerClient(HttpClient(RoutedDialer(1)), origins=[origin])
    assert caught.value.code == "issuers.config.origin"


PEM = x509.load_der_x509_certificate(naming()).public_bytes(Encoding.PEM)


@fuzz(st.binary(max_size=256) | mutated([PEM]))
def test_any_body_is_one_object_or_refused(body: bytes) -> None:
    outcome(issuers._der, body, b"CERTIFICATE")


@fuzz(st.text(max_size=80) | mutated([GOOGLE.encode()]).map(lambda url: url.decode("latin-1")))
def test_any_address_is_judged(url: str) -> None:
    """And what passes is under a vendor's domain, as the HTTP client reads it."""
    if IssuerClient(NO_HTTP)._is_allowed(url):
        host = urlsplit(url).hostname
        assert host is not None
        assert host.endswith((".storage.googleapis.com", ".amazonaws.com"))


NO_HTTP = HttpClient(RoutedDialer(1))
