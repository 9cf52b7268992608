"""The 48-byte config id that a host binds to a guest (spec attestation 1.6, measurement 6).

It is TDX's MRCONFIGID, and on AWS NitroTPM it is extended into PCR8. Version 1 names the compose hash alone,
version 2 a hash of four values, version 3 the hash of a document that the guest received.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

import msgspec

from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

ID_BYTES: Final = 48
MAX_DOCUMENT_BYTES: Final = 32 * 1024  # it travels in a sys-config, which the guest caps at that
MAX_PROVIDER_BYTES: Final = 4096  # a key-provider event: a name and a key of about 100 bytes in hex
MAX_INIT_SCRIPTS: Final = 16  # an app has at most five

_HASH_BYTES: Final = 32
_APP_ID_BYTES: Final = 20
_PADDING: Final = bytes(15)
_V3: Final = 3
_V3_TAG: Final = b"dstack-mr-config-v3:\0"


class KeyProviderKind(StrEnum):
    """Who keeps the app's keys; the values are those of a version-3 document."""

    NONE = "none"
    LOCAL = "local"
    KMS = "kms"
    TPM = "tpm"


_KIND_BYTES: Final = {kind: bytes([index]) for index, kind in enumerate(KeyProviderKind)}
# The key-provider event has another name for one of them.
_EVENT_NAMES: Final = {("local-sgx" if kind == "local" else kind.value): kind for kind in KeyProviderKind}


class KeyProvider(msgspec.Struct, frozen=True):
    """A key provider. `id` is the KMS root's SPKI DER, the local provider's measurement, or empty."""

    kind: KeyProviderKind
    id: bytes = b""


class BootValues(msgspec.Struct, frozen=True, kw_only=True):
    """What the verified event log says about the boot, to be compared with what the host bound.

    `key_provider` is None before the guest has one: a KMS sees such guests when they ask for their keys.
    """

    compose_hash: bytes
    app_id: bytes
    key_provider: KeyProvider | None
    instance_id: bytes = b""
    gpu_policy_hash: bytes = b""
    init_script_hashes: tuple[bytes, ...] = ()


class MrConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A version-3 document. An absent optional is not checked; an empty list of scripts is meaningful."""

    compose_hash: bytes
    key_provider: KeyProviderKind
    key_provider_id: bytes | None = None
    app_id: bytes | None = None
    instance_id: bytes | None = None
    gpu_policy_hash: bytes | None = None
    init_script_hashes: tuple[bytes, ...] | None = None


class MrConfigCheck(msgspec.Struct, frozen=True):
    """The outcome of a check that found no contradiction.

    `version` is 0 (no config bound), 1, 2 or 3. `checked` says that all the id binds was compared and holds;
    otherwise `reason` is a lowercase clause that says why it was not. A policy that wants a bound config
    must refuse what is not `checked`: the host chooses the version.
    """

    version: int
    checked: bool
    reason: str


def mr_config_id_v1(compose_hash: bytes) -> bytes:
    """Return the 48-byte version-1 id; `ConfigError("mr_config.length")` unless the hash has 32 bytes."""
    _check_length(compose_hash, _HASH_BYTES, "compose_hash")
    return b"\x01" + compose_hash + _PADDING


def mr_config_id_v2(compose_hash: bytes, app_id: bytes, key_provider: KeyProvider) -> bytes:
    """Return the 48-byte version-2 id.

    Raises `ConfigError`: `mr_config.length`, and `mr_config.keccak` where pycryptodome is not installed.
    """
    _check_length(compose_hash, _HASH_BYTES, "compose_hash")
    _check_length(app_id, _APP_ID_BYTES, "app_id")
    keccak256 = _keccak256()
    if keccak256 is None:
        raise ConfigError("mr_config.keccak", "keccak-256 needs the pycryptodome package, which is missing")
    kind = _KIND_BYTES[key_provider.kind]
    return b"\x02" + keccak256(compose_hash, app_id, kind, key_provider.id) + _PADDING


def mr_config_hash_v3(document: bytes) -> bytes:
    """Return the 32-byte hash of a version-3 document's bytes as they are: SEV-SNP's HOST_DATA."""
    return sha256(_V3_TAG + document).digest()


def mr_config_id_v3(document: bytes) -> bytes:
    """Return the 48-byte version-3 id of a document's bytes as they are."""
    return b"\x03" + mr_config_hash_v3(document) + _PADDING


