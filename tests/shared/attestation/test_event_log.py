import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.attestation import event_log
from shared.attestation.envelope import RuntimeEvent, TdxEvent, TdxQuote, decode_envelope
from shared.attestation.event_log import (
    MAX_EVENTS,
    RUNTIME_EVENT_TYPE,
    Algorithm,
    SystemEvents,
    check_event_lists,
    event_digest,
    event_preimage,
    replay,
    replay_digests,
    replay_registers,
    runtime_events_of,
    system_events,
)
from shared.attestation.event_log_json import parse_event_log_json
from tests.shared.attestation.forgery import refuses
from tests.shared.refusal import Unread

APP_ID, COMPOSE, INSTANCE = b"\x11" * 20, b"\x22" * 32, b"\x33" * 20
PROVIDER = b'{"name":"none","id":""}'
# The replay ladder of section 3.4.
LADDER = (
    RuntimeEvent("system-preparing", b""),
    RuntimeEvent("app-id", APP_ID),
    RuntimeEvent("compose-hash", COMPOSE),
    RuntimeEvent("instance-id", INSTANCE),
    RuntimeEvent("boot-mr-done", b""),
    RuntimeEvent("key-provider", PROVIDER),
    RuntimeEvent("storage-fs", b"zfs"),
    RuntimeEvent("system-ready", b""),
)
READY = {
    "sha384": "c0b5f2e230f7c59b03b7d0772fd15864d66e7a05f3e6569a0f843f51b6590260"
    "fe53d7c79e60d0be171b9db7cca8401f",
    "sha256": "fbf34f914d21a175e263e50f3b2a402256f4d53e17168b021ba52b548c1094b9",
}
BOOT = {
    "sha384": "51e6737cc37085e270f04c1719caf0bb97a2d7e4396f570793ce9d61da7672cf"
    "eb07f01e154cb615295785002e931c47",
    "sha256": "7fe1b361f417bb100d717a6b75c99e079eb58976a6322414224f75d903de0c1d",
}
ALGORITHMS: tuple[Algorithm, ...] = ("sha384", "sha256")


def logged(event: RuntimeEvent, *, stripped: bool = False) -> TdxEvent:
    """Return a runtime event as an event log carries it."""
    digest = b"" if stripped else event_digest(event, "sha384")
    preimage = event_preimage(event) if event.version == 2 and not stripped else None
    return TdxEvent(3, RUNTIME_EVENT_TYPE, digest, event.event, event.payload, event.version, preimage)


# ---- digests


@pytest.mark.parametrize(
    ("event", "digest"),
    [
        (
            RuntimeEvent("system-preparing", b""),
            (
                "f9974020ef507068183313d0ca808e0d1ca9b2d1ad0c61f5784e7157c362c065"
                "36f5ddacdad4451693f48fcc72fff624"
            ),
        ),
        (
            RuntimeEvent("boot-mr-done", b""),
            (
                "98bd7e6bd3952720b65027fd494834045d06b4a714bf737a06b874638b3ea00f"
                "f402f7f583e3e3b05e921c8570433ac6"
            ),
        ),
        (
            RuntimeEvent("system-ready", b""),
            (
                "1a76b2a80a0be71eae59f80945d876351a7a3fb8e9fd1ff1cede5734aa84ea11"
                "fd72b4edfbb6f04e5a85edd114c751bd"
            ),
        ),
        (
            RuntimeEvent("compose-hash", b"\xab\xcd", 2),
            (
                "9dde1673f544faa94b921825209593ddde08d0baf9cd6990175dffaf3081f1bb"
                "10311d56de189491feb33842a050ad7b"
            ),
        ),
    ],
)
def test_digests_are_as_published(event: RuntimeEvent, digest: str) -> None:
    assert event_digest(event, "sha384").hex() == digest


