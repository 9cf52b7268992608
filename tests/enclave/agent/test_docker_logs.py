"""Bytes of the container engine become messages, whatever a container writes."""

import pytest

from enclave.agent.docker_logs import MAX_CONSOLE_LINE, MAX_FRAME, LogDecoder, LogMessage
from shared.errors import ProtocolError, UnavailableError
from tests.enclave.agent.docker import frame
from tests.shared.refusal import refuses

LOG = frame(b"out\n") + frame(b"err\n", 2) + frame(b"in\n", 0) + frame(b"")
MESSAGES = [
    LogMessage("stdout", b"out\n"),
    LogMessage("stderr", b"err\n"),
    LogMessage("stdin", b"in\n"),
    LogMessage("stdout", b""),
]


@pytest.mark.parametrize("framed", [True, None])
@pytest.mark.parametrize("size", [1, 3, 7, len(LOG)])
def test_reads_frames_however_they_are_cut(*, framed: bool | None, size: int) -> None:
    decoder = LogDecoder(framed=framed)
    found = []
    for start in range(0, len(LOG), size):
        found += decoder.feed(LOG[start : start + size])
    assert [*found, *decoder.end()] == MESSAGES


@pytest.mark.parametrize("size", [1, 5, 100])
def test_cuts_a_terminals_output_at_line_feeds(size: int) -> None:
    raw = b"\x1b[1mhello\r\nw\xc3\xb6rld\nrest"
    decoder = LogDecoder(framed=None)
    found = []
    for start in range(0, len(raw), size):
        found += decoder.feed(raw[start : start + size])
    assert [*found, *decoder.end()] == [
        LogMessage("console", b"\x1b[1mhello\r\n"),
        LogMessage("console", b"w\xc3\xb6rld\n"),
        LogMessage("console", b"rest"),
    ]


def test_hands_a_terminals_endless_line_on_in_pieces() -> None:
    decoder = LogDecoder(framed=None)
    found = decoder.feed(b"x" * (2 * MAX_CONSOLE_LINE + 5))
    assert [len(one.message) for one in found] == [MAX_CONSOLE_LINE, MAX_CONSOLE_LINE]
    assert decoder.end() == [LogMessage("console", b"x" * 5)]


def test_a_terminal_that_prints_frames_later_stays_a_terminal() -> None:
    decoder = LogDecoder(framed=None)
    assert decoder.feed(b"prompt\n" + frame(b"\n"))[0] == LogMessage("console", b"prompt\n")
    assert all(one.channel == "console" for one in decoder.feed(frame(b"more\n", 2)))


def test_an_empty_log_has_no_messages() -> None:
    decoder = LogDecoder(framed=None)
    assert decoder.feed(b"") == decoder.end() == []


def test_refuses_a_frame_that_is_too_long() -> None:
    with refuses("docker.logs.frame", ProtocolError):
        LogDecoder(framed=True).feed(b"\1\0\0\0" + (MAX_FRAME + 1).to_bytes(4, "big"))


def test_refuses_a_stream_that_does_not_exist() -> None:
    with refuses("docker.logs.frame", ProtocolError):
        LogDecoder(framed=True).feed(frame(b"x", 4))


@pytest.mark.parametrize("framed", [True, None])
def test_refuses_a_log_that_ends_within_a_frame(*, framed: bool | None) -> None:
    decoder = LogDecoder(framed=framed)
    decoder.feed(frame(b"whole") + frame(b"half")[:-1])
    with refuses("docker.logs.frame", ProtocolError):
        decoder.end()


def test_tells_the_engines_own_error() -> None:
    with refuses("docker.logs.failed", UnavailableError) as caught:
        LogDecoder(framed=True).feed(frame(b"error from daemon\xff", 3))
    assert "error from daemon" in caught.value.message
