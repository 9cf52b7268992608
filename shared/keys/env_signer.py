"""The deployer's own signature over an environment, checked against the measured `env_signer`.

Anybody can encrypt to an app's key, so a ciphertext says nothing about who wrote it. With `env_signer`, an
Ed25519 public key in app-compose, our guest takes only variables that its owner signed for this app.

The signature is over these bytes: the text `dstack-env-signature/v1:`, app_id (20), env_version (8, big-
endian), the number of entries (4), and of each entry in its order the length of its name (4), the name, the
length of its value (4) and the value; lengths are of UTF-8 bytes, big-endian. It lies inside of the
ciphertext.
"""

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shared.compose.env_envelope import MAX_ENV_VERSION, Entries, EnvSignature
from shared.errors import ConfigError, InvalidEvidence
from shared.keys.app_keys import APP_ID_BYTES

_TAG: Final = b"dstack-env-signature/v1:"


class EnvSigningKey:
    """A deployer's Ed25519 private key. Its repr shows nothing of it."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ConfigError("env_signer.key", f"the env signing key has {len(seed)} bytes, expected 32")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def __repr__(self) -> str:
        return "EnvSigningKey(<secret>)"

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that app-compose names as `env_signer`."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, entries: Entries, *, app_id: bytes, env_version: int) -> EnvSignature:
        """Sign the entries for one app (id of 20 bytes).

        Raises `ConfigError`: `env_signer.version` unless it is between 0 and 2**53 - 1, `env_signer.app_id`.
        """
        if not 0 <= env_version <= MAX_ENV_VERSION:
            raise ConfigError(
                "env_signer.version", f"env_version is {env_version}, expected 0 to {MAX_ENV_VERSION}"
            )
        return EnvSignature(env_version, self._key.sign(_message(entries, app_id, env_version)))


def load_env_signing_key(pem: bytes) -> EnvSigningKey:
    """Read an unencrypted PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.

    Raises `ConfigError("env_signer.key")` for anything else, and shows none of it.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("env_signer.key", "the env signing key is no unencrypted ed25519 key in pem")
    return EnvSigningKey(key.private_bytes_raw())


def check_env_signature(
    entries: Entries,
    signature: EnvSignature | None,
    *,
    env_signer: bytes,
    app_id: bytes,
    min_version: int = 0,
) -> int:
    """Check that the owner of `env_signer` (32 bytes) signed the entries for this app; return their version.

    Raises `InvalidEvidence`: `env_signer.unsigned`, `env_signer.signature` (another key, another app, or
    another variable, value or order than was signed), `env_signer.rollback` where the version is below
    `min_version`.
    """
    if signature is None:
        raise InvalidEvidence(
            "env_signer.unsigned", "the environment is unsigned, and app-compose names an env_signer"
        )
    try:
        Ed25519PublicKey.from_public_bytes(env_signer).verify(
            signature.signature, _message(entries, app_id, signature.env_version)
        )
    except (InvalidSignature, ValueError):
        raise InvalidEvidence(
            "env_signer.signature",
            f"the environment is not signed by env_signer {env_signer.hex()} for app {app_id.hex()}",
        ) from None
    if signature.env_version < min_version:
        raise InvalidEvidence(
            "env_signer.rollback",
            f"the environment has version {signature.env_version}, expected at least {min_version}",
        )
    return signature.env_version


def _message(entries: Entries, app_id: bytes, env_version: int) -> bytes:
    if len(app_id) != APP_ID_BYTES:
        raise ConfigError("env_signer.app_id", f"app_id has {len(app_id)} bytes, expected {APP_ID_BYTES}")
    parts = [_TAG, app_id, env_version.to_bytes(8), len(entries).to_bytes(4)]
    for entry in entries:
        for text in entry:
            raw = text.encode()
            parts += (len(raw).to_bytes(4), raw)
    return b"".join(parts)
