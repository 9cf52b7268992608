import json
from collections.abc import Callable
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

from shared.errors import ConfigError
from shared.ratls import certificates
from shared.ratls.extensions import ATTESTATION, USAGE, read_extension

NOW = 1_800_000_000
ROOT_KEY = generate_private_key(SECP256R1())
ROOT = certificates.self_signed_ca(
    ROOT_KEY, certificates.ROOT_CA_NAME, 1, NOW, NOW + certificates.CA_LIFETIME
)
KEY = generate_private_key(SECP256R1())
RPC = certificates.rpc_certificate(
    KEY, domain="kms.example.com", issuer=(ROOT, ROOT_KEY), attestation=b"\0evidence", now=NOW
)
CLIENT = certificates.client_certificate(KEY, attestation=b"\0evidence", issuer=(ROOT, ROOT_KEY), now=NOW)
SELF_ISSUED = certificates.client_certificate(KEY, attestation=b"\0evidence", issuer=None, now=NOW)


@pytest.mark.parametrize(
    "certificate", [ROOT, RPC, CLIENT, SELF_ISSUED], ids=["root", "rpc", "client", "self"]
)
def test_is_v3_and_signed_with_p256(certificate: x509.Certificate) -> None:
    assert certificate.version is x509.Version.v3
    assert certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256


@pytest.mark.parametrize(
    "certificate", [ROOT, RPC, CLIENT, SELF_ISSUED], ids=["root", "rpc", "client", "self"]
)
def test_serial_is_cut_from_the_public_point(certificate: x509.Certificate) -> None:
    assert certificate.serial_number == serial_of(certificate)


def test_serial_and_key_identifier_rules_hold_for_upstreams_root(
    shared_data: Callable[[str], Path],
) -> None:
    pem = json.loads(shared_data("kms/simulator-appkeys.json").read_text())["ca_cert"]
    root = x509.load_pem_x509_certificate(pem.encode())
    assert root.serial_number == serial_of(root)
    assert f"{root.serial_number:x}".startswith("53bf34d7")
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert identifier.hex().startswith("7af8c9f9")
    key = root.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    assert identifier == sha256(certificates.spki_der(key)).digest()[:20]


def test_our_root_has_the_extensions_of_upstreams_root(shared_data: Callable[[str], Path]) -> None:
    pem = json.loads(shared_data("kms/simulator-appkeys.json").read_text())["ca_cert"]
    theirs = x509.load_pem_x509_certificate(pem.encode())
    assert ROOT.subject == ROOT.issuer == theirs.subject
    shapes = [
        [(extension.oid, extension.critical) for extension in root.extensions] for root in (ROOT, theirs)
    ]
    assert shapes[0] == shapes[1]
    for kind in (x509.KeyUsage, x509.BasicConstraints):
        ours, other = (root.extensions.get_extension_for_class(kind).value for root in (ROOT, theirs))
        assert ours == other


def test_root_names_its_key() -> None:
    identifier = ROOT.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert identifier == sha256(certificates.spki_der(ROOT_KEY.public_key())).digest()[:20]


def test_root_allows_one_ca_below_it() -> None:
    constraints = ROOT.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=1)


@pytest.mark.parametrize("certificate", [RPC, CLIENT], ids=["rpc", "client"])
def test_leaf_names_its_issuers_key(certificate: x509.Certificate) -> None:
    ski = ROOT.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    aki = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert aki.key_identifier == ski
    certificate.verify_directly_issued_by(ROOT)


@pytest.mark.parametrize("certificate", [RPC, CLIENT, SELF_ISSUED], ids=["rpc", "client", "self"])
def test_leaf_is_an_end_entity_without_unknown_critical_extensions(certificate: x509.Certificate) -> None:
    critical = {extension.oid for extension in certificate.extensions if extension.critical}
    assert critical == {x509.OID_KEY_USAGE}
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.BasicConstraints)


@pytest.mark.parametrize("certificate", [RPC, CLIENT, SELF_ISSUED], ids=["rpc", "client", "self"])
def test_leaf_starts_near_now_and_carries_the_evidence(certificate: x509.Certificate) -> None:
    assert certificate.not_valid_before_utc.timestamp() == NOW - certificates.BACKDATE
    assert certificate.not_valid_after_utc.timestamp() == NOW + certificates.LEAF_LIFETIME
    assert read_extension(certificate, ATTESTATION) == b"\0evidence"


def test_rpc_certificate_is_marked_and_named() -> None:
    names = RPC.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kms.example.com"]
    assert RPC.subject.rfc4514_string() == "CN=kms.example.com"
    assert read_extension(RPC, USAGE) == b"kms:rpc"


def test_rpc_certificate_for_an_address_names_the_address() -> None:
    certificate = certificates.rpc_certificate(
        KEY, domain="127.0.0.1", issuer=(ROOT, ROOT_KEY), attestation=None, now=NOW
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("127.0.0.1")]
    assert read_extension(certificate, ATTESTATION) is None


def test_leaf_names_the_key_of_an_issuer_that_does_not_name_it() -> None:
    plain = certificates.client_certificate(ROOT_KEY, attestation=None, issuer=None, now=NOW)
    leaf = certificates.client_certificate(KEY, attestation=None, issuer=(plain, ROOT_KEY), now=NOW)
    aki = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert aki.key_identifier == sha256(certificates.spki_der(ROOT_KEY.public_key())).digest()[:20]


def test_self_issued_client_signs_itself() -> None:
    assert SELF_ISSUED.issuer == SELF_ISSUED.subject
    SELF_ISSUED.verify_directly_issued_by(SELF_ISSUED)


@pytest.mark.parametrize("domain", ["kms.éxample", "", "a" * 254])
def test_refuses_a_domain_that_a_certificate_cannot_name(domain: str) -> None:
    with pytest.raises(ConfigError) as caught:
        certificates.rpc_certificate(KEY, domain=domain, issuer=(ROOT, ROOT_KEY), attestation=None, now=NOW)
    assert caught.value.code == "ratls.domain.invalid"


@pytest.mark.parametrize("now", [-(10**20), 0, 10**20])
def test_refuses_times_beyond_the_calendar(now: int) -> None:
    with pytest.raises(ConfigError) as caught:
        certificates.client_certificate(KEY, attestation=None, issuer=None, now=now)
    assert caught.value.code == "ratls.time.range"


def test_refuses_a_validity_that_ends_before_it_begins() -> None:
    with pytest.raises(ConfigError) as caught:
        certificates.self_signed_ca(ROOT_KEY, certificates.TEMP_CA_NAME, 0, NOW, NOW - 1)
    assert caught.value.code == "ratls.time.range"


def serial_of(certificate: x509.Certificate) -> int:
    key = certificate.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    digest = bytearray(sha256(point).digest()[:20])
    digest[0] &= 0x7F
    return int.from_bytes(digest)
