"""`.appkeys.json`: the keys of a guest and where they came from (spec guest-agent section 3.1).

The file holds secrets. Whoever writes it gives it mode 0600, in memory or on the encrypted disk alone.
"""

from typing import Any, Final

import msgspec

from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.keys.k256 import SIGNATURE_BYTES
from shared.strict_json import decode_json

MAX_FILE: Final = 64 * 1024
"""Upstream's has about 2.5 kilobytes; a CA with evidence in it some twenty more."""


class KmsProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A KMS: the URL that its methods hang below (with `/prpc`), its root CA's key (SPKI DER), its client CA.

    That temporary CA's key is public by design (spec kms trap 14).
    """

    url: str
    pubkey: bytes
    tmp_ca_key: str
    tmp_ca_cert: str


class SeedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A seed of the guest's own: the CA's key (PEM), and who keeps the seed: `None`, `Local` or `Tpm`.

    `id` is the measurement of the local provider (`mr`), the TPM's key (`pubkey`), or empty.
    """

    kind: str
    key: str
    id: bytes = b""

    def __repr__(self) -> str:
        return f"SeedProvider(kind={self.kind!r})"


class AppKeysFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. Keys have 32 bytes; `env_crypt_key` and `k256_signature` (65) are empty without a KMS.

    `ca_cert` is the KMS's root CA, or the guest's own CA, as PEM.
    """

    disk_crypt_key: bytes
    env_crypt_key: bytes
    k256_key: bytes
    k256_signature: bytes
    gateway_app_id: str
    ca_cert: str
    key_provider: KmsProvider | SeedProvider

    def __repr__(self) -> str:
        return f"AppKeysFile(key_provider={self.key_provider!r})"

    def to_json(self) -> bytes:
        """Return the file's text, secrets included."""
        document = {
            "ca_cert": self.ca_cert,
            "disk_crypt_key": self.disk_crypt_key.hex(),
            "env_crypt_key": self.env_crypt_key.hex(),
            "k256_key": self.k256_key.hex(),
            "k256_signature": self.k256_signature.hex(),
            "gateway_app_id": self.gateway_app_id,
            "key_provider": _provider_document(self.key_provider),
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=2)


class _File(msgspec.Struct, frozen=True):
    disk_crypt_key: str
    k256_key: str
    k256_signature: str
    gateway_app_id: str
    ca_cert: str
    key_provider: dict[str, dict[str, str]]
    env_crypt_key: str = ""


_SEED_IDS: Final = {"None": "", "Local": "mr", "Tpm": "pubkey"}


def parse_app_keys(raw: bytes) -> AppKeysFile:
    """Read the file; fields that nobody knows are ignored, and no error shows what is in it.

    Raises `ConfigError`: `app_keys.size`, `app_keys.syntax`, `app_keys.field`, `app_keys.provider`.
    """
    if len(raw) > MAX_FILE:
        raise ConfigError("app_keys.size", f"the keys file has {len(raw)} bytes, at most {MAX_FILE} are read")
    try:
        document = decode_json(raw, what="the keys file", code="app_keys.json", max_bytes=MAX_FILE)
    except ProtocolError:
        raise ConfigError("app_keys.syntax", "the keys file is not json") from None
    try:
        file = msgspec.convert(document, _File)
        return AppKeysFile(
            disk_crypt_key=_key(file.disk_crypt_key, "disk_crypt_key"),
            env_crypt_key=_key(file.env_crypt_key, "env_crypt_key", optional=True),
            k256_key=_key(file.k256_key, "k256_key"),
            k256_signature=_key(file.k256_signature, "k256_signature", SIGNATURE_BYTES, optional=True),
            gateway_app_id=file.gateway_app_id,
            ca_cert=file.ca_cert,
            key_provider=_provider(file.key_provider),
        )
    except (msgspec.ValidationError, ProtocolError):
        # no cause: the sentence of a parser could quote a key
        raise ConfigError(
            "app_keys.field", "the keys file lacks a field, or one has another type or length"
        ) from None


def _provider(document: dict[str, dict[str, str]]) -> KmsProvider | SeedProvider:
    name, fields = next(iter(document.items()), ("", {}))
    if (
        len(document) == 1
        and name == "Kms"
        and fields.keys() >= {"url", "pubkey", "tmp_ca_key", "tmp_ca_cert"}
    ):
        return KmsProvider(
            url=fields["url"],
            pubkey=decode_hex(fields["pubkey"], what="pubkey"),
            tmp_ca_key=fields["tmp_ca_key"],
            tmp_ca_cert=fields["tmp_ca_cert"],
        )
    if len(document) == 1 and name in _SEED_IDS and "key" in fields:
        named = _SEED_IDS[name]
        return SeedProvider(
            kind=name,
            key=fields["key"],
            id=decode_hex(fields.get(named, ""), what=named) if named else b"",
        )
    raise ConfigError(
        "app_keys.provider", "the keys file names no key provider that is known: Kms, None, Local, Tpm"
    )


def _provider_document(provider: KmsProvider | SeedProvider) -> dict[str, Any]:
    if isinstance(provider, KmsProvider):
        fields = {
            "url": provider.url,
            "pubkey": provider.pubkey.hex(),
            "tmp_ca_key": provider.tmp_ca_key,
            "tmp_ca_cert": provider.tmp_ca_cert,
        }
        return {"Kms": fields}
    named = _SEED_IDS[provider.kind]
    return {provider.kind: {"key": provider.key} | ({named: provider.id.hex()} if named else {})}


def _key(text: str, name: str, length: int = 32, *, optional: bool = False) -> bytes:
    return b"" if optional and not text else decode_hex(text, what=name, length=length)
