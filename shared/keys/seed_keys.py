"""The keys of a guest without a KMS: all derived from one seed (spec deploy 6.3 step 7, guest-agent 3.1)."""

from hashlib import sha256
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import ConfigError
from shared.keys.app_keys_file import AppKeysFile, SeedProvider
from shared.keys.kdf import hkdf_sha256, p256_key, p256_pkcs8

SEED_BYTES: Final = 32


class SeedKeys(msgspec.Struct, frozen=True):
    """What a seed gives: the key of the guest's own CA, the disk's key and the app's k256 key, 32 bytes each.

    The two P-256 keys are scalars of that curve.
    """

    ca_scalar: bytes
    disk_crypt_key: bytes
    k256_key: bytes

    def __repr__(self) -> str:
        return "SeedKeys(<secret>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    def ca_key(self) -> EllipticCurvePrivateKey:
        """Return the key of the guest's own CA."""
        return p256_key(self.ca_scalar)

    def to_file(self, kind: str, ca_cert: str) -> AppKeysFile:
        """Return `.appkeys.json` for a seed that `kind` keeps: `None`, `Local` or `Tpm`; the CA as PEM."""
        pem = self.ca_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return AppKeysFile(
            disk_crypt_key=self.disk_crypt_key,
            env_crypt_key=b"",
            k256_key=self.k256_key,
            k256_signature=b"",
            gateway_app_id="",
            ca_cert=ca_cert,
            key_provider=SeedProvider(kind=kind, key=pem.decode()),
        )


def derive_seed_keys(seed: bytes) -> SeedKeys:
    """Derive the keys of a seed of 32 bytes.

    Raises `ConfigError`: `keys.seed.length`, and `keys.p256.scalar` for the one seed in 2**32 whose derived
    bytes are no key.
    """
    if len(seed) != SEED_BYTES:
        raise ConfigError("keys.seed.length", f"the seed has {len(seed)} bytes, expected {SEED_BYTES}")
    ca_scalar = hkdf_sha256(seed, (b"app-key",))
    p256_key(ca_scalar)
    disk = p256_pkcs8(hkdf_sha256(seed, (b"app-disk-key",)))
    return SeedKeys(ca_scalar, sha256(disk).digest(), hkdf_sha256(seed, (b"app-k256-key",)))
