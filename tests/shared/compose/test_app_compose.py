import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.compose.app_compose import canonical_bytes, compose_hash, parse_app_compose
from shared.errors import ProtocolError

DATA = Path(__file__).parents[2] / "data" / "deploy"
VECTORS = json.loads((DATA / "vectors.json").read_text())
EXAMPLE = {
    "runner": "docker-compose",
    "name": "你好世界",
    "manifest_version": 2,
    "requirements": {"platforms": ["dstack-gcp-tdx"], "os_version": ">=0.6.0"},
    "allowed_envs": ["B", "A"],
}


@pytest.mark.parametrize("name", ["app-compose.cli.json", "app-compose.canonical.json"])
def test_hashes_the_exact_bytes(name: str) -> None:
    assert compose_hash((DATA / name).read_bytes()).hex() == VECTORS["compose_hash"][name]


def test_the_cli_form_becomes_the_canonical_form() -> None:
    document = parse_app_compose((DATA / "app-compose.cli.json").read_bytes())
    assert canonical_bytes(document) == (DATA / "app-compose.canonical.json").read_bytes()


def test_agrees_with_the_sdks_on_nesting_and_other_scripts() -> None:
    digest = compose_hash(canonical_bytes(EXAMPLE)).hex()
    assert digest == "baf0e3d30e303d99a63a1caa3b66c63003f0186ecb016119f808e6b9f5343bd9"


def test_a_final_newline_is_another_app() -> None:
    raw = canonical_bytes(EXAMPLE)
    assert compose_hash(raw + b"\n") != compose_hash(raw)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"z": None}, "compose.null"),
        ({"a": [{"z": None}]}, "compose.null"),
        ({"a": 1.5}, "compose.number"),
        ({"a": 1.0}, "compose.number"),
        ({"a": float("nan")}, "compose.number"),
        ({"a": float("inf")}, "compose.number"),
        ({"a": 2**53}, "compose.number"),
        ({"a": -(2**53)}, "compose.number"),
        ({"a": 10**5000}, "compose.number"),
        ({1: "a"}, "compose.key"),
        ({"\U0001f600": "a"}, "compose.key"),
        ({"a": "\ud800"}, "compose.text"),
        ({"\ud800": "a"}, "compose.text"),
        ({"a": b"bytes"}, "compose.type"),
        ({"a": (1, 2)}, "compose.type"),
        ([], "compose.type"),
        (None, "compose.type"),
    ],
)
def test_refuses_what_serialisers_differ_on(document: dict[str, Any], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        canonical_bytes(document)
    assert caught.value.code == code


def test_refuses_a_document_that_contains_itself() -> None:
    document: dict[str, Any] = {}
    document["self"] = document
    with pytest.raises(ProtocolError) as caught:
        canonical_bytes(document)
    assert caught.value.code == "compose.depth"


def test_takes_integers_within_53_bits_and_booleans() -> None:
    assert canonical_bytes({"b": True, "a": 2**53 - 1}) == b'{"a":9007199254740991,"b":true}'


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"name":"a","name":"b"}', "compose.duplicate_key"),
        (b'{"a":{"x":1,"\\u0078":2}}', "compose.duplicate_key"),
        (b"[]", "compose.type"),
        (b"null", "compose.type"),
        (b"{", "compose.syntax"),
        (b"{} {}", "compose.syntax"),
        (b'{"a":NaN}', "compose.syntax"),
        (b'{"a":-Infinity}', "compose.syntax"),
        (b'{"a":"\xff"}', "compose.syntax"),
        (b'{"a":' + b"9" * 5000 + b"}", "compose.syntax"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "compose.depth"),
        (b" " * (50 * 1024 * 1024 + 1), "compose.size"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:12].decode(errors="replace"),
)
def test_refuses_documents_that_mean_two_things_or_nothing(raw: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_app_compose(raw)
    assert caught.value.code == code


def test_nesting_as_deep_as_the_limit_is_read() -> None:
    raw = b'{"a":' + b"[" * 63 + b"]" * 63 + b',"b":[[]]}'
    assert set(parse_app_compose(raw)) == {"a", "b"}


# a small alphabet: building hypothesis's table of all characters is slow on a cold machine
KEYS = st.text('aB0"\\\n\0\x7f\xe9\u2028\u4f60\uffff', max_size=4)
JSON_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | KEYS | st.just("\U0001f600"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5))
def test_canonical_bytes_follow_the_sdks_rule(document: dict[str, Any]) -> None:
    rule = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_bytes(document) == rule.encode()


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5))
def test_canonical_bytes_round_trip_and_are_stable(document: dict[str, Any]) -> None:
    raw = canonical_bytes(document)
    assert parse_app_compose(raw) == document
    assert canonical_bytes(parse_app_compose(raw)) == raw


@settings(deadline=None)
@given(st.binary(max_size=100), st.text('{}[]",:0.e-tfn \\u8d', max_size=30))
def test_parsing_raises_nothing_but_our_errors(raw: bytes, text: str) -> None:
    for document in (raw, b'{"a":' + text.encode() + b"}"):
        with contextlib.suppress(ProtocolError):
            canonical_bytes(parse_app_compose(document))
