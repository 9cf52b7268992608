"""Encrypting an environment, and opening it as the guest does."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES, MAX_ENV_VERSION
from shared.compose.model import model_of
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError
from shared.keys.env_encryption import (
    MIN_CIPHERTEXT_BYTES,
    EnvAuthor,
    EnvPolicy,
    decrypt_env,
    encrypt_env,
    env_policy,
    open_sealed,
)
from shared.keys.env_signer import EnvSigningKey
from tests.shared.refusal import refuses

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text())
COMPUTED = {
    name: value for name, value in VECTORS["env_encryption"]["computed"].items() if name != "plaintext"
}
RAW = {name: bytes.fromhex(value) for name, value in COMPUTED.items()}
UPSTREAM = VECTORS["env_encryption"]["upstream_fixture"]
SECRET, PUBLIC = RAW["remote_secret"], RAW["remote_public"]
APP, OTHER_APP = b"\x22" * 20, b"\x23" * 20
ENV = {"FOO": "bar", "SECRET": "1 2$3"}
ALLOWED = EnvPolicy(allowed=frozenset(ENV))
SIGNING = EnvSigningKey(b"\x07" * 32)
SIGNED = EnvPolicy(allowed=frozenset(ENV), env_signer=SIGNING.public_key)
# Points that a clamped scalar takes to the identity: u = 0, 1, p - 1, p, p + 1, and the two of order 8.
LOW_ORDER = [
    *(value.to_bytes(32, "little") for value in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def author(**changes: Any) -> EnvAuthor:
    return EnvAuthor(**{"key": SIGNING, "app_id": APP, "env_version": 5} | changes)


def test_opens_upstreams_fixture() -> None:
    opened = open_sealed(bytes.fromhex(UPSTREAM["ciphertext"]), bytes.fromhex(UPSTREAM["secret"]))
    assert opened.decode() == UPSTREAM["plaintext"]


def test_makes_the_vectors_bytes() -> None:
    made = encrypt_env(ENV, PUBLIC, ephemeral_secret=RAW["ephemeral_secret"], iv=RAW["iv"])
    assert made == RAW["output"]
    assert open_sealed(made, SECRET).decode() == VECTORS["env_encryption"]["computed"]["plaintext"]


def test_the_key_is_the_raw_shared_secret() -> None:
    shared = X25519PrivateKey.from_private_bytes(SECRET).exchange(
        X25519PublicKey.from_public_bytes(RAW["ephemeral_public"])
    )
    assert shared == RAW["shared"]
    assert AESGCM(shared).decrypt(RAW["iv"], RAW["output"][44:], None) == open_sealed(RAW["output"], SECRET)


def test_every_ciphertext_is_fresh() -> None:
    first, second = encrypt_env(ENV, PUBLIC), encrypt_env(ENV, PUBLIC)
    assert first[:32] != second[:32]
    assert first[32:44] != second[32:44]
    assert decrypt_env(first, SECRET, policy=ALLOWED, app_id=APP).values == ENV


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True),
        st.text().filter(lambda text: "\0" not in text and text.isprintable()),
        max_size=5,
    )
)
def test_the_guest_gets_what_was_encrypted(env: dict[str, str]) -> None:
    policy = EnvPolicy(allowed=frozenset(env))
    opened = decrypt_env(encrypt_env(env, PUBLIC), SECRET, policy=policy, app_id=APP)
    assert list(opened.values.items()) == sorted(env.items())


def test_n71_names_outside_of_allowed_envs_are_skipped() -> None:
    opened = decrypt_env(
        encrypt_env(ENV, PUBLIC), SECRET, policy=EnvPolicy(allowed=frozenset({"FOO"})), app_id=APP
    )
    assert (opened.values, opened.skipped) == ({"FOO": "bar"}, ("SECRET",))


# ---- what stops the boot ----


@pytest.mark.parametrize("at", [0, 31, 32, 43, 44, 100, 121, 122, 137])
def test_n71_a_changed_ciphertext_opens_nothing(at: int) -> None:
    changed = bytearray(RAW["output"])
    changed[at] ^= 1
    with refuses("env.ciphertext.tag", InvalidEvidence):
        decrypt_env(bytes(changed), SECRET, policy=ALLOWED, app_id=APP)


def test_n71_a_ciphertext_for_another_key_opens_nothing() -> None:
    with refuses("env.ciphertext.tag", InvalidEvidence):
        decrypt_env(RAW["output"], bytes(31) + b"\x01", policy=ALLOWED, app_id=APP)


@pytest.mark.parametrize("size", [0, 1, 32, 44, MIN_CIPHERTEXT_BYTES - 1, MAX_CIPHERTEXT_BYTES + 1])
def test_n71_refuses_a_ciphertext_of_a_length_that_none_has(size: int) -> None:
    with refuses("env.ciphertext.length", ProtocolError):
        decrypt_env(bytes(size), SECRET, policy=ALLOWED, app_id=APP)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_refuses_a_shared_secret_of_zeros(point: bytes) -> None:
    with refuses("env.shared_secret", ProtocolError):
        encrypt_env(ENV, point)
    # what an attacker would seal with the key that everybody knows
    sealed = point + bytes(12) + AESGCM(bytes(32)).encrypt(bytes(12), b'{"env": []}', None)
    with refuses("env.shared_secret", ProtocolError):
        open_sealed(sealed, SECRET)


def test_n71_refuses_an_authentic_text_that_is_no_environment() -> None:
    with refuses("env.envelope", ProtocolError):
        decrypt_env(
            bytes.fromhex(UPSTREAM["ciphertext"]),
            bytes.fromhex(UPSTREAM["secret"]),
            policy=ALLOWED,
            app_id=APP,
        )


def test_refuses_keys_of_another_length() -> None:
    with refuses("keys.env.length", ProtocolError):
        encrypt_env(ENV, PUBLIC[:31])
    with refuses("keys.env.length", ConfigError):
        open_sealed(RAW["output"], SECRET + b"\0")


def test_the_guests_cap_is_refused_before_anything_leaves() -> None:
    fits = (
        MAX_CIPHERTEXT_BYTES
        - MIN_CIPHERTEXT_BYTES
        - len('{"env": [{"key": "A", "value": ""}, {"key": "B", "value": ""}]}')
    )
    env = {"A": "x" * (fits // 2), "B": "x" * (fits - fits // 2)}
    assert len(encrypt_env(env, PUBLIC)) == MAX_CIPHERTEXT_BYTES
    with refuses("env.size", ConfigError) as caught:
        encrypt_env(env | {"B": env["B"] + "x"}, PUBLIC)
    assert "262145 bytes" in caught.value.message
    # escapes count as they are written
    with refuses("env.size", ConfigError):
        encrypt_env({"A": "\n" * (fits // 2), "B": "x" * (fits - fits // 2)}, PUBLIC)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_error_of_ours(raw: bytes) -> None:
    with pytest.raises(DstackError):
        decrypt_env(raw, SECRET, policy=ALLOWED, app_id=APP)


def test_without_a_file_there_are_no_variables() -> None:
    assert decrypt_env(None, SECRET, policy=ALLOWED, app_id=APP).values == {}


# ---- env_signer ----


def test_the_guest_takes_what_the_env_signer_signed() -> None:
    opened = decrypt_env(encrypt_env(ENV, PUBLIC, author=author()), SECRET, policy=SIGNED, app_id=APP)
    assert (opened.values, opened.env_version) == (ENV, 5)


def test_a_guest_without_env_signer_reads_a_signed_environment_too() -> None:
    opened = decrypt_env(encrypt_env(ENV, PUBLIC, author=author()), SECRET, policy=ALLOWED, app_id=APP)
    assert (opened.values, opened.env_version) == (ENV, None)


def test_n71_an_environment_that_a_cloud_encrypted_is_refused() -> None:
    with refuses("env_signer.unsigned", InvalidEvidence):
        decrypt_env(encrypt_env({"FOO": "evil"}, PUBLIC), SECRET, policy=SIGNED, app_id=APP)
    foreign = author(key=EnvSigningKey(b"\x08" * 32))
    with refuses("env_signer.signature", InvalidEvidence):
        decrypt_env(encrypt_env(ENV, PUBLIC, author=foreign), SECRET, policy=SIGNED, app_id=APP)


def test_n71_an_environment_that_a_cloud_took_away_is_refused() -> None:
    with refuses("env_signer.absent", InvalidEvidence):
        decrypt_env(None, SECRET, policy=SIGNED, app_id=APP)


def test_n71_an_environment_of_another_app_is_refused() -> None:
    stolen = encrypt_env(ENV, PUBLIC, author=author(app_id=OTHER_APP))
    with refuses("env_signer.signature", InvalidEvidence):
        decrypt_env(stolen, SECRET, policy=SIGNED, app_id=APP)


@pytest.mark.parametrize("app_id", [b"", bytes(19), bytes(21)])
def test_n60_refuses_an_app_id_of_another_length(app_id: bytes) -> None:
    sealed = encrypt_env(ENV, PUBLIC, author=author())
    with refuses("env_signer.app_id", ConfigError):
        decrypt_env(sealed, SECRET, policy=SIGNED, app_id=app_id)
    with refuses("env_signer.app_id", ConfigError):
        encrypt_env(ENV, PUBLIC, author=author(app_id=app_id))


def test_n71_an_older_version_than_the_measured_one_is_refused() -> None:
    pinned = EnvPolicy(allowed=frozenset(ENV), env_signer=SIGNING.public_key, min_version=5)
    for version in (5, 6, MAX_ENV_VERSION):
        sealed = encrypt_env(ENV, PUBLIC, author=author(env_version=version))
        assert decrypt_env(sealed, SECRET, policy=pinned, app_id=APP).env_version == version
    with refuses("env_signer.rollback", InvalidEvidence):
        decrypt_env(encrypt_env(ENV, PUBLIC, author=author(env_version=4)), SECRET, policy=pinned, app_id=APP)


def test_n71_a_signature_cannot_be_moved_to_other_variables() -> None:
    plain = json.loads(open_sealed(encrypt_env(ENV, PUBLIC, author=author()), SECRET))
    for spoil in (
        lambda env: env[0].update(value="baz"),
        lambda env: env[0].update(key="FOOB", value="ar"),
        lambda env: env.reverse(),
        lambda env: env.pop(),
        lambda env: env.append({"key": "NOT_ALLOWED", "value": ""}),
        lambda env: env.append(env[0]),
    ):
        document = json.loads(json.dumps(plain))
        spoil(document["env"])
        raw = json.dumps(document).encode()
        sealed = RAW["ephemeral_public"] + RAW["iv"] + AESGCM(RAW["shared"]).encrypt(RAW["iv"], raw, None)
        with refuses("env_signer.signature", InvalidEvidence):
            decrypt_env(sealed, SECRET, policy=SIGNED, app_id=APP)


def test_n71_the_version_is_signed() -> None:
    document = json.loads(open_sealed(encrypt_env(ENV, PUBLIC, author=author()), SECRET))
    document["env_signature"]["env_version"] = 6
    raw = json.dumps(document).encode()
    sealed = RAW["ephemeral_public"] + RAW["iv"] + AESGCM(RAW["shared"]).encrypt(RAW["iv"], raw, None)
    with refuses("env_signer.signature", InvalidEvidence):
        decrypt_env(sealed, SECRET, policy=SIGNED, app_id=APP)


def test_the_policy_is_what_app_compose_says() -> None:
    base = {"manifest_version": 2, "name": "demo", "runner": "docker-compose", "key_provider": "kms"}
    assert env_policy(model_of(base)) == EnvPolicy(allowed=frozenset())
    fields = {"allowed_envs": ["A"], "env_signer": SIGNING.public_key.hex(), "env_min_version": 3}
    assert env_policy(model_of(base | fields)) == EnvPolicy(
        allowed=frozenset({"A"}), env_signer=SIGNING.public_key, min_version=3
    )


def test_n74_no_repr_shows_a_value_or_a_key() -> None:
    opened = decrypt_env(RAW["output"], SECRET, policy=ALLOWED, app_id=APP)
    shown = f"{opened!r}{pretty_repr(opened)}{author()!r}{pretty_repr(author())}"
    assert "1 2$3" not in shown
    assert "bar" not in shown
    assert (b"\x07" * 32).hex() not in shown
