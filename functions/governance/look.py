"""The queue's messages: which contract to look at, and from which block on. They travel as names."""

import re
from typing import Final

import msgspec

from functions.deploy.worker import MAX_MESSAGE
from shared.errors import ProtocolError

_NAME: Final = re.compile(r"look:(0x[0-9a-f]{40}|all):([0-9]{1,19})")


class Look(msgspec.Struct, frozen=True):
    """A contract's address (20 bytes; None is all), and the block that must be known to a quorum."""

    address: bytes | None
    at_least: int

    @property
    def name(self) -> str:
        """What a queue of names takes."""
        return f"look:{'all' if self.address is None else f'0x{self.address.hex()}'}:{self.at_least}"


class _Message(msgspec.Struct, frozen=True):
    name: str


def read_message(body: bytes) -> str:
    """Return the name in a queue's message, and nothing for what is no message."""
    try:
        return msgspec.json.decode(body[: MAX_MESSAGE + 1], type=_Message).name
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def read_look(name: str) -> Look:
    """Return what a name asks. Raises `ProtocolError("governance.message")`."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ProtocolError(
            "governance.message", f"got the message {name[:80]!a}, expected look:ADDRESS:BLOCK"
        )
    address = None if found[1] == "all" else bytes.fromhex(found[1][2:])
    return Look(address, int(found[2]))
