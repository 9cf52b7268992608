"""Encrypts an environment to an app's key, and opens it in the guest (spec deploy section 3).

The file is eph_pub(32) || iv(12) || AES-256-GCM ciphertext and tag(16); the key is the raw X25519 shared
secret, without derivation and without associated data, because that is what upstream's guests open.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.compose.env_envelope import (
    MAX_CIPHERTEXT_BYTES,
    EnvEnvelope,
    decode_envelope,
    encode_envelope,
    select_env,
)
from shared.compose.model import AppCompose
from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.keys.env_signer import EnvSigningKey, check_env_signature

_KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD: Final = _KEY_BYTES + _IV_BYTES
MIN_CIPHERTEXT_BYTES: Final = _HEAD + _TAG_BYTES


class EnvAuthor(msgspec.Struct, frozen=True):
    """Who signs an environment, for which app (20 bytes), and as which version."""

    key: EnvSigningKey
    app_id: bytes
    env_version: int


class EnvPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the measured app-compose says of the environment.

    `env_signer` is 32 bytes, empty where nobody is named; `min_version` counts only with one.
    """

    allowed: frozenset[str]
    env_signer: bytes = b""
    min_version: int = 0


class DecryptedEnv(msgspec.Struct, frozen=True, kw_only=True):
    """What the app gets, sorted by name; `skipped` names were not allowed. The repr shows names alone.

    `env_version` is None unless a signature was asked for and checked.
    """

    values: dict[str, str]
    skipped: tuple[str, ...] = ()
    env_version: int | None = None

    def __repr__(self) -> str:
        return f"DecryptedEnv({', '.join(self.values)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("names", tuple(self.values))]


def env_policy(compose: AppCompose) -> EnvPolicy:
    """Return the policy of an app-compose that was read, and so checked."""
    return EnvPolicy(
        allowed=frozenset(compose.allowed_envs),
        env_signer=bytes.fromhex(compose.env_signer or ""),
        min_version=compose.env_min_version,
    )


def encrypt_env(
    env: Mapping[str, str],
    public_key: bytes,
    *,
    author: EnvAuthor | None = None,
    ephemeral_secret: bytes | None = None,
    iv: bytes | None = None,
) -> bytes:
    """Return the bytes of `.encrypted-env` for an app's X25519 key (32 bytes), signed by any author.

    The ephemeral secret and the iv are fresh unless a test vector fixes them. Raises `ConfigError`: what
    `encode_envelope` and `EnvSigningKey.sign` raise, and `env.size` above the guest's 256 KiB;
    `ProtocolError`: `keys.env.length`, `env.shared_secret` for a public key of low order.
    """
    entries = tuple(sorted(env.items()))
    encode_envelope(EnvEnvelope(entries))  # refused before it is signed
    signature = (
        None
        if author is None
        else author.key.sign(entries, app_id=author.app_id, env_version=author.env_version)
    )
    plaintext = encode_envelope(EnvEnvelope(entries, signature))
    size = MIN_CIPHERTEXT_BYTES + len(plaintext)
    if size > MAX_CIPHERTEXT_BYTES:
        raise ConfigError(
            "env.size",
            f"the encrypted environment has {size} bytes, the guest takes at most {MAX_CIPHERTEXT_BYTES}",
        )
    return _seal(plaintext, public_key, ephemeral_secret, iv)


def decrypt_env(
    ciphertext: bytes | None, private: bytes, *, policy: EnvPolicy, app_id: bytes
) -> DecryptedEnv:
    """Open an environment with an app's `env_crypt_key`, step by step; None is a machine without the file.

    Anything but a result must stop the boot. Raises what `open_sealed`, `decode_envelope`,
    `check_env_signature` and `select_env` raise, and `InvalidEvidence("env_signer.absent")`.
    """
    # 1. whoever takes the file away leaves an app that wants signed variables without them: no boot either
    if ciphertext is None:
        if policy.env_signer:
            raise InvalidEvidence(
                "env_signer.absent", "there is no encrypted environment, and app-compose names an env_signer"
            )
        return DecryptedEnv(values={})
    # 2. the cipher
    envelope = decode_envelope(open_sealed(ciphertext, private))
    # 3. who wrote it: over all entries, before any is looked at
    version = None
    if policy.env_signer:
        version = check_env_signature(
            envelope.entries,
            envelope.signature,
            env_signer=policy.env_signer,
            app_id=app_id,
            min_version=policy.min_version,
        )
    # 4. what the app asked for
    selected = select_env(envelope.entries, policy.allowed)
    return DecryptedEnv(values=selected.values, skipped=selected.skipped, env_version=version)


def open_sealed(ciphertext: bytes, private: bytes) -> bytes:
    """Return the plaintext of a ciphertext file, opened with an X25519 private key of 32 bytes.

    Raises `ProtocolError`: `env.ciphertext.length`, `env.shared_secret`;
    `InvalidEvidence("env.ciphertext.tag")` where it was made for another key or changed;
    `ConfigError("keys.env.length")`.
    """
    if not MIN_CIPHERTEXT_BYTES <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
        raise ProtocolError(
            "env.ciphertext.length",
            f"the encrypted env has {len(ciphertext)} bytes, "
            f"expected {MIN_CIPHERTEXT_BYTES} to {MAX_CIPHERTEXT_BYTES}",
        )
    if len(private) != _KEY_BYTES:
        raise ConfigError("keys.env.length", f"env_crypt_key has {len(private)} bytes, expected {_KEY_BYTES}")
    shared = _shared_secret(X25519PrivateKey.from_private_bytes(private), ciphertext[:_KEY_BYTES])
    try:
        return AESGCM(shared).decrypt(ciphertext[_KEY_BYTES:_HEAD], ciphertext[_HEAD:], None)
    except InvalidTag:
        raise InvalidEvidence(
            "env.ciphertext.tag", "the encrypted env is not for this app's key, or was changed"
        ) from None


def _seal(plaintext: bytes, public_key: bytes, ephemeral_secret: bytes | None, iv: bytes | None) -> bytes:
    if len(public_key) != _KEY_BYTES:
        raise ProtocolError(
            "keys.env.length", f"env public key has {len(public_key)} bytes, expected {_KEY_BYTES}"
        )
    ephemeral = (
        X25519PrivateKey.generate()
        if ephemeral_secret is None
        else X25519PrivateKey.from_private_bytes(ephemeral_secret)
    )
    iv = secrets.token_bytes(_IV_BYTES) if iv is None else iv
    sealed = AESGCM(_shared_secret(ephemeral, public_key)).encrypt(iv, plaintext, None)
    return ephemeral.public_key().public_bytes_raw() + iv + sealed


def _shared_secret(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the shared secret; one of zeros, which a public key of low order gives, is nobody's secret."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # OpenSSL's own word for it
        shared = bytes(_KEY_BYTES)
    if not any(shared):
        raise ProtocolError(
            "env.shared_secret", "the x25519 shared secret is zero: a public key is of low order"
        )
    return shared
