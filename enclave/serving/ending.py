"""When nobody waits any more for an answer that has no end of its own, such as a log that is followed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = "ending"
"""Where an application finds the `Ending` of its connection: in its scope's `state`, where no TLS is."""


class Ending:
    """Comes once for a connection: its peer has ended its side, or the server begins to stop.

    An answer that ends by itself does not ask for it. All of it happens on the event loop's thread.
    """

    def __init__(self) -> None:
        self.came = False
        self._watchers: list[Callable[[], None]] = []

    @property
    def is_watched(self) -> bool:
        """Whether an answer is being given that ends with it."""
        return bool(self._watchers)

    def come(self) -> None:
        """Tell those who watch; a second time changes nothing."""
        if self.came:
            return
        self.came = True
        for watcher in tuple(self._watchers):
            watcher()

    @contextmanager
    def calling(self, watcher: Callable[[], None]) -> Iterator[None]:
        """Call `watcher` when it comes, or at once where it has, unless the block is over."""
        self._watchers.append(watcher)
        try:
            if self.came:
                watcher()
            yield
        finally:
            self._watchers.remove(watcher)
