import hashlib
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.attestation.anchor import TrustAnchor
from shared.attestation.certificate import Certificate, anchor_key
from shared.attestation.roots import AWS_ROOT_G1, GCP_EK_AK_ROOT, INTEL_SGX_ROOT
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError
from tests.shared.attestation.forgery import Forge, refuses


def test_the_aws_root_is_the_published_certificate(shared_data: Callable[[str], Path]) -> None:
    pem = shared_data("attestation/upstream/certs/AWS_NitroEnclaves_Root-G1.pem").read_bytes()
    certificate = Certificate.parse(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    assert hashlib.sha256(certificate.der).digest() == AWS_ROOT_G1.sha256
    assert certificate.subject == certificate.issuer == AWS_ROOT_G1.subject
    assert certificate.spki == AWS_ROOT_G1.spki
    assert (certificate.not_before, certificate.not_after) == (AWS_ROOT_G1.not_before, AWS_ROOT_G1.not_after)


def test_the_aws_root_has_its_published_fingerprint() -> None:
    assert AWS_ROOT_G1.sha256.hex().startswith("641a0321a3e244efe456463195d60631")
    assert isinstance(anchor_key(AWS_ROOT_G1.spki).curve, ec.SECP384R1)


def test_production_trusts_only_the_vendors() -> None:
    production = TrustAnchors.production()
    assert (production.nitro, production.tdx) == ((AWS_ROOT_G1,), (INTEL_SGX_ROOT,))
    assert production.gcp_tpm == (GCP_EK_AK_ROOT,)


def test_an_extra_anchor_is_never_production(forge: Forge) -> None:
    extra = forge.anchors.nitro[1:]
    assert len(extra) == 1
    assert not extra[0].production


def test_the_aws_root_given_again_stays_production(shared_data: Callable[[str], Path]) -> None:
    pem = shared_data("attestation/upstream/certs/AWS_NitroEnclaves_Root-G1.pem").read_bytes()
    assert TrustAnchors.production().with_extra(pem).nitro == (AWS_ROOT_G1,)


def test_intels_root_given_again_stays_production() -> None:
    pem = x509.load_der_x509_certificate(INTEL_SGX_ROOT.der).public_bytes(Encoding.PEM)
    assert TrustAnchors.production().with_extra(pem, signer="tdx") == TrustAnchors.production()


def test_one_file_may_hold_several_roots(forge: Forge) -> None:
    pem = forge.made["root"].pem + Forge().made["root"].pem
    assert len(TrustAnchors.production().with_extra(pem).nitro) == 3


@pytest.mark.parametrize(
    "pem", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_refuses_an_anchor_that_is_no_certificate(pem: bytes) -> None:
    with refuses("trust.anchor.malformed", ConfigError):
        TrustAnchors.production().with_extra(pem)


@pytest.mark.parametrize("fault", [{"curve": ec.SECP521R1()}, {"hash": SHA256()}])
def test_refuses_an_anchor_of_another_curve_or_hash(fault: dict[str, object]) -> None:
    with refuses("trust.anchor.malformed", ConfigError):
        TrustAnchors.production().with_extra(Forge(root=fault).made["root"].pem)


@pytest.mark.parametrize("fault", [{"usage": None}, {"basic": False}])
def test_refuses_an_anchor_that_does_not_say_what_it_may(fault: dict[str, object]) -> None:
    pem = Forge(root={"curve": ec.SECP256R1(), **fault}).made["root"].pem
    with refuses("trust.anchor.not_ca", ConfigError):
        TrustAnchors.production().with_extra(pem)


def test_an_extra_root_serves_the_signers_that_its_key_suits() -> None:
    for curve, served in ((ec.SECP256R1(), ("tdx", "gcp_tpm")), (ec.SECP384R1(), ("nitro",))):
        anchors = TrustAnchors.production().with_extra(Forge(root={"curve": curve}).made["root"].pem)
        counts = {name: len(getattr(anchors, name)) for name in ("nitro", "tdx", "gcp_tpm")}
        assert counts == {name: 2 if name in served else 1 for name in counts}


def test_a_root_for_one_signer_serves_no_other() -> None:
    pem = Forge(root={"curve": ec.SECP256R1()}).made["root"].pem
    anchors = TrustAnchors.production().with_extra(pem, signer="tdx")
    assert (len(anchors.tdx), len(anchors.gcp_tpm)) == (2, 1)
    with refuses("trust.anchor.malformed", ConfigError):
        TrustAnchors.production().with_extra(pem, signer="nitro")


def test_an_rsa_root_serves_googles_tpms_and_a_short_one_nobody() -> None:
    for bits, code in ((2048, None), (1024, "trust.anchor.malformed")):
        pem = _rsa_root(bits)
        if code is None:
            assert len(TrustAnchors.production().with_extra(pem).gcp_tpm) == 2
        else:
            with refuses(code, ConfigError):
                TrustAnchors.production().with_extra(pem)


def _rsa_root(bits: int) -> bytes:
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    usage = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, **usage), critical=True)
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.mark.parametrize(
    ("anchor", "path", "fingerprint"),
    [
        (
            GCP_EK_AK_ROOT,
            "gcp-root-ca.pem",
            "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
        ),
        (AWS_ROOT_G1, "AWS_NitroEnclaves_Root-G1.pem", AWS_ROOT_G1.sha256.hex()),
    ],
)
def test_a_built_in_root_is_the_published_one(
    anchor: TrustAnchor, path: str, fingerprint: str, shared_data: Callable[[str], Path]
) -> None:
    pem = shared_data(f"attestation/upstream/certs/{path}").read_bytes()
    _is_certificate(anchor, x509.load_pem_x509_certificate(pem))
    assert anchor.sha256.hex() == fingerprint


def test_the_built_in_intel_root_is_its_own_certificate() -> None:
    certificate = x509.load_der_x509_certificate(INTEL_SGX_ROOT.der)
    _is_certificate(INTEL_SGX_ROOT, certificate)
    # Intel publishes it with this digest
    assert INTEL_SGX_ROOT.sha256.hex() == "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


def _is_certificate(anchor: TrustAnchor, certificate: x509.Certificate) -> None:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest() == anchor.sha256
    assert (certificate.subject.public_bytes(), spki) == (anchor.subject, anchor.spki)
    assert int(certificate.not_valid_before_utc.timestamp()) == anchor.not_before
    assert int(certificate.not_valid_after_utc.timestamp()) == anchor.not_after


def test_refuses_an_anchor_that_may_not_sign_certificates(forge: Forge) -> None:
    for pem in (forge.made["leaf"].pem, Forge(root={"usage": ("crl_sign",)}).made["root"].pem):
        with refuses("trust.anchor.not_ca", ConfigError):
            TrustAnchors.production().with_extra(pem)


def test_refuses_an_anchor_with_a_name_that_cannot_be_read() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    # a subject alternative name of kind x400Address
    names = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex("3004a3023000"))
    root = (
        x509.CertificateBuilder(name, name, key.public_key(), 7)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(names, critical=False)
        .sign(key, SHA256())
    )
    with refuses("trust.anchor.malformed", ConfigError):
        TrustAnchors.production().with_extra(root.public_bytes(Encoding.PEM))


def test_refuses_an_anchor_of_another_version() -> None:
    der = x509.load_pem_x509_certificate(_rsa_root(2048)).public_bytes(Encoding.DER)
    other = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"))
    pem = b"-----BEGIN CERTIFICATE-----\n" + b64encode(other) + b"\n-----END CERTIFICATE-----\n"
    with refuses("trust.anchor.malformed", ConfigError):
        TrustAnchors.production().with_extra(pem)