def test_version_2_hashes_its_canonical_json() -> None:
    event = RuntimeEvent('a"\\\b\t\n\f\r\x00\x1f\x7f/é\u2028😀', b"\xab", 2)
    text = '{"name":"a\\"\\\\\\b\\t\\n\\f\\r\\u0000\\u001f\x7f/é\u2028😀","payload":"ab","type":134217729}'
    assert event_preimage(event) == text.encode()
    assert event_digest(event, "sha256") == hashlib.sha256(text.encode()).digest()


def test_every_character_is_escaped_as_rfc_8785_says() -> None:
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    escaped = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    for code in range(0x20):
        escaped.setdefault(code, f"\\u{code:04x}")
    name = characters.translate(escaped)
    text = f'{{"name":"{name}","payload":"","type":134217729}}'
    assert event_preimage(RuntimeEvent(characters, b"", 2)) == text.encode()


@given(st.text(max_size=30), st.binary(max_size=30))
def test_the_canonical_json_is_that_event(name: str, payload: bytes) -> None:
    parsed = json.loads(event_preimage(RuntimeEvent(name, payload, 2)))
    assert parsed == {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT_TYPE}


@pytest.mark.parametrize("version", [0, 3])
def test_n05_refuses_an_unknown_event_version(version: int) -> None:
    with refuses("event_log.version"):
        event_digest(RuntimeEvent("e", b"", version), "sha384")


def test_n06_refuses_a_name_that_is_not_unicode() -> None:
    with refuses("event_log.name"):
        event_digest(RuntimeEvent("\ud800", b""), "sha384")


# ---- replay


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_ladder_replays_as_published(algorithm: Algorithm) -> None:
    assert replay(LADDER, algorithm).hex() == READY[algorithm]
    assert replay(LADDER, algorithm, boot_time=True).hex() == BOOT[algorithm]
    assert replay(LADDER[:5], algorithm, boot_time=True).hex() == BOOT[algorithm]


def test_boot_time_replay_without_the_boundary_takes_every_event() -> None:
    assert replay(LADDER[:3], "sha384", boot_time=True) == replay(LADDER[:3], "sha384")


def test_no_events_replay_to_zero() -> None:
    assert replay((), "sha384") == bytes(48)
    assert replay_digests((), "sha256") == bytes(32)


@given(st.permutations(LADDER))
def test_n09_another_order_replays_to_another_register(events: Sequence[RuntimeEvent]) -> None:
    assert (replay(events, "sha384").hex() == READY["sha384"]) == (tuple(events) == LADDER)


@pytest.mark.parametrize("at", range(len(LADDER)))
def test_n09_a_missing_or_repeated_event_replays_to_another_register(at: int) -> None:
    for events in (LADDER[:at] + LADDER[at + 1 :], LADDER[: at + 1] + LADDER[at:]):
        assert replay(events, "sha384").hex() != READY["sha384"]


def test_a_digest_of_another_length_is_refused() -> None:
    for digest in (b"", bytes(32), bytes(49)):
        with refuses("event_log.digest"):
            replay_digests([bytes(48), digest], "sha384")


def test_n10_a_hundred_thousand_events_are_refused_before_any_hashing() -> None:
    events, tdx = Unread(100_000), Unread(100_000)
    for refused in (
        lambda: replay(events, "sha384"),
        lambda: system_events(events),
        lambda: check_event_lists([], events),
        lambda: check_event_lists(tdx, []),
        lambda: replay_registers(tdx),
    ):
        with refuses("event_log.count"):
            refused()


def test_n10_the_longest_log_is_replayed_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(data: bytes) -> Any:
        hashed.append(len(data))
        return hashlib.sha384(data)

    monkeypatch.setitem(event_log._HASHES, "sha384", counting)
    for count in (1, MAX_EVENTS):
        hashed.clear()
        replay([RuntimeEvent("e", bytes(100))] * count, "sha384")
        assert len(hashed) == 1 + 2 * count
        assert max(hashed) < 200


# ---- system events


