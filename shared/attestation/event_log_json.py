"""TDX event logs as JSON text, plain or compressed (spec attestation 1.7, 2.3, 3.3)."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from shared.attestation.envelope import RuntimeEvent, TdxEvent
from shared.attestation.event_log import (
    MAX_EVENTS,
    RUNTIME_RTMR,
    event_digest,
    event_preimage,
    is_acpi_marker,
)
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

# A real log has 20 KiB. Firmware variables are the largest payloads, a few KiB each.
MAX_JSON: Final = 2 * 1024 * 1024
# Upstream's cap of a log in a certificate, which is compressed so that TLS stacks take the certificate.
MAX_EXPANDED: Final = 16384

_COMPRESSED: Final = b"ELGZv1"
_GZIP: Final = 31  # zlib's window bits for a gzip header and trailer, and no other format

_U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]


class _JsonEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    imr: _U32
    event_type: _U32
    digest: str = ""
    event: str
    event_payload: str
    version: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    preimage: str | msgspec.UnsetType = msgspec.UNSET


def parse_event_log_json(text: str | bytes) -> tuple[TdxEvent, ...]:
    """Parse a JSON event log: an array of events, byte values in bare hex.

    Raises `InvalidEvidence`: `event_log.size`, `event_log.syntax`, `event_log.duplicate_key`,
    `event_log.depth`, `event_log.fields` for a missing or unknown field or one of another type or range,
    `event_log.count`, `event_log.hex`, `event_log.name`.
    """
    try:
        raw = text.encode() if isinstance(text, str) else text
        found = decode_json(raw, what="event log", code="event_log", max_bytes=MAX_JSON, max_depth=2)
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error
    except UnicodeEncodeError as error:
        raise InvalidEvidence("event_log.syntax", "event log is not utf-8 json") from error
    if isinstance(found, list) and len(found) > MAX_EVENTS:
        raise InvalidEvidence(
            "event_log.count", f"event log has {len(found)} events, at most {MAX_EVENTS} are read"
        )
    try:
        events = msgspec.convert(found, type=list[_JsonEvent])
    except msgspec.ValidationError as error:
        raise InvalidEvidence("event_log.fields", "event log is not an array of tdx events") from error
    return tuple(map(_event, events))


def _event(event: _JsonEvent) -> TdxEvent:
    if not event.event.isascii():
        # json can spell half a surrogate pair, which no event has
        event_preimage(RuntimeEvent(event.event, b""))
    return TdxEvent(
        imr=event.imr,
        event_type=event.event_type,
        digest=_bytes(event.digest, "digest"),
        event=event.event,
        event_payload=_bytes(event.event_payload, "event_payload"),
        version=event.version,
        preimage=None if event.preimage is msgspec.UNSET else _bytes(event.preimage, "preimage"),
    )


def _bytes(text: str, what: str) -> bytes:
    try:
        return decode_hex(text, what=f"{what} of an event", prefix=False)
    except ProtocolError as error:
        raise InvalidEvidence("event_log.hex", error.message) from error


def event_log_json(events: Sequence[TdxEvent]) -> str:
    """Return an event log as JSON text, the inverse of `parse_event_log_json`."""
    return msgspec.json.encode([event_fields(event) for event in events]).decode()


def event_fields(event: TdxEvent) -> dict[str, Any]:
    """Return one event as a JSON object."""
    fields: dict[str, Any] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.digest.hex(),
        "event": event.event,
        "event_payload": event.event_payload.hex(),
    }
    if event.version != 1:
        fields["version"] = event.version
    if event.preimage is not None:
        fields["preimage"] = event.preimage.hex()
    return fields


def getquote_log(events: Sequence[TdxEvent], *, keep_digests: bool = False) -> tuple[TdxEvent, ...]:
    """Return an event log as GetQuote gives it: every event, without the payloads of RTMR0 to RTMR2.

    ACPI markers keep theirs. A runtime event of version 1 loses its digest, which can be recomputed, or with
    `keep_digests` has it: released SDKs replay digests, and do not recompute any. One of version 2 gets
    digest and preimage, because verifiers demand both (upstream leaves the digest out, and its own verifier
    then refuses the log).
    """
    return tuple(_reduced(event, keep_digests=keep_digests) for event in events)


def _reduced(event: TdxEvent, *, keep_digests: bool) -> TdxEvent:
    if event.imr != RUNTIME_RTMR:
        payload = event.event_payload if is_acpi_marker(event) else b""
        return msgspec.structs.replace(event, event_payload=payload)
    runtime = RuntimeEvent(event.event, event.event_payload, event.version)
    if event.version == 1:
        digest = event_digest(runtime, "sha384") if keep_digests else b""
        return msgspec.structs.replace(event, digest=digest)
    return msgspec.structs.replace(
        event, digest=event_digest(runtime, "sha384"), preimage=event_preimage(runtime)
    )


def expand_event_log(data: bytes) -> bytes:
    """Return the JSON text of a log that a certificate carries, decompressed where it is compressed.

    Never more than `MAX_EXPANDED` bytes are decompressed. Raises `InvalidEvidence`: `event_log.gzip` for
    what is not exactly one gzip stream, `event_log.gzip.size`.
    """
    if not data.startswith(_COMPRESSED):
        return data
    import zlib  # noqa: PLC0415 - only old certificates need it

    stream = zlib.decompressobj(_GZIP)
    try:
        text = stream.decompress(data[len(_COMPRESSED) :], MAX_EXPANDED + 1)
    except zlib.error as error:
        raise InvalidEvidence("event_log.gzip", "compressed event log is not gzip") from error
    if len(text) > MAX_EXPANDED:
        raise InvalidEvidence("event_log.gzip.size", f"event log expands to more than {MAX_EXPANDED} bytes")
    if not stream.eof or stream.unused_data:
        raise InvalidEvidence("event_log.gzip", "compressed event log is not exactly one gzip stream")
    return text
