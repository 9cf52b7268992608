"""The JSON inside of an encrypted environment, and which of its variables an app gets."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from shared.compose.env_envelope import (
    MAX_CIPHERTEXT_BYTES,
    EnvEnvelope,
    EnvSignature,
    decode_envelope,
    encode_envelope,
    select_env,
)
from shared.compose.env_file import MAX_ENTRIES, MAX_TOTAL_BYTES, MAX_VALUE_BYTES
from shared.errors import ConfigError, DstackError, ProtocolError
from tests.shared.refusal import refuses

SIGNATURE = EnvSignature(7, bytes(range(64)))
SECRET = "hunter2-unlikely"


def envelope(*entries: tuple[str, str], signature: EnvSignature | None = None) -> EnvEnvelope:
    return EnvEnvelope(entries, signature)


def document(**fields: Any) -> bytes:
    return json.dumps({"env": [{"key": "A", "value": "x"}]} | fields).encode()


def test_is_spaced_as_upstreams_command_line_spaces_it() -> None:
    assert encode_envelope(envelope(("A", "é"))) == '{"env": [{"key": "A", "value": "é"}]}'.encode()


@pytest.mark.parametrize("signature", [None, SIGNATURE])
def test_reads_what_it_writes(signature: EnvSignature | None) -> None:
    written = envelope(("A", "x"), ("B", "é\n"), signature=signature)
    assert decode_envelope(encode_envelope(written)) == written


def test_upstreams_reader_finds_the_variables_beside_a_signature() -> None:
    read = json.loads(encode_envelope(envelope(("A", "x"), signature=SIGNATURE)))
    assert read["env"] == [{"key": "A", "value": "x"}]


def test_ignores_fields_that_are_nobodys() -> None:
    raw = json.dumps({"env": [{"key": "A", "value": "x", "note": 1}], "new": {}}).encode()
    assert decode_envelope(raw).entries == (("A", "x"),)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"env":null}',
        b'{"env":[{"key":"A"}]}',
        b'{"env":[{"key":"A","value":1}]}',
        b'{"env":[["A","x"]]}',
        b'{"env":[],"env":[]}',
        b'{"env":[{"key":"A","value":"\xff"}]}',
        b'{"env":[{"key":"A","value":"\\ud800"}]}',
        b'{"env":[{"key":"\\udfff","value":""}]}',
        b"[" * 100_000,
        document(env_signature={}),
        document(env_signature={"format": 2, "env_version": 0, "signature": "00" * 64}),
        document(env_signature={"format": 1, "env_version": -1, "signature": "00" * 64}),
        document(env_signature={"format": 1, "env_version": 2**53, "signature": "00" * 64}),
        document(env_signature={"format": 1, "env_version": True, "signature": "00" * 64}),
        document(env_signature={"format": 1, "env_version": 0, "signature": "00" * 63}),
        document(env_signature={"format": 1, "env_version": 0, "signature": "0x" + "00" * 64}),
        document(env_signature={"format": 1, "env_version": 0, "signature": "00" * 64, "x": 1}),
    ],
)
def test_n71_refuses_what_is_no_envelope(raw: bytes) -> None:
    with refuses("env.envelope", ProtocolError):
        decode_envelope(raw)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([("A-B", "x")], "env.name"),
        ([("", "x")], "env.name"),
        ([("1A", "x")], "env.name"),
        ([("A\n", "x")], "env.name"),
        ([("É", "x")], "env.name"),
        ([("A" * 256, "x")], "env.name"),
        ([("A", "x\0")], "env.encoding"),
        ([("A", "é" * (MAX_VALUE_BYTES // 2 + 1))], "env.size"),
        ([(f"A{n}", "x" * MAX_VALUE_BYTES) for n in range(8)], "env.size"),
    ],
)
def test_n71_both_sides_refuse_the_same_variables(entries: list[tuple[str, str]], code: str) -> None:
    with refuses(code, ConfigError):
        encode_envelope(envelope(*entries))
    with refuses(code, ProtocolError):
        select_env(tuple(entries), {name for name, _ in entries})


def test_takes_exactly_the_limits() -> None:
    name = "A" * 255
    assert select_env(((name, "x" * MAX_VALUE_BYTES),), {name}).values == {name: "x" * MAX_VALUE_BYTES}
    rest = MAX_TOTAL_BYTES - 7 * (2 + MAX_VALUE_BYTES) - 2
    full = (*((f"A{n}", "x" * MAX_VALUE_BYTES) for n in range(7)), ("A7", "x" * rest))
    allowed = {name for name, _ in full}
    assert len(select_env(full, allowed).values) == 8
    with refuses("env.size", ProtocolError):
        select_env((*full[:-1], ("A7", "x" * (rest + 1))), allowed)


def test_n71_refuses_more_entries_than_the_guest_reads() -> None:
    many = [(f"A{n}", "") for n in range(MAX_ENTRIES + 1)]
    with refuses("env.count", ConfigError):
        encode_envelope(envelope(*many))
    raw = json.dumps({"env": [{"key": name, "value": ""} for name, _ in many]}).encode()
    with refuses("env.count", ProtocolError):
        decode_envelope(raw)
    assert len(decode_envelope(encode_envelope(envelope(*many[1:]))).entries) == MAX_ENTRIES


def test_refuses_to_write_a_name_twice() -> None:
    with refuses("env.duplicate", ConfigError):
        encode_envelope(envelope(("A", "x"), ("A", "y")))


def test_refuses_to_write_what_is_no_text() -> None:
    with refuses("env.encoding", ConfigError):
        encode_envelope(envelope(("A", "\ud800")))


def test_n71_skips_what_the_app_did_not_ask_for_before_it_checks_anything() -> None:
    entries = (("no-name", "\0"), ("B", "x" * (MAX_VALUE_BYTES + 1)), ("A", "x"), ("PATH", "/evil"))
    selected = select_env(entries, {"A", "C"})
    assert selected.values == {"A": "x"}
    assert selected.skipped == ("B", "PATH", "no-name")


def test_the_last_duplicate_wins_and_names_are_sorted() -> None:
    entries = (("B", "1"), ("A", "2"), ("B", "3"))
    assert list(select_env(entries, {"A", "B"}).values.items()) == [("A", "2"), ("B", "3")]


def test_n71_duplicates_count_towards_the_total() -> None:
    with refuses("env.size", ProtocolError):
        select_env((("A", "x" * MAX_VALUE_BYTES),) * 9, {"A"})


def test_n74_no_repr_shows_a_value() -> None:
    held = envelope(("A", SECRET))
    for shown in (held, select_env(held.entries, {"A"})):
        assert SECRET not in f"{shown!r}{pretty_repr(shown)}"


@pytest.mark.parametrize(
    "raw",
    [
        f'{{"env":[{{"key":"A","value":"{SECRET}"}}'.encode(),
        f'{{"env":[{{"key":"A","value":["{SECRET}"]}}]}}'.encode(),
        f'{{"{SECRET}":1,"{SECRET}":2}}'.encode(),
        f'{{"env":[{{"key":"{SECRET}","value":"\\ud800"}}]}}'.encode(),
    ],
)
def test_n74_an_error_holds_nothing_of_the_text_anywhere_in_its_chain(raw: bytes) -> None:
    with refuses("env.envelope", ProtocolError) as caught:
        decode_envelope(raw)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:  # a JSONDecodeError would have the whole text as its `doc`
        assert SECRET not in f"{error!r}{vars(error)}"
        error = error.__cause__ or error.__context__


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: f'{{"env":{text}}}'.encode()))
def test_any_bytes_give_an_envelope_or_an_error_of_ours(raw: bytes) -> None:
    try:
        decode_envelope(raw)
    except DstackError as error:
        assert error.code.startswith("env.")  # noqa: PT017 - one of ours is as good as a value


def test_refuses_more_than_a_ciphertext_can_hold() -> None:
    with refuses("env.envelope", ProtocolError):
        decode_envelope(b" " * (MAX_CIPHERTEXT_BYTES + 1))
