"""The container engine's log stream, from bytes to messages (Docker's API, "Attach to a container").

A container without a terminal has frames: stream type, three zero bytes, length (u32, big endian), payload.
One with a terminal has its raw output, which is cut at line feeds here. Containers write what they like: what
is between frames is the engine's word, what is in them is theirs.
"""

from typing import Final, NamedTuple

from shared.errors import ProtocolError, UnavailableError

STDIN: Final = "stdin"
STDOUT: Final = "stdout"
STDERR: Final = "stderr"
CONSOLE: Final = "console"

MAX_FRAME: Final = 1 << 20
"""The engine cuts lines at 16 KiB before it stores them."""

MAX_CONSOLE_LINE: Final = 16 * 1024
"""A terminal's output without a line feed is handed on in such pieces."""

_HEADER: Final = 8
_CHANNELS: Final = (STDIN, STDOUT, STDERR)
_SYSTEM_ERROR: Final = 3  # the engine's own words, in place of more output
_SHOWN: Final = 200


class LogMessage(NamedTuple):
    """One piece of a container's output, its line feed included."""

    channel: str
    message: bytes


class LogDecoder:
    """Takes the body of the engine's answer piece by piece.

    `framed` is whether the engine said that there are frames; None is for engines of before API 1.42, which
    say the same of both forms: the first bytes decide then, once.
    """

    def __init__(self, *, framed: bool | None) -> None:
        self._framed = framed
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[LogMessage]:
        """Return the messages that are complete now.

        Raises `ProtocolError("docker.logs.frame")`, and `UnavailableError("docker.logs.failed")` when the
        engine ends the stream with an error of its own.
        """
        self._waiting += data
        if self._framed is None:
            self._framed = self._looks_framed()
        if self._framed is None:
            return []
        return self._frames() if self._framed else self._lines()

    def end(self) -> list[LogMessage]:
        """Return what is left. Raises `ProtocolError("docker.logs.frame")` for half a frame."""
        if not self._waiting:
            return []
        if self._framed is not False:
            raise ProtocolError("docker.logs.frame", "the container engine's log stream ends within a frame")
        rest = bytes(self._waiting)
        self._waiting.clear()
        return [LogMessage(CONSOLE, rest)]

    def _looks_framed(self) -> bool | None:
        start = bytes(self._waiting[:4])
        if any(start[1:]) or (start and start[0] > _SYSTEM_ERROR):
            return False
        return True if len(start) == 4 else None

    def _frames(self) -> list[LogMessage]:
        found = []
        position = 0
        while len(self._waiting) - position >= _HEADER:
            kind = self._waiting[position]
            length = int.from_bytes(self._waiting[position + 4 : position + _HEADER], "big")
            if kind > _SYSTEM_ERROR or length > MAX_FRAME:
                raise ProtocolError(
                    "docker.logs.frame",
                    f"a log frame has type {kind} and {length} bytes, expected at most {MAX_FRAME}",
                )
            end = position + _HEADER + length
            if end > len(self._waiting):
                break
            payload = bytes(self._waiting[position + _HEADER : end])
            position = end
            if kind == _SYSTEM_ERROR:
                raise UnavailableError(
                    "docker.logs.failed",
                    f"the container engine says {payload[:_SHOWN].decode('ascii', 'replace')!a}",
                )
            found.append(LogMessage(_CHANNELS[kind], payload))
        del self._waiting[:position]
        return found

    def _lines(self) -> list[LogMessage]:
        found = []
        position = 0
        while True:
            feed = self._waiting.find(b"\n", position, position + MAX_CONSOLE_LINE)
            if feed >= 0:
                end = feed + 1
            elif len(self._waiting) - position >= MAX_CONSOLE_LINE:
                end = position + MAX_CONSOLE_LINE
            else:
                break
            found.append(LogMessage(CONSOLE, bytes(self._waiting[position:end])))
            position = end
        del self._waiting[:position]
        return found
