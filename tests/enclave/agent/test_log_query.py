"""What may be asked of a log, and in which form it comes (spec guest-agent section 4)."""

import json

import pytest

from enclave.agent.docker_logs import LogMessage
from enclave.agent.log_query import LogRequest, log_failure, log_line, read_log_request, strip_escapes
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

NOW = 1_900_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("0", 0),
        ("120", 120),
        ("30s", NOW - 30),
        ("5m", NOW - 300),
        ("2h", NOW - 7200),
        ("1d", NOW - 86400),
        ("0s", NOW),
        ("99999999d", 0),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
@pytest.mark.parametrize("field", ["since", "until"])
def test_reads_a_time(field: str, text: str, expected: int) -> None:
    assert getattr(read_log_request({field: text}, NOW), field) == expected


@pytest.mark.parametrize(
    "text", ["30x", "h", "abc", "-5", "-5s", "+5", "1.5h", " 1", "1h1m", "٣", "3²", "9" * 20, str(2**63)]
)
@pytest.mark.parametrize("field", ["since", "until"])
def test_refuses_what_is_no_time(field: str, text: str) -> None:
    with refuses(f"logs.{field}", ProtocolError) as caught:
        read_log_request({field: text}, NOW)
    assert caught.value.message == f"Invalid {field}"


@pytest.mark.parametrize("field", ["follow", "text", "timestamps", "bare", "ansi"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("true", True), ("On", True), ("yes", True), ("false", False), ("no", False)],
)
def test_reads_a_flag(field: str, text: str, *, expected: bool) -> None:
    assert getattr(read_log_request({field: text}, NOW), field) is expected


@pytest.mark.parametrize("field", ["follow", "text", "timestamps", "bare", "ansi"])
def test_refuses_what_is_no_flag(field: str) -> None:
    with refuses("logs.flag", ProtocolError):
        read_log_request({field: "2"}, NOW)


def test_asks_the_engine_for_a_thousand_lines_of_all_time_by_default() -> None:
    assert read_log_request({}, NOW).engine_query() == {
        "since": "0",
        "until": "0",
        "tail": "1000",
        "follow": "false",
        "timestamps": "false",
    }


@pytest.mark.parametrize(
    ("text", "expected"), [("20", "20"), ("0", "0"), ("all", "all"), ("-3", "all"), ("x&y", "all")]
)
def test_takes_what_is_no_number_of_lines_for_all(text: str, expected: str) -> None:
    assert read_log_request({"tail": text}, NOW).tail == expected


def test_a_line_is_json_with_base64() -> None:
    assert (
        log_line(LogMessage("stderr", b"h\xff\n"), LogRequest()) == b'{"channel":"stderr","message":"aP8K"}\n'
    )


def test_a_line_of_text_is_json_with_text() -> None:
    line = log_line(LogMessage("stdout", 'wörld "\x1b[31m\n'.encode()), LogRequest(text=True))
    assert "wörld".encode() in line
    assert line.endswith(b"}\n")
    assert json.loads(line) == {"channel": "stdout", "message": 'wörld "\x1b[31m\n'}


def test_text_that_is_no_utf_8_is_repaired() -> None:
    line = log_line(LogMessage("console", b"a\xffb\xe2\x82"), LogRequest(text=True))
    assert json.loads(line)["message"] == "a\ufffdb\ufffd"


def test_bare_is_base64_without_a_line_feed() -> None:
    assert log_line(LogMessage("stdout", b"hi\n"), LogRequest(bare=True)) == b"aGkK"


def test_bare_text_is_the_message_without_escapes() -> None:
    message = LogMessage("stdout", b"\x1b[1;31mred\x1b[0m\n")
    assert log_line(message, LogRequest(bare=True, text=True)) == b"red\n"


def test_bare_text_with_ansi_is_the_message_as_it_is() -> None:
    message = LogMessage("stdout", b"\x1b[1;31mred\x1b[0m\r\n")
    assert log_line(message, LogRequest(bare=True, text=True, ansi=True)) == b"\x1b[1;31mred\x1b[0m\r\n"


@pytest.mark.parametrize(
    "escape",
    [
        "\x1b[31m",
        "\x1b[?25l",
        "\x1b[38;2;1;2;3m",
        "\x1b]0;a title\x07",
        "\x1b]8;;http://evil.test\x1b\\",
        "\x1bP1$r0m\x1b\\",
        "\x1b_apc\x1b\\",
        "\x1bM",
        "\x1b(B",
        "\x1b7",
        "\x9b1A",
        "\x1b",
        "\r",
        "\x08",
        "\x00",
        "\x7f",
        "\x1b]0;without an end",
    ],
)
def test_strips_escapes(escape: str) -> None:
    assert strip_escapes(f"a\tb\n{escape}") == "a\tb\n"


def test_a_failure_is_an_object_without_a_line_feed() -> None:
    assert log_failure("Invalid since") == b'{"error":"Invalid since"}'
