"""The keys that a KMS derives for an app, and the signatures that prove who derived them (spec kms 3.2-3.5).

Every context has a length of its own (20-byte app id, instance id of 20 or 0 bytes, labels of distinct
length), so the plain concatenation of section 3.1 is unambiguous. That is why other id lengths are refused.

A key epoch is ours: a number that an app's measured configuration raises to leave its keys behind. Epoch 0
gives upstream's bytes. It rotates an app's keys; it does not help against whoever has the roots.
"""

from collections.abc import Collection
from functools import cached_property
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.keys.epoch import encode_epoch
from shared.keys.k256 import ORDER as K256_ORDER
from shared.keys.k256 import SigningKey, recover_public_key
from shared.keys.k256 import public_key as k256_public_key
from shared.keys.kdf import P256_ORDER, derive_dh_secret, derive_p256_scalar, hkdf_sha256

APP_ID_BYTES: Final = 20
INSTANCE_ID_BYTES: Final = 20
MAX_AGE: Final = 300  # seconds a signed env public key stays good, as upstream's SDKs have it
MAX_FUTURE: Final = 60

_ISSUED: Final = b"dstack-kms-issued:"
_ENV_PUBLIC_KEY: Final = b"dstack-env-encrypt-pubkey:"
_ENV_PUBLIC_KEY_EPOCH: Final = b"dstack-env-encrypt-pubkey-epoch:"
_EPOCH: Final = b":epoch:"


class _Secret(msgspec.Struct, frozen=True):
    """A struct whose repr, also in rich tracebacks, shows no field."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class RootKeys(_Secret, frozen=True, dict=True):
    """The two independent roots of a KMS: the root CA's P-256 scalar and the k256 scalar, 32 bytes each.

    Raises `ConfigError`: `keys.root.p256` or `keys.root.k256` when one is not a scalar of its curve.
    """

    ca_scalar: bytes
    k256: bytes

    def __post_init__(self) -> None:
        if len(self.ca_scalar) != 32 or not 0 < int.from_bytes(self.ca_scalar) < P256_ORDER:
            raise ConfigError("keys.root.p256", "the root ca key is not a 32-byte p-256 scalar")
        if len(self.k256) != 32 or not 0 < int.from_bytes(self.k256) < K256_ORDER:
            raise ConfigError("keys.root.k256", "the root k256 key is not a 32-byte secp256k1 scalar")

    @cached_property
    def signing_key(self) -> SigningKey:
        """The k256 root, prepared once: preparing costs more than a signature does."""
        return SigningKey(self.k256)


class AppKeys(_Secret, frozen=True):
    """What GetAppKey releases: three secrets of 32 bytes, and the root's signature (65) over the third."""

    disk_crypt_key: bytes
    env_crypt_key: bytes
    k256_key: bytes
    k256_signature: bytes


def derive_app_keys(root: RootKeys, app_id: bytes, instance_id: bytes = b"", *, epoch: int = 0) -> AppKeys:
    """Derive an app's keys. `instance_id` is empty on Nitro and for apps without instance ids.

    Raises `ProtocolError`: `keys.app_id.length`, `keys.instance_id.length`, `keys.epoch`; `ConfigError` as
    the derivations.
    """
    _check_app_id(app_id)
    if instance_id and len(instance_id) != INSTANCE_ID_BYTES:
        raise ProtocolError(
            "keys.instance_id.length",
            f"instance_id has {len(instance_id)} bytes, expected {INSTANCE_ID_BYTES} or none",
        )
    suffix = _epoch_context(epoch)
    k256_key = hkdf_sha256(root.k256, (app_id, b"app-key", *suffix))
    disk_context = (app_id, instance_id, b"app-disk-crypt-key", *suffix)
    return AppKeys(
        disk_crypt_key=derive_dh_secret(root.ca_scalar, disk_context),
        env_crypt_key=env_crypt_key(root, app_id, epoch=epoch),
        k256_key=k256_key,
        k256_signature=root.signing_key.sign(_ISSUED + app_id + k256_public_key(k256_key)),
    )


def env_crypt_key(root: RootKeys, app_id: bytes, *, epoch: int = 0) -> bytes:
    """Return the X25519 private key for an app's encrypted environment: 32 bytes, as derived, not clamped."""
    _check_app_id(app_id)
    return derive_dh_secret(root.ca_scalar, (app_id, b"env-encrypt-key", *_epoch_context(epoch)))


def app_ca_scalar(root: RootKeys, app_id: bytes) -> bytes:
    """Return the P-256 scalar of an app's CA. It never leaves the KMS."""
    _check_app_id(app_id)
    return derive_p256_scalar(root.ca_scalar, (app_id, b"app-ca"))


