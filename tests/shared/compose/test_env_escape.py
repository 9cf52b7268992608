"""What the guest writes for its services, read back as systemd reads it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.compose.env_escape import decrypted_env, decrypted_env_json, escape_value
from tests.shared.compose.environment_file import read_environment_file

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text())

NASTY = st.text(st.sampled_from("aA_=\\\"'`$ \t\n\r#;&|<>()é\u2028\x0b"), max_size=12)


@pytest.mark.parametrize(("value", "written"), VECTORS["env_file_escape"])
def test_writes_upstreams_bytes(value: str, written: str) -> None:
    assert escape_value(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", ""),
        ("a\\", '"a\\\\"'),
        ('a\\"b', '"a\\\\\\"b"'),
        ("a\\$b", '"a\\\\\\$b"'),
        ("a\\\\b", '"a\\\\\\b"'),
        ("a\rB=c", '"a\rB=c"'),
        ("#a", "#a"),
        ("a=b", "a=b"),
    ],
)
def test_n71_keeps_quotes_closed_where_upstreams_older_form_opens_them(value: str, written: str) -> None:
    assert escape_value(value) == written
    assert read_environment_file(decrypted_env({"A": value})) == [("A", value)]


@pytest.mark.parametrize(
    "value",
    [
        "x\nEVIL=1",
        "x\rEVIL=1",
        "x\r\nEVIL=1",
        "x\\",
        "x\\\nEVIL=1",
        'x"\nEVIL=1\n"',
        'x\\"\nEVIL=1',
        "x'\nEVIL=1",
        "\\\\\\",
        '\\"\\',
        "$(touch /tmp/x)",
        "`id`",
    ],
)
def test_n71_no_value_reaches_the_next_variable(value: str) -> None:
    raw = decrypted_env({"A": value, "B": "kept", "C": value})
    read = read_environment_file(raw)
    # a newline is the one character that upstream's form spells otherwise
    spelled = value.replace("\n", "\\n")
    assert read == [("A", spelled), ("B", "kept"), ("C", spelled)]


@given(st.lists(NASTY, max_size=4))
def test_n71_any_values_are_read_back_one_by_one(values: list[str]) -> None:
    env = {f"V{index}": value for index, value in enumerate(values)}
    read = read_environment_file(decrypted_env(env))
    assert read == [(name, value.replace("\n", "\\n")) for name, value in env.items()]


def test_the_reader_sees_an_injection() -> None:
    assert read_environment_file(b'A="x\\"\nEVIL="1"\n') == [("A", 'x"\nEVIL=1"')]
    assert read_environment_file(b"A=x\rEVIL=1\n") == [("A", "x"), ("EVIL", "1")]
    assert read_environment_file(b"# c\n; d\nA = x y \nB=\n") == [("A", "x y"), ("B", "")]


@given(st.dictionaries(st.sampled_from(["A", "B"]), st.text(st.characters(exclude_categories=["Cs"]))))
def test_json_holds_every_value_unchanged(env: dict[str, str]) -> None:
    raw = decrypted_env_json(env)
    assert json.loads(raw) == env
    assert b"\n" not in raw


def test_json_is_compact() -> None:
    assert decrypted_env_json({"A": "é\n", "B": ""}) == '{"A":"é\\n","B":""}'.encode()
