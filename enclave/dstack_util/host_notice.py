"""Telling the host how a boot goes (spec deploy section 7.2). Clouds have no host that listens."""

from typing import Literal, Protocol

NoticeKind = Literal["boot.progress", "boot.error", "instance.info", "shutdown.progress"]

MAX_PAYLOAD = 4096
"""Bytes; a host drops a longer payload and says that it took it."""


class Host(Protocol):
    """Who is told. Never raises: a boot does not depend on who watches it."""

    def notify(self, event: str, payload: str) -> None:
        """Tell one event."""
        ...


class NoHost:
    """Google Cloud, AWS and Nitro: nobody is there."""

    def notify(self, event: str, payload: str) -> None:
        """Tell nobody."""
        del event, payload
