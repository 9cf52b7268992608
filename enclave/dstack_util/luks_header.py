"""The LUKS2 header of a data disk, judged before cryptsetup sees it (spec deploy section 6.3 step 10).

The disk belongs to the host. A header of the host's own could name no cipher at all, another segment, or
tokens and keyslots that lead cryptsetup elsewhere: the guest would then write its data in the clear. So the
header is accepted only where it says exactly what this guest's own `luksFormat` says. The passphrase proves
the rest: only a guest with the same key can have made a keyslot that it opens.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Annotated, Any, Final, Literal

import msgspec

from shared.errors import InvalidEvidence, ProtocolError
from shared.strict_json import decode_json

PAYLOAD_OFFSET: Final = 16 * 1024 * 1024
"""Where data begins, in bytes: `luksFormat --offset 32768` counts sectors of 512."""

CIPHER: Final = "aes-xts-plain64"
KEY_BYTES: Final = 64
"""AES-256 in XTS takes two keys."""

PRIMARY_MAGIC: Final = b"LUKS\xba\xbe"
_SECONDARY_MAGIC: Final = b"SKUL\xba\xbe"
_BINARY: Final = 4096
_VERSION: Final = 2
_SIZES: Final = tuple(1 << shift for shift in range(14, 23))  # 16 KiB to 4 MiB, as the format allows
_CHECKSUM_AT: Final = 448
_CHECKSUM_FIELD: Final = 64
_MAX_DEPTH: Final = 8
_MIN_ITERATIONS: Final = 1000  # of PBKDF2, as the standard has it; the passphrase has 256 bits anyway
_STRIPES: Final = 4000
_SECTORS: Final = (512, 1024, 2048, 4096)

_Hash = Literal["sha256", "sha512"]
_Decimal = Annotated[str, msgspec.Meta(pattern="^(0|[1-9][0-9]{0,18})$")]
_Iterations = Annotated[int, msgspec.Meta(ge=_MIN_ITERATIONS, le=2**31 - 1)]


class _Exact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field that is not known here could mean anything."""


class _AntiForensic(_Exact, frozen=True):
    type: Literal["luks1"]
    stripes: Literal[4000]
    hash: _Hash


class _Area(_Exact, frozen=True):
    type: Literal["raw"]
    offset: _Decimal
    size: _Decimal
    encryption: Literal["aes-xts-plain64"]
    key_size: Literal[64]


class _Kdf(_Exact, frozen=True):
    type: Literal["pbkdf2"]
    hash: _Hash
    iterations: _Iterations
    salt: str


class _Keyslot(_Exact, frozen=True):
    type: Literal["luks2"]
    key_size: Literal[64]
    af: _AntiForensic
    area: _Area
    kdf: _Kdf


class _Segment(_Exact, frozen=True):
    type: Literal["crypt"]
    offset: _Decimal
    size: Literal["dynamic"]
    iv_tweak: Literal["0"]
    encryption: Literal["aes-xts-plain64"]
    sector_size: int


class _Digest(_Exact, frozen=True):
    type: Literal["pbkdf2"]
    keyslots: tuple[Literal["0"]]
    segments: tuple[Literal["0"]]
    hash: _Hash
    iterations: _Iterations
    salt: str
    digest: str


class _Config(_Exact, frozen=True):
    json_size: _Decimal
    keyslots_size: _Decimal


class _Metadata(_Exact, frozen=True):
    keyslots: dict[Literal["0"], _Keyslot]
    tokens: dict[str, Any]
    segments: dict[Literal["0"], _Segment]
    digests: dict[Literal["0"], _Digest]
    config: _Config


class LuksHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid header leaves open: one copy's size in bytes, its sequence number, the volume's uuid."""

    size: int
    sequence: int
    uuid: str


def has_luks_magic(start: bytes) -> bool:
    """Say whether a disk that begins with these bytes claims to be a LUKS volume."""
    return start.startswith(PRIMARY_MAGIC)


def check_luks_header(raw: bytes) -> LuksHeader:
    """Judge the first `PAYLOAD_OFFSET` bytes of a disk.

    1. both copies are whole: magic, version 2, place, size, SHA-256, and nothing behind the JSON;
    2. neither has a label or a subsystem, and both tell the same: a copy that differs is a choice for
       whoever reads it;
    3. the JSON has one keyslot, one segment and one digest that belong together, and no tokens, flags,
       requirements or fields that are not known;
    4. both the data and the key area are AES-256-XTS with plain64, the key is stretched by PBKDF2;
    5. the key area lies between the two copies and the data, which begin at `PAYLOAD_OFFSET`.

    Raises `InvalidEvidence`: `luks.size`, `luks.magic`, `luks.version`, `luks.layout`, `luks.label`,
    `luks.checksum`, `luks.copies`, `luks.json`, `luks.metadata`, `luks.area`.
    """
    if len(raw) != PAYLOAD_OFFSET:
        raise _refuse("luks.size", f"has {len(raw)} bytes, expected {PAYLOAD_OFFSET}")
    size = int.from_bytes(raw[8:16])
    if size not in _SIZES:
        raise _refuse(
            "luks.layout", f"claims copies of {size} bytes, expected a power of two from 16 KiB to 4 MiB"
        )
    first = _copy(raw[:size], PRIMARY_MAGIC, at=0)
    second = _copy(raw[size : 2 * size], _SECONDARY_MAGIC, at=size)
    if first != second:
        raise _refuse("luks.copies", "has two copies that tell different things, expected equal ones")
    sequence, uuid, text = first
    _check_metadata(_metadata(text), size)
    return LuksHeader(size=size, sequence=sequence, uuid=uuid)


def _copy(copy: bytes, magic: bytes, *, at: int) -> tuple[int, str, bytes]:
    """Return sequence number, uuid and JSON of one copy, which lies at `at`."""
    if copy[:6] != magic:
        raise _refuse("luks.magic", f"has no copy at {at}")
    if (version := int.from_bytes(copy[6:8])) != _VERSION:
        raise _refuse("luks.version", f"is of version {version}, expected {_VERSION}")
    if int.from_bytes(copy[8:16]) != len(copy) or int.from_bytes(copy[256:264]) != at:
        raise _refuse("luks.layout", f"has a copy at {at} that names another size or place")
    if any(copy[24:72]) or any(copy[208:256]):
        raise _refuse("luks.label", "has a label or a subsystem, expected neither")
    if copy[72:104] != b"sha256".ljust(32, b"\0"):
        raise _refuse("luks.checksum", "has another checksum than sha256")
    blank = copy[:_CHECKSUM_AT] + bytes(_CHECKSUM_FIELD) + copy[_CHECKSUM_AT + _CHECKSUM_FIELD :]
    expected = hashlib.sha256(blank).digest().ljust(_CHECKSUM_FIELD, b"\0")
    if not hmac.compare_digest(copy[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_FIELD], expected):
        raise _refuse("luks.checksum", f"has a copy at {at} with a wrong checksum")
    if any(copy[264:_CHECKSUM_AT]) or any(copy[_CHECKSUM_AT + _CHECKSUM_FIELD : _BINARY]):
        raise _refuse("luks.layout", "has bytes where nothing belongs")
    text, _, rest = copy[_BINARY:].partition(b"\0")
    if any(rest) or len(text) == len(copy) - _BINARY:
        raise _refuse("luks.json", "has bytes behind its json, or no end of it")
    uuid = copy[168:208].rstrip(b"\0")
    if not uuid.isascii() or b"\0" in uuid:
        raise _refuse("luks.layout", "has a uuid that is no text")
    return int.from_bytes(copy[16:24]), uuid.decode(), text


def _metadata(text: bytes) -> _Metadata:
    try:
        document = decode_json(
            text, what="the luks metadata", code="luks.json", max_bytes=_SIZES[-1], max_depth=_MAX_DEPTH
        )
    except ProtocolError as error:
        raise _refuse("luks.json", f"has no strict json: {error.message}") from error
    try:
        return msgspec.convert(document, _Metadata)
    except msgspec.ValidationError as error:
        raise _refuse("luks.metadata", f"says other than this guest's own: {str(error)[:160]!a}") from error


def _check_metadata(metadata: _Metadata, size: int) -> None:
    counts = (len(metadata.keyslots), len(metadata.segments), len(metadata.digests), len(metadata.tokens))
    if counts != (1, 1, 1, 0):
        raise _refuse(
            "luks.metadata",
            f"has {counts} keyslots, segments, digests and tokens, expected one each and no token",
        )
    slot, segment, digest = metadata.keyslots["0"], metadata.segments["0"], metadata.digests["0"]
    if segment.sector_size not in _SECTORS:
        raise _refuse("luks.metadata", f"has sectors of {segment.sector_size} bytes, expected 512 to 4096")
    for encoded in (slot.kdf.salt, digest.salt, digest.digest):
        _check_base64(encoded)
    if int(segment.offset) != PAYLOAD_OFFSET:
        raise _refuse("luks.area", f"puts the data at {segment.offset}, expected {PAYLOAD_OFFSET}")
    begin, length, slots = int(slot.area.offset), int(slot.area.size), int(metadata.config.keyslots_size)
    if int(metadata.config.json_size) != size - _BINARY or 2 * size + slots != PAYLOAD_OFFSET:
        raise _refuse("luks.area", "claims other sizes of its json or key area than the layout gives")
    if begin < 2 * size or length < KEY_BYTES * _STRIPES or begin + length > PAYLOAD_OFFSET:
        raise _refuse("luks.area", f"has a keyslot at {begin} of {length} bytes, outside of the key area")


def _check_base64(text: str) -> None:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refuse("luks.metadata", "has a salt or digest that is not base64") from error
    if not 0 < len(content) <= _CHECKSUM_FIELD:
        raise _refuse("luks.metadata", "has a salt or digest of another length than 1 to 64 bytes")


def _refuse(code: str, message: str) -> InvalidEvidence:
    return InvalidEvidence(code, f"the luks header of the data disk {message}")