def test_system_events_are_those_before_system_ready() -> None:
    extra = (
        RuntimeEvent("init-script-hash", b"\x44" * 32),
        RuntimeEvent("init-script-hash", b"\x55" * 32),
        RuntimeEvent("gpu-policy-hash", b"\x66" * 32),
        RuntimeEvent("gpu-attestation", b"{}"),
    )
    late = RuntimeEvent("os-image-hash", b"\x77" * 32)
    assert system_events(LADDER[:3] + extra + LADDER[3:6] + (late,) + LADDER[6:]) == SystemEvents(
        app_id=APP_ID,
        compose_hash=COMPOSE,
        instance_id=INSTANCE,
        key_provider=PROVIDER,
        init_script_hashes=(b"\x44" * 32, b"\x55" * 32),
        os_image_hash=b"\x77" * 32,
        gpu_policy_hash=b"\x66" * 32,
        gpu_attestation=b"{}",
        storage_fs=b"zfs",
        boot_mr_done=True,
        system_ready=True,
    )


def test_absent_events_are_empty() -> None:
    assert system_events(()) == SystemEvents()
    assert system_events((RuntimeEvent("anything", b"x"),)) == SystemEvents()


@pytest.mark.parametrize("name", ["app-id", "compose-hash", "instance-id", "key-provider", "os-image-hash"])
def test_n09_an_event_after_system_ready_never_wins(name: str) -> None:
    late = (RuntimeEvent(name, b"\x99" * 7), RuntimeEvent("app:event", b""))
    assert system_events(LADDER + late) == system_events(LADDER)
    assert system_events(LADDER[-1:] + late) == SystemEvents(system_ready=True)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("system-preparing", b""),
        ("app-id", APP_ID),
        ("compose-hash", COMPOSE),
        ("gpu-policy-hash", COMPOSE),
        ("gpu-attestation", b"{}"),
        ("instance-id", b""),
        ("os-image-hash", b""),
        ("key-provider", b""),
        ("storage-fs", b"ext4"),
        ("boot-mr-done", b""),
    ],
)
def test_n09_refuses_a_second_system_event(name: str, payload: bytes) -> None:
    event = RuntimeEvent(name, payload)
    with refuses("event_log.duplicate"):
        system_events((event, RuntimeEvent("between", b""), event))


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *(("app-id", 0), ("app-id", 19), ("app-id", 21)),
        *(("compose-hash", 0), ("compose-hash", 31), ("compose-hash", 33)),
        *(("instance-id", 1), ("instance-id", 19), ("instance-id", 21)),
        *(("init-script-hash", 0), ("init-script-hash", 31), ("gpu-policy-hash", 31)),
    ],
)
def test_refuses_a_system_event_of_another_length(name: str, length: int) -> None:
    with refuses("event_log.length"):
        system_events((RuntimeEvent(name, bytes(length)),))


def test_an_instance_id_may_be_empty() -> None:
    assert system_events((RuntimeEvent("instance-id", b""),)).instance_id == b""


def test_n10_refuses_more_init_scripts_than_a_guest_runs() -> None:
    script = RuntimeEvent("init-script-hash", bytes(32))
    assert len(system_events([script] * 5).init_script_hashes) == 5
    with refuses("event_log.init_scripts"):
        system_events([script] * 6)


@pytest.mark.parametrize(
    "name", ["app-id", "compose-hash", "instance-id", "init-script-hash", "gpu-policy-hash"]
)
def test_n09_refuses_an_identity_behind_the_boot_boundary(name: str) -> None:
    with refuses("event_log.order"):
        system_events((RuntimeEvent("boot-mr-done", b""), RuntimeEvent(name, APP_ID)))


def test_n09_refuses_a_system_event_renamed_by_a_colon() -> None:
    """In version 1 the name `app-id:x` and payload `y` hash like the name `app-id` and payload `x:y`."""
    real, shown = RuntimeEvent("app-id", b"x:" + bytes(18)), RuntimeEvent("app-id:x", bytes(18))
    assert event_digest(real, "sha384") == event_digest(shown, "sha384")
    with refuses("event_log.name"):
        system_events((shown,))


