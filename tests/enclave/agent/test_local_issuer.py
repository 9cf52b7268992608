"""A guest's own CA: what its leaves say, and what is not made for them (spec guest-agent section 2.5)."""

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from enclave.agent.certificates import new_tls_key, tls_key_pem
from enclave.agent.issuers import certificate_issuer
from enclave.agent.local_issuer import LocalIssuer
from enclave.tee.peers import PeerVerifier
from shared.attestation.messagepack import decode_strict
from shared.errors import ConfigError, ProtocolError
from shared.keys.app_keys_file import AppKeysFile, SeedProvider
from shared.keys.kdf import PKCS8_BYTES
from shared.ratls.certificates import BACKDATE, CA_LIFETIME, self_signed_ca
from shared.ratls.csr import CsrConfig
from shared.ratls.extensions import APP_ID, APP_INFO, ATTESTATION, USAGE, read_extension
from shared.ratls.peer import ratls_report_data
from tests.enclave.conftest import APP_ID as ID
from tests.enclave.conftest import NOW
from tests.shared.refusal import refuses

CONFIG = CsrConfig(
    subject="app.example",
    subject_alt_names=("app.example", "10.0.0.1", "2001:db8::1"),
    usage_server_auth=True,
)


class Counting:
    """An attestor that counts."""

    def __init__(self, attestor) -> None:
        self.count = 0
        self._attestor = attestor

    def attest(self, report_data: bytes) -> bytes:
        self.count += 1
        return self._attestor.attest(report_data)


@pytest.fixture
def ca() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    return self_signed_ca(key, "App Root Cert", 1, NOW - 10, NOW + CA_LIFETIME + 86_400), key


@pytest.fixture
def attestor(app_enclave) -> Counting:
    return Counting(app_enclave.attestor)


@pytest.fixture
def verifier(anchors) -> PeerVerifier:
    return PeerVerifier(anchors=anchors, now=lambda: NOW)


@pytest.fixture
def issue(ca, attestor, verifier) -> Callable[..., list[x509.Certificate]]:
    """Return a function that issues from the keys file of a guest without a KMS."""
    pem = ca[0].public_bytes(Encoding.PEM).decode()
    file = AppKeysFile(
        disk_crypt_key=bytes(32),
        env_crypt_key=b"",
        k256_key=bytes(31) + b"\1",
        k256_signature=b"",
        gateway_app_id="",
        ca_cert=pem,
        key_provider=SeedProvider(kind="None", key=tls_key_pem(ca[1])),
    )
    issuer = certificate_issuer(file, app_id=ID, attestor=attestor, verifier=verifier, dialer=None)  # type: ignore[arg-type]

    def run(config: CsrConfig = CONFIG, key: ec.EllipticCurvePrivateKey | None = None):
        chain = issuer.issue(key or new_tls_key(), config)
        return [x509.load_pem_x509_certificate(one.encode()) for one in chain]

    return run


def test_the_chain_is_the_leaf_and_the_guests_ca(issue, ca) -> None:
    key = new_tls_key()
    leaf, issuer = issue(key=key)
    assert issuer == ca[0]
    leaf.verify_directly_issued_by(issuer)
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string() == "CN=app.example"


def test_ip_literals_become_ip_names(issue) -> None:
    names = issue()[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["app.example"]
    found = names.get_values_for_type(x509.IPAddress)
    assert found == [ip_address("10.0.0.1"), ip_address("2001:db8::1")]


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("client", [True, False])
def test_extended_usages_are_those_asked_for(issue, server, client) -> None:
    leaf = issue(CsrConfig(subject="", usage_server_auth=server, usage_client_auth=client))[0]
    asked = {ExtendedKeyUsageOID.SERVER_AUTH: server, ExtendedKeyUsageOID.CLIENT_AUTH: client}
    wanted = {usage for usage, is_asked in asked.items() if is_asked}
    found = [set(one.value) for one in leaf.extensions if isinstance(one.value, x509.ExtendedKeyUsage)]
    assert found == ([wanted] if wanted else [])


def test_the_leaf_is_an_apps_and_names_none(issue) -> None:
    leaf = issue()[0]
    assert read_extension(leaf, USAGE) == b"app:custom"
    assert read_extension(leaf, APP_ID) is None


def test_evidence_is_for_the_leafs_key(issue, verifier) -> None:
    leaf = issue(CsrConfig(subject="", ext_quote=True))[0]
    bound = ratls_report_data(leaf.public_bytes(Encoding.DER))
    assert verifier.verify(read_extension(leaf, ATTESTATION), bound).events.app_id == ID


def test_app_info_is_what_was_verified(issue) -> None:
    leaf = issue(CsrConfig(subject="", ext_app_info=True))[0]
    stamped = decode_strict(read_extension(leaf, APP_INFO))
    assert stamped[0] == ID
    assert read_extension(leaf, ATTESTATION) is None


def test_no_evidence_is_made_that_no_one_asked_for(issue, attestor) -> None:
    leaf = issue()[0]
    assert attestor.count == 0
    assert read_extension(leaf, ATTESTATION) is read_extension(leaf, APP_INFO) is None
    issue(CsrConfig(subject="", ext_quote=True, ext_app_info=True))
    assert attestor.count == 1


def test_a_certificate_lasts_upstreams_ten_years_unless_asked(issue) -> None:
    leaf = issue()[0]
    times = [int(one.timestamp()) for one in (leaf.not_valid_before_utc, leaf.not_valid_after_utc)]
    assert times == [NOW - BACKDATE, NOW + CA_LIFETIME]
    asked = issue(CsrConfig(subject="", not_before=NOW + 5, not_after=NOW + 9))[0]
    assert int(asked.not_valid_before_utc.timestamp()) == NOW + 5
    assert int(asked.not_valid_after_utc.timestamp()) == NOW + 9


@pytest.mark.parametrize(
    ("not_before", "not_after"), [(NOW, NOW), (NOW + 1, NOW), (None, NOW - BACKDATE), (1 << 62, None)]
)
def test_times_that_leave_nothing_are_refused_in_upstreams_words(issue, not_before, not_after) -> None:
    with refuses("certificate.validity", ProtocolError) as caught:
        issue(CsrConfig(subject="", not_before=not_before, not_after=not_after))
    assert caught.value.message == "not_before must be earlier than not_after"


def test_a_time_that_no_certificate_can_hold_is_refused(issue) -> None:
    with refuses("certificate.validity", ProtocolError):
        issue(CsrConfig(subject="", not_after=(1 << 64) - 1))


@pytest.mark.parametrize(
    "config", [CsrConfig(subject="a" * 65), CsrConfig(subject="", subject_alt_names=("\N{SNOWMAN}.example",))]
)
def test_a_name_that_no_certificate_can_hold_is_refused(issue, config: CsrConfig) -> None:
    with refuses("certificate.name", ProtocolError):
        issue(config)


def test_refuses_a_ca_of_another_key(ca) -> None:
    with refuses("app_keys.ca", ConfigError):
        LocalIssuer((ca[0], new_tls_key()), evidence=None, describe=None, now=lambda: NOW)  # type: ignore[arg-type]


def test_keys_are_fresh_and_carry_their_public_half() -> None:
    first, second = new_tls_key(), new_tls_key()
    assert first.private_numbers() != second.private_numbers()
    pem = tls_key_pem(first)
    assert pem.startswith("-----BEGIN PRIVATE KEY-----\n")
    loaded = load_pem_private_key(pem.encode(), None)
    der = loaded.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert len(der) == PKCS8_BYTES
