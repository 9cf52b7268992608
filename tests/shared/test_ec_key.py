"""What a certificate's key is read as, and what is not read at all."""

from datetime import UTC, datetime
from typing import NoReturn, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from shared.ec_key import ec_key

SIGNER = ec.generate_private_key(ec.SECP256R1())
DIFFIE_HELLMAN = "1.2.840.10046.2.1"


def certificate(
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key)
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .sign(SIGNER, SHA256())
    )


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_returns_a_key_on_any_curve(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    assert ec_key(certificate(key)) == key


def test_has_none_for_a_key_of_another_kind() -> None:
    assert ec_key(certificate(ed25519.Ed25519PrivateKey.generate().public_key())) is None
    assert ec_key(certificate(rsa.generate_private_key(65537, 2048).public_key())) is None


def test_does_not_parse_a_key_of_another_kind() -> None:
    """Parsing is what costs: no test waits for OpenSSL to find out whether a large number is a prime."""

    class Unread:
        public_key_algorithm_oid = x509.ObjectIdentifier(DIFFIE_HELLMAN)

        def public_key(self) -> NoReturn:
            raise AssertionError("the key was parsed")

    assert ec_key(cast("x509.Certificate", Unread())) is None
