"""What a queue's message does, free of any cloud: advance one deployment, and see to the next message."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec

from functions.deploy.store import NotFoundError, Schedule

if TYPE_CHECKING:  # who reads messages alone has no engine
    from functions.deploy.engine import Next

MAX_MESSAGE: Final = 1024
"""Bytes of a message: it holds a name."""

CLOCKS_APART: Final = 5
"""Seconds by which the clocks of a queue and of a runner may differ."""

Report = Callable[[str, str], None]
"""Takes a code and a sentence, for the log."""


class Advancing(Protocol):
    """The engine, as far as a worker uses it."""

    def advance(self, name: str) -> "Next":
        """See `functions.deploy.engine.Engine`."""
        ...


class _Message(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]


def encode_message(name: str) -> bytes:
    """Return the message that asks for a deployment to be advanced."""
    return msgspec.json.encode(_Message(name))


def handle_message(
    engine: Advancing, schedule: Schedule, body: bytes, report: Report, sent_at: int | None = None
) -> "Next | None":
    """Advance the deployment that a message names, and schedule the next call; returns what `advance` said.

    What can never succeed is reported and dropped, for None: `worker.message` for what is no message,
    `deploy.unknown` for a name without a deployment. Whatever else goes wrong is raised, and the queue
    delivers the message again; it does so too when this is killed between the step and the next message.

    Every writer of a record sends a message after it. So one that comes too early, and was sent (`sent_at`,
    unix seconds by the queue's clock) before the last write, has a successor, and ends here: else each
    message too many would be followed by others until the deployment rests.
    """
    try:
        name = _read(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        report("worker.message", f"dropped what is no message: {error}")
        return None
    try:
        after = engine.advance(name)
    except NotFoundError as error:
        if error.code != "deploy.unknown":
            raise
        report(error.code, f"dropped a message: {error.message}")
        return None
    if after.seconds is not None and not _has_successor(after, sent_at):
        schedule(name, after.seconds)
    return after


def _has_successor(after: "Next", sent_at: int | None) -> bool:
    return sent_at is not None and after.written_at is not None and sent_at + CLOCKS_APART < after.written_at


def _read(body: bytes) -> str:
    if len(body) > MAX_MESSAGE:
        raise msgspec.DecodeError(f"it has {len(body)} bytes, expected at most {MAX_MESSAGE}")
    return msgspec.json.decode(body, type=_Message).name