def env_public_key(private: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of an `env_crypt_key` (32 bytes)."""
    if len(private) != 32:
        raise ConfigError("keys.env.length", f"env_crypt_key has {len(private)} bytes, expected 32")
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign_env_public_key(
    key: SigningKey, app_id: bytes, public_key: bytes, timestamp: int, *, epoch: int = 0
) -> tuple[bytes, bytes]:
    """Return the root's two signatures over an env public key: legacy, and v1 that also covers the time.

    That of an epoch above 0 covers the epoch too, and there is no legacy one, which is empty then.
    """
    legacy = b"" if epoch else key.sign(_env_message(app_id, public_key, None))
    return legacy, key.sign(_env_message(app_id, public_key, timestamp, epoch))


def verify_env_public_key(
    app_id: bytes,
    public_key: bytes,
    signature: bytes,
    *,
    timestamp: int | None,
    now: int,
    trusted: Collection[bytes],
    epoch: int = 0,
) -> bytes:
    """Return the compressed k256 key (33 bytes) of the KMS that vouches for an app's env public key.

    The key must be that of `epoch`: one of another epoch has another signature. `trusted` holds the k256 root
    keys to accept. `timestamp` is None for the legacy signature, which can be replayed for ever; with one,
    the v1 signature is checked and may be 300 s old or 60 s early.

    Raises `InvalidEvidence`: `keys.env.epoch` for a legacy signature where an epoch is wanted,
    `keys.env.stale`, `keys.env.signer`, and as `recover_public_key`.
    """
    if epoch and timestamp is None:
        raise InvalidEvidence("keys.env.epoch", f"a legacy signature names no epoch, expected {epoch}")
    if timestamp is not None and not -MAX_FUTURE <= now - timestamp <= MAX_AGE:
        raise InvalidEvidence(
            "keys.env.stale",
            f"env public key was signed at {timestamp}, expected {now - MAX_AGE} to {now + MAX_FUTURE}",
        )
    signer = recover_public_key(_env_message(app_id, public_key, timestamp, epoch), signature)
    if signer not in trusted:
        raise InvalidEvidence("keys.env.signer", f"env public key is signed by untrusted {signer.hex()}")
    return signer


def issuer_of_key(app_id: bytes, app_pubkey: bytes, signature: bytes) -> bytes:
    """Return the k256 root key (compressed, 33 bytes) that signed an app's k256 key. Not yet a trusted one.

    Raises `ProtocolError`: `keys.issued.length`, `keys.app_id.length`; `InvalidEvidence` as
    `recover_public_key`.
    """
    _check_app_id(app_id)
    if len(app_pubkey) != 33:
        raise ProtocolError("keys.issued.length", f"app key has {len(app_pubkey)} bytes, expected 33")
    return recover_public_key(_ISSUED + app_id + app_pubkey, signature)


def verify_issued_key(app_id: bytes, app_pubkey: bytes, signature: bytes, root_pubkey: bytes) -> None:
    """Check that the KMS with `root_pubkey` issued an app's k256 key (both keys compressed, 33 bytes).

    Raises `InvalidEvidence("keys.issued.signer")`, and as `issuer_of_key`.
    """
    signer = issuer_of_key(app_id, app_pubkey, signature)
    if signer != root_pubkey:
        raise InvalidEvidence(
            "keys.issued.signer", f"app key is signed by {signer.hex()}, expected {root_pubkey.hex()}"
        )


def _env_message(app_id: bytes, public_key: bytes, timestamp: int | None, epoch: int = 0) -> bytes:
    _check_app_id(app_id)
    if len(public_key) != 32:
        raise ProtocolError("keys.env.length", f"env public key has {len(public_key)} bytes, expected 32")
    if timestamp is None:
        return _ENV_PUBLIC_KEY + app_id + public_key
    if not 0 <= timestamp < 1 << 64:
        raise ProtocolError("keys.env.timestamp", f"timestamp {timestamp} is not an unsigned 64-bit number")
    if epoch == 0:
        return _ENV_PUBLIC_KEY + app_id + timestamp.to_bytes(8) + public_key
    return _ENV_PUBLIC_KEY_EPOCH + app_id + encode_epoch(epoch) + timestamp.to_bytes(8) + public_key


def _epoch_context(epoch: int) -> tuple[bytes, ...]:
    return (_EPOCH, encode_epoch(epoch)) if epoch else ()


def _check_app_id(app_id: bytes) -> None:
    if len(app_id) != APP_ID_BYTES:
        raise ProtocolError("keys.app_id.length", f"app_id has {len(app_id)} bytes, expected {APP_ID_BYTES}")
