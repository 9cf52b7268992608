import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.attestation.envelope import RuntimeEvent, TdxEvent
from shared.attestation.event_log import (
    RUNTIME_EVENT_TYPE,
    check_event_lists,
    event_digest,
    replay,
    runtime_events_of,
)
from shared.attestation.event_log_json import (
    MAX_EXPANDED,
    MAX_JSON,
    event_log_json,
    expand_event_log,
    getquote_log,
    parse_event_log_json,
)
from tests.shared.attestation.forgery import refuses

DATA = Path(__file__).parents[2] / "data" / "attestation" / "synthetic"
U32 = st.integers(0, (1 << 32) - 1)
GZIP = gzip.compress(b"[]", mtime=0)
EVENT: dict[str, Any] = {
    "imr": 3,
    "event_type": RUNTIME_EVENT_TYPE,
    "digest": "",
    "event": "app-id",
    "event_payload": "Ab",
}
PARSED = TdxEvent(3, RUNTIME_EVENT_TYPE, b"", "app-id", b"\xab")


def log(**changes: Any) -> str:
    return json.dumps([{**EVENT, **changes}])


@given(
    st.lists(
        st.builds(
            TdxEvent,
            U32,
            U32,
            st.binary(max_size=50),
            st.text(max_size=20),
            st.binary(max_size=50),
            st.sampled_from([1, 2]),
            st.none() | st.binary(max_size=50),
        ),
        max_size=4,
    ).map(tuple)
)
def test_every_log_round_trips(events: tuple[TdxEvent, ...]) -> None:
    text = event_log_json(events)
    assert parse_event_log_json(text) == events
    assert parse_event_log_json(text.encode()) == events


def test_the_sample_log_replays_to_its_register() -> None:
    events = parse_event_log_json((DATA / "tdx" / "event_log.json").read_bytes())
    want = json.loads((DATA / "expected.json").read_bytes())["tdx"]["rtmr3"]
    check_event_lists(events, runtime_events_of(events))
    assert replay(runtime_events_of(events), "sha384").hex() == want


def test_fields_come_in_upstreams_order_and_version_1_is_not_written() -> None:
    assert event_log_json([PARSED]) == (
        '[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"ab"}]'
    )
    two = TdxEvent(3, 1, b"\x01", "e", b"", 2, b"\x02")
    assert event_log_json([two]).endswith('"event_payload":"","version":2,"preimage":"02"}]')


def test_a_digest_may_be_missing() -> None:
    event = {key: value for key, value in EVENT.items() if key != "digest"}
    assert parse_event_log_json(json.dumps([event])) == (PARSED,)


@pytest.mark.parametrize(
    "change",
    [
        {"other": 1},
        {"imr": -1},
        {"imr": 1 << 32},
        {"imr": "3"},
        {"imr": 3.5},
        {"event_type": None},
        {"digest": None},
        {"preimage": None},
        {"version": 0},
        {"version": 3},
        {"event": 1},
    ],
)
def test_n05_refuses_an_unknown_field_or_value(change: dict[str, Any]) -> None:
    with refuses("event_log.fields"):
        parse_event_log_json(log(**change))


@pytest.mark.parametrize("text", ["{}", "1", "[1]", "[{}]", '"text"', "null"])
def test_refuses_json_that_is_no_event_log(text: str) -> None:
    with refuses("event_log.fields"):
        parse_event_log_json(text)


@pytest.mark.parametrize("text", [b"", b"[", b"[]]", b"\xff", b"[NaN]", "\ud800"])
def test_refuses_what_is_not_json(text: str | bytes) -> None:
    with refuses("event_log.syntax"):
        parse_event_log_json(text)


@pytest.mark.parametrize("field", ["digest", "event_payload", "preimage"])
@pytest.mark.parametrize("text", ["0", "0x00", " 00", "zz"])
def test_refuses_a_value_that_is_not_bare_hex(field: str, text: str) -> None:
    with refuses("event_log.hex"):
        parse_event_log_json(log(**{field: text}))


def test_n02_refuses_a_field_that_occurs_twice() -> None:
    with refuses("event_log.duplicate_key"):
        parse_event_log_json('[{"imr":3,"imr":3}]')


def test_refuses_deep_nesting() -> None:
    with refuses("event_log.depth"):
        parse_event_log_json("[[[]]]")


def test_n06_refuses_a_name_that_is_not_unicode() -> None:
    with refuses("event_log.name"):
        parse_event_log_json(log(event="\ud800"))


def test_n10_refuses_more_events_than_any_guest_makes() -> None:
    with refuses("event_log.count"):
        parse_event_log_json(json.dumps([EVENT] * 4097))


def test_n03_refuses_an_oversize_log() -> None:
    with refuses("event_log.size"):
        parse_event_log_json(" " * (MAX_JSON + 1))


# ---- what GetQuote shows


def test_getquote_keeps_every_event_and_drops_what_can_be_recomputed() -> None:
    full = (
        TdxEvent(0, 10, bytes(48), "acpi-rsdp", b"ACPI DATA"),
        TdxEvent(1, 10, bytes(48), "", b"ACPI DATA"),
        TdxEvent(2, 6, bytes(48), "", b"payload"),
        TdxEvent(3, RUNTIME_EVENT_TYPE, bytes(48), "app-id", b"a"),
    )
    assert getquote_log(full) == (
        full[0],
        TdxEvent(1, 10, bytes(48), "", b""),
        TdxEvent(2, 6, bytes(48), "", b""),
        TdxEvent(3, RUNTIME_EVENT_TYPE, b"", "app-id", b"a"),
    )


def test_getquote_gives_a_version_2_event_what_its_check_needs() -> None:
    reduced = getquote_log((TdxEvent(3, RUNTIME_EVENT_TYPE, b"", "app-id", b"a", 2),))
    assert reduced[0].preimage == b'{"name":"app-id","payload":"61","type":134217729}'
    check_event_lists(reduced, runtime_events_of(reduced))


def test_getquote_may_keep_the_digests_that_released_sdks_replay() -> None:
    bare = TdxEvent(3, RUNTIME_EVENT_TYPE, b"", "app-id", b"a")
    (kept,) = getquote_log((bare,), keep_digests=True)
    assert kept.digest == event_digest(RuntimeEvent("app-id", b"a"), "sha384")
    check_event_lists((kept,), runtime_events_of((bare,)))


# ---- compressed logs of old certificates


def compressed(text: bytes) -> bytes:
    return b"ELGZv1" + gzip.compress(text, mtime=0)


def test_a_compressed_log_is_expanded_and_a_plain_one_left_alone() -> None:
    for text in (b"[]", b" " * MAX_EXPANDED, b""):
        assert expand_event_log(compressed(text)) == text
    assert expand_event_log(b"[]") == b"[]"


@pytest.mark.parametrize("size", [MAX_EXPANDED + 1, 100_000_000])
def test_n04_refuses_a_log_that_expands_beyond_the_cap(size: int) -> None:
    with refuses("event_log.gzip.size"):
        expand_event_log(compressed(bytes(size)))


@pytest.mark.parametrize(
    "data",
    [b"", b"text", zlib.compress(b"[]"), GZIP[:-1], GZIP + b"x"],
    ids=["empty", "text", "zlib", "cut", "trailing"],
)
def test_n04_refuses_what_is_not_one_gzip_stream(data: bytes) -> None:
    with refuses("event_log.gzip"):
        expand_event_log(b"ELGZv1" + data)
