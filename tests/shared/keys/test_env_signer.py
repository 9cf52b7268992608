"""The deployer's signature: its exact bytes, its key file, and keys that bind nobody."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from shared.compose.env_envelope import EnvSignature
from shared.errors import ConfigError, InvalidEvidence
from shared.keys.env_signer import EnvSigningKey, check_env_signature, load_env_signing_key
from tests.shared.refusal import refuses

SEED = bytes(range(32))
KEY = EnvSigningKey(SEED)
APP = b"\x22" * 20
ENTRIES = (("A", "é"), ("BC", ""))


def pem(key: Ed25519PrivateKey | X25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_signs_the_documented_bytes() -> None:
    message = (
        b"dstack-env-signature/v1:"
        + APP
        + bytes.fromhex("000000000000000700000002")
        + bytes.fromhex("000000014100000002c3a900000002424300000000")
    )
    signed = KEY.sign(ENTRIES, app_id=APP, env_version=7)
    Ed25519PublicKey.from_public_bytes(KEY.public_key).verify(signed.signature, message)
    assert check_env_signature(ENTRIES, signed, env_signer=KEY.public_key, app_id=APP) == 7


def test_equal_text_cut_at_other_places_is_signed_apart() -> None:
    made = {KEY.sign(entries, app_id=APP, env_version=0).signature for entries in (
        (("A", "B"),), (("AB", ""),), (("", "AB"),), (("A", ""), ("B", "")), (("A", ""), ("", "B")), ()
    )}  # fmt: skip
    assert len(made) == 6


@pytest.mark.parametrize("version", [-1, 2**53])
def test_refuses_versions_that_json_cannot_carry(version: int) -> None:
    with refuses("env_signer.version", ConfigError):
        KEY.sign(ENTRIES, app_id=APP, env_version=version)


def test_refuses_a_signature_of_zeros() -> None:
    with refuses("env_signer.signature", InvalidEvidence):
        check_env_signature(ENTRIES, EnvSignature(0, bytes(64)), env_signer=KEY.public_key, app_id=APP)


def test_reads_the_key_that_openssl_writes() -> None:
    loaded = load_env_signing_key(pem(Ed25519PrivateKey.from_private_bytes(SEED)))
    assert loaded.public_key == KEY.public_key
    assert "00010203" not in repr(loaded)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hunter2",
        pem(X25519PrivateKey.generate()),
        pem(Ed25519PrivateKey.from_private_bytes(SEED), b"pass"),
        pem(Ed25519PrivateKey.from_private_bytes(SEED))[:-40],
    ],
)
def test_n74_refuses_another_key_file_and_shows_none_of_it(raw: bytes) -> None:
    with refuses("env_signer.key", ConfigError) as caught:
        load_env_signing_key(raw)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_refuses_a_seed_of_another_length() -> None:
    with refuses("env_signer.key", ConfigError):
        EnvSigningKey(SEED[:31])