def encode_mr_config(document: MrConfigDocument) -> bytes:
    """Write a version-3 document in canonical form (RFC 8785); absent and empty byte fields are left out."""
    built: dict[str, Any] = {"version": _V3, "key_provider": document.key_provider.value}
    for name in ("compose_hash", "key_provider_id", "app_id", "instance_id", "gpu_policy_hash"):
        if value := getattr(document, name):
            built[name] = value.hex()
    if document.init_script_hashes is not None:
        built["init_script_hashes"] = [item.hex() for item in document.init_script_hashes]
    # All keys and values are ascii without escapes, where json's form is the canonical one.
    return json.dumps(built, sort_keys=True, separators=(",", ":")).encode()


def parse_mr_config(raw: bytes) -> MrConfigDocument:
    """Read a version-3 document, canonical or not.

    Raises `InvalidEvidence`: `mr_config.document.size`, `.syntax`, `.duplicate_key`, `.depth`, `.type`,
    `.unknown` (a field that version 3 lacks), `.version`, `.field` (a wrong type, hex or length).
    """
    what = "mr_config document"
    document = _object(raw, what, "mr_config.document", MAX_DOCUMENT_BYTES)
    known = {*MrConfigDocument.__struct_fields__, "version"}
    if unknown := sorted(document.keys() - known):
        raise InvalidEvidence(
            "mr_config.document.unknown", f"{what} has the unknown field {unknown[0][:64]!a}, expected none"
        )
    version = document.get("version", _V3)
    if type(version) is not int or version != _V3:
        raise InvalidEvidence(
            "mr_config.document.version", f"{what} has version {version!r:.20}, expected {_V3}"
        )
    kind = document.get("key_provider")
    if kind not in list(KeyProviderKind):
        raise InvalidEvidence("mr_config.document.field", f"{what} has no known key_provider")
    return MrConfigDocument(
        compose_hash=_hex(document.get("compose_hash"), "compose_hash", _HASH_BYTES),
        key_provider=KeyProviderKind(kind),
        key_provider_id=_optional(document, "key_provider_id", None),
        app_id=_optional(document, "app_id", _APP_ID_BYTES),
        instance_id=_optional(document, "instance_id", _APP_ID_BYTES),
        gpu_policy_hash=_optional(document, "gpu_policy_hash", _HASH_BYTES),
        init_script_hashes=_script_hashes(document),
    )


def parse_key_provider(payload: bytes) -> KeyProvider | None:
    """Read the payload of a key-provider event: `{"name": .., "id": hex}`; None when it is empty.

    Raises `InvalidEvidence`: `mr_config.key_provider.size`, `.syntax`, `.duplicate_key`, `.depth`, `.type`,
    and `.field` for another name than none, local-sgx, kms, tpm, or an id that is not hex.
    """
    if not payload:
        return None
    what = "key-provider event"
    value = _object(payload, what, "mr_config.key_provider", MAX_PROVIDER_BYTES)
    name, provider_id = value.get("name"), value.get("id")
    if value.keys() != {"name", "id"} or not isinstance(name, str) or name not in _EVENT_NAMES:
        raise InvalidEvidence("mr_config.key_provider.field", f"{what} has not a known name and an id alone")
    if not isinstance(provider_id, str):
        raise InvalidEvidence("mr_config.key_provider.field", f"the id of the {what} is not a string")
    try:
        return KeyProvider(
            _EVENT_NAMES[name], decode_hex(provider_id, what=f"the id of the {what}", prefix=False)
        )
    except ProtocolError as error:
        raise InvalidEvidence("mr_config.key_provider.field", error.message) from error


def check_mr_config(
    mr_config_id: bytes, boot: BootValues, *, document: bytes | None = None, required: bool = False
) -> MrConfigCheck:
    """Compare a quoted config id with the verified boot values, and say how far that went.

    `document` is the version-3 text, if the caller has it. `required` refuses an all-zero id, with which a
    host binds nothing (SECURITY N-19). Raises `InvalidEvidence`: `mr_config.length`, `mr_config.zero`,
    `mr_config.version` (not 1 to 3, or padding that is not zero), `mr_config.mismatch`, or
    `mr_config.document.*`.
    """
    if len(mr_config_id) != ID_BYTES:
        raise InvalidEvidence(
            "mr_config.length", f"mr_config_id has {len(mr_config_id)} bytes, expected {ID_BYTES}"
        )
    if len(boot.compose_hash) != _HASH_BYTES or len(boot.app_id) != _APP_ID_BYTES:
        raise InvalidEvidence(
            "mr_config.length",
            f"compose_hash and app_id have {len(boot.compose_hash)} and {len(boot.app_id)} bytes, "
            f"expected {_HASH_BYTES} and {_APP_ID_BYTES}",
        )
    if not any(mr_config_id):
        if required:
            raise InvalidEvidence("mr_config.zero", "mr_config_id is zero, expected one that binds a config")
        return MrConfigCheck(0, checked=False, reason="the host bound no config")
    version = mr_config_id[0]
    if not 1 <= version <= _V3 or mr_config_id[33:] != _PADDING:
        raise InvalidEvidence(
            "mr_config.version",
            f"mr_config_id is {mr_config_id.hex()}, expected version 1 to 3, a hash, zeros",
        )
    if version == 1:
        _check_id(mr_config_id, mr_config_id_v1(boot.compose_hash))
        return MrConfigCheck(1, checked=True, reason="binds the compose hash")
    if version == 2:
        return _check_v2(mr_config_id, boot)
    if document is None:
        return MrConfigCheck(3, checked=False, reason="the document that it hashes is not at hand")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise InvalidEvidence(
            "mr_config.document.size",
            f"the mr_config document has {len(document)} bytes, expected at most {MAX_DOCUMENT_BYTES}",
        )
    _check_id(mr_config_id, mr_config_id_v3(document))
    return _check_v3(parse_mr_config(document), boot)