# ---- two lists


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_log_that_tells_the_same_story_passes(version: int, *, stripped: bool) -> None:
    events = tuple(RuntimeEvent(event.event, event.payload, version) for event in LADDER)
    boot = (TdxEvent(0, 4, bytes(48), "", b"x"), TdxEvent(1, 4, b"", "", b""))
    log = boot + tuple(logged(event, stripped=stripped) for event in events)
    check_event_lists(log, events)
    assert runtime_events_of(log) == events


def test_n07_refuses_two_lists_that_disagree() -> None:
    log = [logged(event) for event in LADDER]
    for events in (
        LADDER[:-1],
        LADDER + LADDER[-1:],
        LADDER[1:2] + LADDER[:1] + LADDER[2:],
        (RuntimeEvent("renamed", b""), *LADDER[1:]),
        (LADDER[0], RuntimeEvent("app-id", b"\x12" * 20), *LADDER[2:]),
        (RuntimeEvent("system-preparing", b"", 2), *LADDER[1:]),
        (),
    ):
        with refuses("event_log.disagree"):
            check_event_lists(log, events)


def change(event: TdxEvent, /, **fields: object) -> tuple[TdxEvent, ...]:
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    return (TdxEvent(**{**values, **fields}),)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [1, 2])
def test_n08_refuses_a_payload_or_name_altered_under_a_right_digest(version: int) -> None:
    event = logged(RuntimeEvent("app-id", APP_ID, version))
    code = "event_log.digest" if version == 1 else "event_log.preimage"
    for log in (change(event, event_payload=b"\x12" * 20), change(event, event="app-ie")):
        with refuses(code):
            check_event_lists(log, runtime_events_of(log))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("digest", [bytes(48), bytes(32), b"\x00"])
def test_n08_refuses_a_digest_altered_over_a_right_payload(version: int, digest: bytes) -> None:
    log = change(logged(RuntimeEvent("app-id", APP_ID, version)), digest=digest)
    with refuses("event_log.digest"):
        check_event_lists(log, runtime_events_of(log))


def test_n08_refuses_a_version_2_event_with_a_digest_and_no_preimage() -> None:
    log = change(logged(RuntimeEvent("app-id", APP_ID, 2)), preimage=None)
    with refuses("event_log.preimage"):
        check_event_lists(log, runtime_events_of(log))


def test_n08_refuses_a_version_2_event_with_a_preimage_and_no_digest() -> None:
    log = change(logged(RuntimeEvent("app-id", APP_ID, 2)), digest=b"")
    with refuses("event_log.digest"):
        check_event_lists(log, runtime_events_of(log))


def test_n08_refuses_a_version_2_preimage_that_is_not_canonical() -> None:
    text = json.dumps({"name": "app-id", "payload": APP_ID.hex(), "type": RUNTIME_EVENT_TYPE}).encode()
    event = logged(RuntimeEvent("app-id", APP_ID, 2))
    log = change(event, preimage=text, digest=hashlib.sha384(text).digest())
    with refuses("event_log.preimage"):
        check_event_lists(log, runtime_events_of(log))


def test_n08_refuses_a_preimage_where_none_belongs() -> None:
    for log in (
        change(logged(LADDER[0]), preimage=event_preimage(LADDER[0])),
        (TdxEvent(0, 4, bytes(48), "", b"", 1, b"p"),),
    ):
        with refuses("event_log.preimage"):
            check_event_lists(log, runtime_events_of(log))


def test_n09_refuses_an_rtmr3_event_of_another_type() -> None:
    log = change(logged(LADDER[0]), event_type=4)
    with refuses("event_log.type"):
        check_event_lists(log, runtime_events_of(log))


@pytest.mark.parametrize("imr", [0, 1, 2])
def test_n09_refuses_a_runtime_event_on_a_boot_register(imr: int) -> None:
    with refuses("event_log.type"):
        check_event_lists(change(logged(LADDER[0]), imr=imr), ())


