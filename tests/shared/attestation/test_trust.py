import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.certificate import Certificate, anchor_key
from shared.attestation.trust import AWS_ROOT_G1, NitroAnchors
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


def test_production_trusts_only_aws() -> None:
    assert NitroAnchors.production().anchors == (AWS_ROOT_G1,)


def test_an_extra_anchor_is_never_production(forge: Forge) -> None:
    extra = forge.anchors.anchors[1:]
    assert len(extra) == 1
    assert not extra[0].production


def test_the_aws_root_given_again_stays_production(shared_data: Callable[[str], Path]) -> None:
    pem = shared_data("attestation/upstream/certs/AWS_NitroEnclaves_Root-G1.pem").read_bytes()
    assert NitroAnchors.production().with_extra(pem).anchors == (AWS_ROOT_G1,)


def test_one_file_may_hold_several_roots(forge: Forge) -> None:
    pem = forge.made["root"].pem + Forge().made["root"].pem
    assert len(NitroAnchors.production().with_extra(pem).anchors) == 3


@pytest.mark.parametrize(
    "pem", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_refuses_an_anchor_that_is_no_certificate(pem: bytes) -> None:
    with refuses("trust.anchor.malformed", ConfigError):
        NitroAnchors.production().with_extra(pem)


@pytest.mark.parametrize("fault", [{"curve": ec.SECP256R1()}, {"hash": SHA256()}])
def test_refuses_an_anchor_of_another_curve_or_hash(fault: dict[str, object]) -> None:
    with refuses("trust.anchor.malformed", ConfigError):
        NitroAnchors.production().with_extra(Forge(root=fault).made["root"].pem)


def test_refuses_an_anchor_that_may_not_sign_certificates(forge: Forge) -> None:
    for pem in (forge.made["leaf"].pem, Forge(root={"usage": ("crl_sign",)}).made["root"].pem):
        with refuses("trust.anchor.not_ca", ConfigError):
            NitroAnchors.production().with_extra(pem)
