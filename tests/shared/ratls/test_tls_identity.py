"""The answer of GetTlsKey as an app reads it."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import ConfigError
from shared.ratls.certificates import client_certificate
from shared.ratls.tls_identity import TlsIdentity
from tests.shared.refusal import refuses

NOW = 1_900_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF = client_certificate(KEY, attestation=None, issuer=None, now=NOW)
PEM = LEAF.public_bytes(Encoding.PEM).decode()


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_reads_key_and_chain_and_shows_no_key() -> None:
    identity = TlsIdentity.from_pems(pem_of(KEY), [PEM])
    assert identity.chain == (LEAF,)
    assert repr(identity) == "TlsIdentity('CN=RA-TLS TEMP Cert')"


@pytest.mark.parametrize(
    ("key", "chain"),
    [
        ("", [PEM]),
        (pem_of(ed25519.Ed25519PrivateKey.generate()), [PEM]),
        (pem_of(KEY), []),
        (pem_of(KEY), ["no"]),
    ],
)
def test_refuses_what_is_no_key_with_a_chain(key: str, chain: list[str]) -> None:
    with refuses("tls_identity.malformed", ConfigError):
        TlsIdentity.from_pems(key, chain)


def test_refuses_a_chain_for_another_key() -> None:
    with refuses("ratls.key.mismatch", ConfigError):
        TlsIdentity.from_pems(pem_of(ec.generate_private_key(ec.SECP256R1())), [PEM])
