"""The queue's messages: which contract to look at, and from which block on. They travel as names.

A look for which it is too early is sent anew, with how often that was done: the queue's own count, after
which a message is a dead letter, is left to what fails.
"""

import re
from typing import Final

import msgspec

from functions.deploy.worker import MAX_MESSAGE
from shared.errors import ProtocolError

_NAME: Final = re.compile(r"look:(0x[0-9a-f]{40}|all):([0-9]{1,19})(?::([0-9]{1,3}))?")


class Look(msgspec.Struct, frozen=True):
    """A contract's address (20 bytes; None is all), and the block that must be known to a quorum.

    `waits` is how often that was not so yet.
    """

    address: bytes | None
    at_least: int
    waits: int = 0

    @property
    def name(self) -> str:
        """What a queue of names takes."""
        where = "all" if self.address is None else f"0x{self.address.hex()}"
        return f"look:{where}:{self.at_least}" + (f":{self.waits}" if self.waits else "")

    @property
    def later(self) -> "Look":
        """The same look after one more wait."""
        return msgspec.structs.replace(self, waits=self.waits + 1)


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
            "governance.message", f"got the message {name[:80]!a}, expected look:ADDRESS:BLOCK[:WAITS]"
        )
    address = None if found[1] == "all" else bytes.fromhex(found[1][2:])
    return Look(address, int(found[2]), int(found[3] or 0))
