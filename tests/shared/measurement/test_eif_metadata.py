import json
from typing import Any

import msgspec
import pytest

from shared.errors import ConfigError
from shared.measurement import eif_metadata
from shared.measurement.eif_metadata import build_time, encode_metadata, parse_metadata
from tests.shared.measurement.made_eif import METADATA, TINY
from tests.shared.refusal import refuses

RAW = TINY[764:998]
TREE = json.loads(RAW)


def encoded(**changes: Any) -> bytes:
    return json.dumps({**TREE, **changes}).encode()


def test_writes_and_reads_the_specs_metadata() -> None:
    assert encode_metadata(METADATA) == RAW
    assert parse_metadata(RAW) == METADATA


def test_reads_keys_in_any_order_and_any_value_in_the_free_parts() -> None:
    tree = dict(reversed(TREE.items())) | {"DockerInfo": [{"Id": "sha256:é"}], "CustomMetadata": {"a": 1.5}}
    parsed = parse_metadata(json.dumps(tree).encode())
    assert (parsed.docker_info, parsed.custom_metadata) == ([{"Id": "sha256:é"}], {"a": 1.5})
    assert parse_metadata(encode_metadata(parsed)) == parsed


def test_text_is_written_as_it_is() -> None:
    assert "é".encode() in encode_metadata(msgspec.structs.replace(METADATA, image_name="é"))


@pytest.mark.parametrize("key", list(TREE))
def test_a_missing_key_is_refused(key: str) -> None:
    with refuses("eif.metadata.shape"):
        parse_metadata(json.dumps({name: value for name, value in TREE.items() if name != key}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        encoded(Extra=1),
        encoded(**{"\n" * 400: 1}),
        encoded(ImageName=None),
        encoded(BuildMetadata={**TREE["BuildMetadata"], "x": 1}),
        encoded(BuildMetadata=[]),
        b"[]",
        b"null",
    ],
)
def test_other_keys_and_types_are_refused(raw: bytes) -> None:
    with refuses("eif.metadata.shape"):
        parse_metadata(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", RAW + b"\0", RAW.replace(b"null", b"NaN", 1)])
def test_n06_what_is_no_json_is_refused(raw: bytes) -> None:
    with refuses("eif.metadata.syntax"):
        parse_metadata(raw)


def test_a_key_that_occurs_twice_is_refused() -> None:
    with refuses("eif.metadata.duplicate_key"):
        parse_metadata(RAW.replace(b'"ImageName"', b'"ImageVersion":"2","ImageName"'))


def test_deep_nesting_is_refused() -> None:
    with refuses("eif.metadata.depth"):
        parse_metadata(RAW.replace(b"null", b"[" * 100 + b"]" * 100, 1))


def test_too_much_is_neither_read_nor_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eif_metadata, "MAX_METADATA", len(RAW) - 1)
    with refuses("eif.metadata.size"):
        parse_metadata(RAW)
    with refuses("eif.metadata.size", ConfigError):
        encode_metadata(METADATA)


def test_a_large_custom_part_is_not_written() -> None:
    with refuses("eif.metadata.custom", ConfigError):
        encode_metadata(msgspec.structs.replace(METADATA, custom_metadata="x" * 4095))


def endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize("value", [float("inf"), "\ud800", object(), endless()])
def test_what_json_cannot_hold_is_not_written(value: object) -> None:
    with refuses("eif.metadata.value", ConfigError):
        encode_metadata(msgspec.structs.replace(METADATA, docker_info=value))


def test_build_time_is_rfc_3339_in_utc() -> None:
    assert build_time(0) == METADATA.build_metadata.build_time
    assert build_time(1_700_000_000) == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("seconds", [-1, 1 << 40, 1 << 80])
def test_a_build_time_outside_the_calendar_is_refused(seconds: int) -> None:
    with refuses("eif.metadata.build_time", ConfigError):
        build_time(seconds)
