"""What an encrypted environment says when it is open: JSON with a list of variables (spec deploy section 3).

Beside upstream's `env` there may be our `env_signature`, which upstream's guest ignores. No error here
repeats a name that is not valid or any value, nor keeps the text that was parsed in its chain.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from shared.compose.env_file import MAX_ENTRIES, MAX_NAME_BYTES, MAX_TOTAL_BYTES, MAX_VALUE_BYTES
from shared.errors import ConfigError, DstackError, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

MAX_CIPHERTEXT_BYTES: Final = 256 * 1024
"""The guest's cap on `.encrypted-env`; what is inside is smaller."""

MAX_ENV_VERSION: Final = 2**53 - 1
"""The greatest number that JSON carries unchanged in every language."""

SIGNATURE_BYTES: Final = 64

Entries = tuple[tuple[str, str], ...]

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class EnvSignature(msgspec.Struct, frozen=True):
    """The deployer's signature over all entries in their order: Ed25519, 64 bytes.

    `env_version` is signed with them; a greater one is newer.
    """

    env_version: int
    signature: bytes


class EnvEnvelope(msgspec.Struct, frozen=True):
    """The entries as they were sent, and who signed them. Its repr shows neither name nor value."""

    entries: Entries
    signature: EnvSignature | None = None

    def __repr__(self) -> str:
        return f"EnvEnvelope(<{len(self.entries)} variables>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class SelectedEnv(msgspec.Struct, frozen=True):
    """The variables that the app gets, sorted by name, and the names that it did not ask for.

    Its repr shows names alone.
    """

    values: dict[str, str]
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SelectedEnv({', '.join(self.values)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("names", tuple(self.values))]


class _Pair(msgspec.Struct, frozen=True):
    key: str
    value: str


class _WireSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    env_version: Annotated[int, msgspec.Meta(ge=0, le=MAX_ENV_VERSION)]
    signature: str


class _Wire(msgspec.Struct, frozen=True):
    env: tuple[_Pair, ...]
    env_signature: _WireSignature | None = None


def encode_envelope(envelope: EnvEnvelope) -> bytes:
    """Return the JSON, spaced as upstream's command line spaces it.

    Raises `ConfigError`: `env.count`, `env.name`, `env.size`, `env.encoding`, and `env.duplicate` where a
    name occurs twice: a deployer never means that.
    """
    names = [name for name, _ in envelope.entries]
    if len(set(names)) != len(names):
        raise ConfigError("env.duplicate", "the environment names a variable twice")
    _check_count(names, ConfigError)
    _checked(envelope.entries, ConfigError)
    document: dict[str, Any] = {"env": [{"key": name, "value": value} for name, value in envelope.entries]}
    if (signed := envelope.signature) is not None:
        document["env_signature"] = {
            "format": 1,
            "env_version": signed.env_version,
            "signature": signed.signature.hex(),
        }
    return json.dumps(document, ensure_ascii=False).encode()


def decode_envelope(raw: bytes) -> EnvEnvelope:
    """Read the JSON that was decrypted; unknown fields are ignored, as upstream's guest ignores ours.

    Raises `ProtocolError`: `env.envelope` for other JSON than that, `env.count` above 1024 entries.
    """
    envelope = _parsed(raw)
    if envelope is None:  # raised outside of every handler: a parser's own error holds the whole text
        raise ProtocolError(
            "env.envelope", "the decrypted env is no json with a list env of key and value texts"
        )
    _check_count(envelope.entries, ProtocolError)
    return envelope


def select_env(entries: Entries, allowed: Collection[str]) -> SelectedEnv:
    """Return what the app gets: allowed names alone, of a duplicate the last, sorted.

    Other names are skipped before anything is checked. Raises `ProtocolError`: `env.name`, `env.size` (a
    value, or all, duplicates counted), `env.encoding` (a NUL, which no environment can hold).
    """
    wanted = tuple((name, value) for name, value in entries if name in allowed)
    _checked(wanted, ProtocolError)
    return SelectedEnv(
        values=dict(sorted(dict(wanted).items())),
        skipped=tuple(sorted({name for name, _ in entries} - set(allowed))),
    )


def _parsed(raw: bytes) -> EnvEnvelope | None:
    try:
        document = decode_json(raw, what="the env", code="env", max_bytes=MAX_CIPHERTEXT_BYTES)
        wire = msgspec.convert(document, _Wire)
        for pair in wire.env:  # JSON can spell lone surrogates, which are no text
            (pair.key + pair.value).encode()
        signed = wire.env_signature
        return EnvEnvelope(
            entries=tuple((pair.key, pair.value) for pair in wire.env),
            signature=None
            if signed is None
            else EnvSignature(
                signed.env_version,
                decode_hex(signed.signature, what="env_signature", length=SIGNATURE_BYTES, prefix=False),
            ),
        )
    except (ProtocolError, msgspec.ValidationError, UnicodeEncodeError):
        return None


def _check_count(entries: Sequence[object], kind: type[DstackError]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise kind(
            "env.count", f"the environment has {len(entries)} variables, at most {MAX_ENTRIES} allowed"
        )


def _checked(entries: Iterable[tuple[str, str]], kind: type[DstackError]) -> None:
    total = 0
    for number, (name, value) in enumerate(entries, 1):
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
            raise kind("env.name", f"variable {number} of the environment has no valid name")
        if "\0" in value or (size := _size(value)) is None:
            raise kind("env.encoding", f"the value of {name} holds a nul, or is no text")
        if size > MAX_VALUE_BYTES:
            raise kind(
                "env.size", f"the value of {name} has {size} bytes, expected at most {MAX_VALUE_BYTES}"
            )
        total += len(name) + size
    if total > MAX_TOTAL_BYTES:
        raise kind("env.size", f"the environment has {total} bytes, expected at most {MAX_TOTAL_BYTES}")


def _size(value: str) -> int | None:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        return None
