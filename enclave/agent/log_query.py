"""What may be asked of `/logs/<container>`, and how a line is written (spec guest-agent section 4)."""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Final

import msgspec

from enclave.agent.docker_logs import LogMessage
from shared.errors import ProtocolError

DEFAULT_TAIL: Final = "1000"
ALL: Final = "all"

_MAX_SECONDS: Final = (1 << 63) - 1
_MAX_DIGITS: Final = 19
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TRUE: Final = frozenset({"", "on", "yes", "true"})
_FALSE: Final = frozenset({"off", "no", "false"})

_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    # titles, links, device strings
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"
    r"|\x1b[ -/]*[0-~]"  # the short ones
)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are unix seconds, 0 for none; `tail` is a number of lines, or `all`."""

    since: int = 0
    until: int = 0
    tail: str = DEFAULT_TAIL
    follow: bool = False
    timestamps: bool = False
    text: bool = False
    bare: bool = False
    ansi: bool = False

    def engine_query(self) -> dict[str, str]:
        """Return what the container engine is asked."""
        return {
            "since": str(self.since),
            "until": str(self.until),
            "tail": self.tail,
            "follow": _word(self.follow),
            "timestamps": _word(self.timestamps),
        }


def read_log_request(query: Mapping[str, str], now: int) -> LogRequest:
    """Read a query; `now` is in unix seconds.

    Raises `ProtocolError`: `logs.since`, `logs.until` (with upstream's sentences), `logs.flag`.
    """
    return LogRequest(
        since=_time(query.get("since", ""), now, "since"),
        until=_time(query.get("until", ""), now, "until"),
        tail=_tail(query.get("tail", DEFAULT_TAIL)),
        follow=_flag(query, "follow"),
        timestamps=_flag(query, "timestamps"),
        text=_flag(query, "text"),
        bare=_flag(query, "bare"),
        ansi=_flag(query, "ansi"),
    )


def log_line(found: LogMessage, request: LogRequest) -> bytes:
    """Return a message as it was asked for: a line of JSON, or the message alone."""
    message = found.message.decode("utf-8", "replace") if request.text else b64encode(found.message).decode()
    if not request.bare:
        return msgspec.json.encode({"channel": found.channel, "message": message}) + b"\n"
    return (strip_escapes(message) if request.text and not request.ansi else message).encode()


def log_failure(message: str) -> bytes:
    """Return what stands in a log in place of more of it. It ends the body, and no line."""
    return msgspec.json.encode({"error": message})


def strip_escapes(text: str) -> str:
    """Return text without escapes, and without the controls that are neither tab nor line feed."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def _time(text: str, now: int, what: str) -> int:
    if not text:
        return 0
    digits, unit = (text, None) if text[-1].isdecimal() else (text[:-1], _UNITS.get(text[-1]))
    good = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS
    if not good or int(digits) > _MAX_SECONDS or (unit is None and digits is not text):
        raise ProtocolError(f"logs.{what}", f"Invalid {what}")
    return int(digits) if unit is None else max(now - int(digits) * unit, 0)


def _tail(text: str) -> str:
    # The engine takes what is no number for all lines.
    return text if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS - 1 else ALL


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in _TRUE | _FALSE:
        raise ProtocolError("logs.flag", f"Invalid {name}")
    return value in _TRUE


def _word(flag: bool) -> str:  # noqa: FBT001 - it is what is written
    return "true" if flag else "false"