def _check_v2(mr_config_id: bytes, boot: BootValues) -> MrConfigCheck:
    if boot.key_provider is None:
        return MrConfigCheck(2, checked=False, reason="the guest has no key provider yet")
    if _keccak256() is None:
        return MrConfigCheck(2, checked=False, reason="keccak-256 is not installed here")
    # A launcher binds the provider that the app pins; where the app pins none, it binds the kind alone.
    unpinned = KeyProvider(boot.key_provider.kind)
    if mr_config_id == mr_config_id_v2(boot.compose_hash, boot.app_id, unpinned):
        return MrConfigCheck(2, checked=True, reason="binds the compose hash, app id and a provider kind")
    _check_id(mr_config_id, mr_config_id_v2(boot.compose_hash, boot.app_id, boot.key_provider))
    return MrConfigCheck(2, checked=True, reason="binds the compose hash, the app id and the key provider")


def _check_v3(document: MrConfigDocument, boot: BootValues) -> MrConfigCheck:
    """Compare every present field, as the guest does; the compose hash is always present."""
    for name in ("compose_hash", "app_id", "instance_id", "gpu_policy_hash", "init_script_hashes"):
        want, got = getattr(document, name), getattr(boot, name)
        if want is not None and want != got:
            raise InvalidEvidence("mr_config.mismatch", f"the bound config has another {name} than the boot")
    provider = boot.key_provider
    if provider is None:
        return MrConfigCheck(3, checked=False, reason="the guest has no key provider yet")
    if document.key_provider != provider.kind or document.key_provider_id not in {None, provider.id}:
        raise InvalidEvidence("mr_config.mismatch", "the bound config has another key provider than the boot")
    return MrConfigCheck(3, checked=True, reason="binds the fields of its document")


def _check_id(got: bytes, expected: bytes) -> None:
    if got != expected:
        raise InvalidEvidence(
            "mr_config.mismatch", f"mr_config_id is {got.hex()}, the boot makes {expected.hex()}"
        )


def _keccak256() -> Callable[..., bytes] | None:
    """Return Keccak-256, or None where its library is absent: a verify function carries no pycryptodome."""
    try:
        from shared.keccak import keccak256  # noqa: PLC0415 - only version 2 needs it
    except ImportError:
        return None
    return keccak256


def _check_length(value: bytes, length: int, what: str) -> None:
    if len(value) != length:
        raise ConfigError("mr_config.length", f"{what} has {len(value)} bytes, expected {length}")


def _object(raw: bytes, what: str, code: str, max_bytes: int) -> dict[str, Any]:
    try:
        value = decode_json(raw, what=what, code=code, max_bytes=max_bytes, max_depth=2)
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error
    if not isinstance(value, dict):
        raise InvalidEvidence(f"{code}.type", f"{what} is not a json object")
    return value


def _hex(value: object, what: str, length: int | None) -> bytes:
    """Decode a field's hex; an empty one is refused, because a writer leaves it out."""
    if not isinstance(value, str) or not value:
        raise InvalidEvidence("mr_config.document.field", f"{what} is not a string of hex digits")
    try:
        return decode_hex(value, what=what, length=length, prefix=False)
    except ProtocolError as error:
        raise InvalidEvidence("mr_config.document.field", error.message) from error


def _optional(document: dict[str, Any], name: str, length: int | None) -> bytes | None:
    return _hex(document[name], name, length) if name in document else None


def _script_hashes(document: dict[str, Any]) -> tuple[bytes, ...] | None:
    if "init_script_hashes" not in document:
        return None
    items = document["init_script_hashes"]
    if not isinstance(items, list) or len(items) > MAX_INIT_SCRIPTS:
        raise InvalidEvidence(
            "mr_config.document.field", f"init_script_hashes is not a list of at most {MAX_INIT_SCRIPTS}"
        )
    return tuple(_hex(item, "init_script_hashes", _HASH_BYTES) for item in items)
