"""What the function remembers: deliveries and logs that were seen, how far it swept, what it gave up.

On AWS the first is Powertools' idempotency on DynamoDB (`dynamodb_state`), on Google Cloud Firestore
(`firestore_state`).
"""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

REMEMBER_SECONDS: Final = 7 * 86_400
"""Longer than any provider delivers again (Moralis gives up after a day)."""


class Cursor(msgspec.Struct, frozen=True):
    """The last block whose logs were replayed, with its hash in hex."""

    number: int
    hash: str


class Memory(Protocol):
    """Does things once by key, and keeps a cursor and dead letters."""

    def do(self, key: str, action: Callable[[], None]) -> bool:
        """Run `action` and remember that it was done; False where it was before.

        What raises is not remembered. Raises `UnavailableError("governance.busy")` while another is at it.
        """
        ...

    def forget(self, key: str) -> None:
        """Have a thing done again when it comes again. Raises as `do`, while another is at it."""
        ...

    def cursor(self) -> Cursor | None:
        """Return the cursor, None before the first sweep."""
        ...

    def move(self, cursor: Cursor) -> None:
        """Set the cursor. Of two sweeps at once either may win: both replayed what is below theirs."""
        ...

    def bury(self, message: str, code: str, now: int) -> None:
        """Keep a message that was tried too often, for somebody to look at."""
        ...