def test_refuses_an_event_of_a_register_that_tdx_lacks() -> None:
    with refuses("event_log.register"):
        check_event_lists((TdxEvent(4, 4, bytes(48), "", b""),), ())


# ---- boot registers


def test_complete_registers_are_replayed_and_others_left_out() -> None:
    one, two = b"\x01" * 48, b"\x02" * 48
    marker = TdxEvent(0, 10, two, "acpi-loader", b"ACPI DATA")
    log = (TdxEvent(1, 4, one, "", b""), marker, TdxEvent(1, 4, two, "", b""), logged(LADDER[0]))
    first = hashlib.sha384(bytes(48) + one).digest()
    assert replay_registers(log) == {1: hashlib.sha384(first + two).digest()}
    assert set(replay_registers((*log, TdxEvent(0, 4, one, "", b"")))) == {0, 1}


@pytest.mark.parametrize("digest", [b"", bytes(32), bytes(64)])
def test_refuses_a_boot_event_whose_digest_is_not_48_bytes(digest: bytes) -> None:
    with refuses("event_log.digest"):
        replay_registers((TdxEvent(2, 4, digest, "", b""),))


# ---- real logs


def quoted_rtmrs(quote: bytes) -> list[bytes]:
    return [quote[at : at + 48] for at in range(376, 568, 48)]


def check_real_log(events: Sequence[TdxEvent], runtime: Sequence[RuntimeEvent], quote: bytes) -> None:
    rtmrs = quoted_rtmrs(quote)
    check_event_lists(events, runtime)
    assert replay_registers(events) == dict(enumerate(rtmrs[:3]))
    assert replay(runtime, "sha384") == rtmrs[3]


@pytest.mark.parametrize(
    ("name", "counts"), [("quote-report", [13, 5, 2, 8]), ("tdx-lite-getquote", [13, 5, 2, 9])]
)
def test_a_real_json_log_replays_to_its_quote(
    name: str, counts: list[int], shared_data: Callable[[str], Path]
) -> None:
    body = json.loads(shared_data(f"attestation/upstream/verifier/{name}.json").read_bytes())
    events = parse_event_log_json(body["event_log"])
    assert [sum(event.imr == imr for event in events) for imr in range(4)] == counts
    check_real_log(events, runtime_events_of(events), bytes.fromhex(body["quote"]))
    expected = json.loads(shared_data("attestation/upstream/expected/tdx.json").read_bytes())[f"{name}.json"]
    found = system_events(runtime_events_of(events))
    assert found.system_ready
    assert found.app_id.hex() == expected["app_info"]["app_id"]
    assert found.compose_hash.hex() == expected["app_info"]["compose_hash"]
    assert found.instance_id.hex() == expected["app_info"]["instance_id"]
    assert found.key_provider.hex() == expected["app_info"]["key_provider_info"]
    boot = replay(runtime_events_of(events), "sha384", boot_time=True).hex()
    assert boot == expected["app_info_boottime"]["rtmr3"]


def test_a_real_envelope_replays_to_its_quote(shared_data: Callable[[str], Path]) -> None:
    attestation = decode_envelope(shared_data("attestation/upstream/tdx/v0_tdx_attestation.bin").read_bytes())
    assert isinstance(attestation.quote, TdxQuote)
    check_real_log(attestation.quote.event_log, attestation.runtime_events, attestation.quote.quote)


def test_a_real_stripped_envelope_leaves_only_rtmr3_to_replay(shared_data: Callable[[str], Path]) -> None:
    body = json.loads(shared_data("attestation/upstream/verifier/tdx-lite-attestation.json").read_bytes())
    attestation = decode_envelope(bytes.fromhex(body["attestation"]))
    assert isinstance(attestation.quote, TdxQuote)
    log = attestation.quote.event_log
    check_event_lists(log, attestation.runtime_events)
    assert replay_registers(log) == {}
    assert replay(attestation.runtime_events, "sha384") == quoted_rtmrs(attestation.quote.quote)[3]
