"""The metadata section of an EIF: who built it, of what (measurement spec 1.4). No register covers it."""

import json
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.strict_json import decode_json

# nitro-cli puts docker's whole description of the image in: some 10 kB, more with many labels.
MAX_METADATA: Final = 1 << 20
# nitro-cli's limit for the user's part.
MAX_CUSTOM: Final = 4096


class BuildMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal", kw_only=True):
    """The tool and the kernel. `build_time` is RFC 3339, as `build_time` writes it."""

    build_time: str
    build_tool: str
    build_tool_version: str
    operating_system: str
    kernel_version: str


class EifMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal", kw_only=True):
    """The five keys, in the order in which they are written. The last two hold any JSON, or None."""

    image_name: str
    image_version: str
    build_metadata: BuildMetadata
    docker_info: Any
    custom_metadata: Any


def build_time(seconds: int) -> str:
    """Return unix seconds as RFC 3339 in UTC, such as 1970-01-01T00:00:00+00:00.

    Raises `ConfigError("eif.metadata.build_time")` outside the years 1970 to 9999.
    """
    try:
        if seconds >= 0:
            return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        pass
    raise ConfigError(
        "eif.metadata.build_time", f"build time is {seconds}, expected unix seconds to year 9999"
    )


def encode_metadata(metadata: EifMetadata) -> bytes:
    """Return compact JSON, keys in their order, as nitro-cli writes it.

    Raises `ConfigError`: `eif.metadata.value` (no JSON), `eif.metadata.custom` (over 4096 bytes),
    `eif.metadata.size`.
    """
    try:
        custom = _compact(metadata.custom_metadata)
        encoded = _compact(msgspec.to_builtins(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("eif.metadata.value", "metadata holds what json cannot") from error
    for code, size, limit in (
        ("eif.metadata.custom", len(custom), MAX_CUSTOM),
        ("eif.metadata.size", len(encoded), MAX_METADATA),
    ):
        if size > limit:
            raise ConfigError(code, f"metadata has {size} bytes there, expected at most {limit}")
    return encoded


def parse_metadata(raw: bytes) -> EifMetadata:
    """Read a metadata section: all keys, no others, in any order.

    Raises `InvalidEvidence`: `eif.metadata.size`, `eif.metadata.syntax`, `eif.metadata.duplicate_key`,
    `eif.metadata.depth`, `eif.metadata.shape`.
    """
    try:
        tree = decode_json(raw, what="metadata", code="eif.metadata", max_bytes=MAX_METADATA)
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error
    try:
        return msgspec.convert(tree, EifMetadata)
    except msgspec.ValidationError as error:
        # the sentence repeats an unknown key
        raise InvalidEvidence("eif.metadata.shape", f"metadata: {ascii(str(error))[1:201]}") from error


def _compact(value: Any) -> bytes:  # noqa: ANN401 - JSON is untyped
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
