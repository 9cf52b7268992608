"""Runtime events and TDX event logs: digests, replay, and what the events say (spec attestation 3.3-3.5).

A digest of a runtime event is always recomputed from name and payload: believing the digest that a log
carries would let whoever presents the log rename its events.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from shared.attestation.envelope import RuntimeEvent, TdxEvent
from shared.attestation.scale import MAX_ITEMS
from shared.errors import InvalidEvidence

RUNTIME_EVENT_TYPE: Final = 0x08000001
# A guest reports about a dozen events and firmware thirty; apps add theirs. Both envelopes and the JSON log
# take as many, so a replay never starts on more.
MAX_EVENTS: Final = MAX_ITEMS
# More scripts than upstream's guest accepts in one app-compose.
MAX_INIT_SCRIPTS: Final = 5

RUNTIME_RTMR: Final = 3
ACPI_EVENT_TYPE: Final = 10
ACPI_PAYLOAD: Final = b"ACPI DATA"

Algorithm = Literal["sha384", "sha256"]

_HASHES: Final[dict[str, Callable[[bytes], "hashlib._Hash"]]] = {
    "sha384": hashlib.sha384,
    "sha256": hashlib.sha256,
}
_TYPE_BYTES: Final = RUNTIME_EVENT_TYPE.to_bytes(4, "little")

_BOOT_MR_DONE: Final = "boot-mr-done"
_SYSTEM_READY: Final = "system-ready"
_INIT_SCRIPT: Final = "init-script-hash"
# Events that a guest reports once before system-ready, and the payload lengths they may have (None: any).
_ONCE: Final[dict[str, tuple[int, ...] | None]] = {
    "system-preparing": None,
    "app-id": (20,),
    "compose-hash": (32,),
    "gpu-policy-hash": (32,),
    "gpu-attestation": None,
    "instance-id": (0, 20),
    _BOOT_MR_DONE: None,
    "os-image-hash": None,
    "key-provider": None,
    "storage-fs": None,
}
# Events that the boot-time registers cover, so that none may come after their boundary.
_BOOT_TIME: Final = frozenset({"app-id", "compose-hash", "gpu-policy-hash", "instance-id", _INIT_SCRIPT})


class SystemEvents(msgspec.Struct, frozen=True):
    """What the guest itself reported before `system-ready`; b"" stands for an event that is absent.

    `key_provider`, `gpu_attestation` are JSON texts, `storage_fs` a name. `boot_mr_done` and `system_ready`
    say whether these boundaries are in the log.
    """

    app_id: bytes = b""
    compose_hash: bytes = b""
    instance_id: bytes = b""
    key_provider: bytes = b""
    init_script_hashes: tuple[bytes, ...] = ()
    os_image_hash: bytes = b""
    gpu_policy_hash: bytes = b""
    gpu_attestation: bytes = b""
    storage_fs: bytes = b""
    boot_mr_done: bool = False
    system_ready: bool = False


def event_preimage(event: RuntimeEvent) -> bytes:
    """Return the bytes that an event's digest is the hash of (section 3.4).

    Raises `InvalidEvidence`: `event_log.version`, and `event_log.name` for a name that is not valid Unicode.
    """
    try:
        name = event.event.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvidence("event_log.name", "an event name holds half a surrogate pair") from error
    if event.version == 1:
        return _TYPE_BYTES + b":" + name + b":" + event.payload
    if event.version == 2:
        # RFC 8785: keys sorted, no spaces, and text escaped as msgspec escapes it
        fields = {"name": event.event, "payload": event.payload.hex(), "type": RUNTIME_EVENT_TYPE}
        return msgspec.json.encode(fields)
    raise InvalidEvidence("event_log.version", f"event version is {event.version}, expected 1 or 2")


def event_digest(event: RuntimeEvent, algorithm: Algorithm) -> bytes:
    """Return the digest of an event: SHA-384 for RTMR3 and AWS PCR14, SHA-256 for GCP PCR14.

    Raises what `event_preimage` raises.
    """
    return _HASHES[algorithm](event_preimage(event)).digest()


def replay(events: Sequence[RuntimeEvent], algorithm: Algorithm, *, boot_time: bool = False) -> bytes:
    """Return the register that these events extend, from zero; `boot_time` stops after `boot-mr-done`.

    Raises `InvalidEvidence`: `event_log.count`, and what `event_preimage` raises.
    """
    _check_count(events)
    if boot_time:
        names = [event.event for event in events]
        events = events[: names.index(_BOOT_MR_DONE) + 1] if _BOOT_MR_DONE in names else events
    return replay_digests((event_digest(event, algorithm) for event in events), algorithm)


def replay_digests(digests: Iterable[bytes], algorithm: Algorithm) -> bytes:
    """Return the register that these digests extend, from zero.

    Raises `InvalidEvidence("event_log.digest")` for a digest of another length than the algorithm's.
    """
    new = _HASHES[algorithm]
    register = bytes(new(b"").digest_size)
    for digest in digests:
        if len(digest) != len(register):
            raise InvalidEvidence(
                "event_log.digest", f"an event's digest has {len(digest)} bytes, expected {len(register)}"
            )
        register = new(register + digest).digest()
    return register


def system_events(events: Sequence[RuntimeEvent]) -> SystemEvents:
    """Return what the guest reported about itself: the events before the first `system-ready`.

    An app can emit any event, but only after that one. The caller decides what may be absent, and owes the
    replay that proves the events. Raises `InvalidEvidence`: `event_log.count`, `event_log.duplicate`,
    `event_log.length` for a payload of the wrong size, `event_log.init_scripts`, `event_log.order` for an
    identity event behind `boot-mr-done`, and `event_log.name` for a name with a colon: version 1 hashes
    `name:payload`, and with such names one digest would stand for two events.
    """
    _check_count(events)
    seen: dict[str, bytes] = {}
    scripts: list[bytes] = []
    ready = False
    for event in events:
        name, payload = event.event, event.payload
        if ready := name == _SYSTEM_READY:
            break
        if ":" in name:
            raise InvalidEvidence("event_log.name", f"system event {name[:64]!r} has a colon in its name")
        if name in _BOOT_TIME and _BOOT_MR_DONE in seen:
            raise InvalidEvidence("event_log.order", f"event {name} comes after {_BOOT_MR_DONE}")
        if name == _INIT_SCRIPT:
            _check_length(name, payload, (32,))
            scripts.append(payload)
        elif name in _ONCE:
            if name in seen:
                raise InvalidEvidence("event_log.duplicate", f"event {name} occurs twice before system-ready")
            _check_length(name, payload, _ONCE[name])
            seen[name] = payload
    if len(scripts) > MAX_INIT_SCRIPTS:
        raise InvalidEvidence(
            "event_log.init_scripts", f"log has {len(scripts)} init scripts, at most {MAX_INIT_SCRIPTS} run"
        )
    return SystemEvents(
        app_id=seen.get("app-id", b""),
        compose_hash=seen.get("compose-hash", b""),
        instance_id=seen.get("instance-id", b""),
        key_provider=seen.get("key-provider", b""),
        init_script_hashes=tuple(scripts),
        os_image_hash=seen.get("os-image-hash", b""),
        gpu_policy_hash=seen.get("gpu-policy-hash", b""),
        gpu_attestation=seen.get("gpu-attestation", b""),
        storage_fs=seen.get("storage-fs", b""),
        boot_mr_done=_BOOT_MR_DONE in seen,
        system_ready=ready,
    )


def runtime_events_of(tdx_events: Sequence[TdxEvent]) -> tuple[RuntimeEvent, ...]:
    """Return the runtime events of a TDX event log, in order."""
    return tuple(
        RuntimeEvent(event.event, event.event_payload, event.version)
        for event in tdx_events
        if event.imr == RUNTIME_RTMR
    )


def check_event_lists(tdx_events: Sequence[TdxEvent], runtime_events: Sequence[RuntimeEvent]) -> None:
    """Check that a TDX event log and the runtime events tell one story.

    1. Every event is of RTMR0 to RTMR3, and the runtime event type is on RTMR3 and nowhere else.
    2. The events of RTMR3 are the runtime events: same names, payloads, versions and order.
    3. A digest that the log carries for one is the digest of its name and payload.
    4. One of version 2 carries both its digest and its canonical preimage, or neither: the stripped form
       drops both, and the replay recomputes them. One of the two alone is refused, as upstream does.

    Raises `InvalidEvidence`: `event_log.count`, `event_log.register`, `event_log.type`,
    `event_log.disagree`, `event_log.digest`, `event_log.preimage`, and those of `event_preimage`.
    """
    _check_count(tdx_events)
    _check_count(runtime_events)
    for event in tdx_events:
        if event.imr > RUNTIME_RTMR:
            raise InvalidEvidence(
                "event_log.register", f"an event is of register {event.imr}, expected 0 to {RUNTIME_RTMR}"
            )
        if (event.event_type == RUNTIME_EVENT_TYPE) != (event.imr == RUNTIME_RTMR):
            raise InvalidEvidence(
                "event_log.type", f"an event of RTMR{event.imr} has the type {event.event_type:#x}"
            )
    if runtime_events_of(tdx_events) != tuple(runtime_events):
        raise InvalidEvidence(
            "event_log.disagree", "RTMR3 events of the event log and the runtime events are different lists"
        )
    for event in tdx_events:
        _check_hashed(event)


def _check_hashed(event: TdxEvent) -> None:
    if event.imr != RUNTIME_RTMR or event.version == 1:
        if event.preimage is not None:
            raise InvalidEvidence(
                "event_log.preimage", "an event has a preimage, only runtime events of version 2 have one"
            )
        if event.imr != RUNTIME_RTMR or not event.digest:
            return
    elif not event.digest and event.preimage is None:
        return
    preimage = event_preimage(RuntimeEvent(event.event, event.event_payload, event.version))
    if event.version == 2 and event.preimage != preimage:
        raise InvalidEvidence(
            "event_log.preimage", f"event {event.event[:64]!r} lacks its canonical preimage or has another"
        )
    if hashlib.sha384(preimage).digest() != event.digest:
        raise InvalidEvidence(
            "event_log.digest", f"event {event.event[:64]!r} has another digest than its name and payload"
        )


def replay_registers(tdx_events: Sequence[TdxEvent]) -> dict[int, bytes]:
    """Replay RTMR0 to RTMR2, those whose log is complete; the caller compares them with the quote.

    The stripped form keeps nothing of a register but ACPI markers, which do not make a log complete. Raises
    `InvalidEvidence`: `event_log.count`, and `event_log.digest` for one that is not 48 bytes.
    """
    _check_count(tdx_events)
    logs: dict[int, list[TdxEvent]] = {}
    for event in tdx_events:
        if event.imr < RUNTIME_RTMR:
            logs.setdefault(event.imr, []).append(event)
    return {
        imr: replay_digests((event.digest for event in log), "sha384")
        for imr, log in logs.items()
        if not all(map(is_acpi_marker, log))
    }


def is_acpi_marker(event: TdxEvent) -> bool:
    """Say whether this is one of the three RTMR0 events that the stripped form keeps."""
    return event.imr == 0 and event.event_type == ACPI_EVENT_TYPE and event.event_payload == ACPI_PAYLOAD


def _check_count(events: Sequence[object]) -> None:
    if len(events) > MAX_EVENTS:
        raise InvalidEvidence(
            "event_log.count", f"event log has {len(events)} events, at most {MAX_EVENTS} are replayed"
        )


def _check_length(name: str, payload: bytes, lengths: tuple[int, ...] | None) -> None:
    if lengths is not None and len(payload) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise InvalidEvidence("event_log.length", f"event {name} has {len(payload)} bytes, expected {wanted}")
