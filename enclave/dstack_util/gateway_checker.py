"""`gateway-checker`: keeps a guest registered for as long as it runs (spec deploy section 6.1)."""

import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from enclave.dstack_util.machine import Machine
from enclave.dstack_util.tunnel import is_configured, latest_handshake
from enclave.log import log_event
from shared.errors import DstackError

# Seconds, all of them.
POLL: Final = 10.0
REFRESH: Final = 180.0
SILENCE: Final = 180
"""Without a handshake. WireGuard makes one every two minutes where anything is sent, and keepalives are."""

FIRST_DELAY: Final = 30.0
LONGEST_DELAY: Final = 120.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Time: `wall` is in unix seconds, as handshakes are; `monotonic` decides what is due."""

    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class GatewayChecker:
    """Looks every ten seconds whether something is due. `register(force)` registers once.

    A guest that no gateway knows yet tries after 30 seconds, then after 60, then every 120. One that is known
    registers again every 180 seconds, and makes its tunnel anew when no node shook hands for as long; that at
    most once in 180 seconds. A registration that fails is logged: the next one may not.
    """

    def __init__(self, machine: Machine, register: Callable[[bool], None], pace: Pace) -> None:
        self._machine = machine
        self._register = register
        self._pace = pace
        self._registered = self._forced = pace.monotonic()
        self._delay = FIRST_DELAY
        self._due = self._registered + FIRST_DELAY

    def run(self) -> NoReturn:
        """Go on until the process is ended."""
        while True:
            self._pace.sleep(POLL)
            self.check()

    def check(self) -> None:
        """Do what is due now."""
        now = self._pace.monotonic()
        if not is_configured(self._machine):
            if now >= self._due:
                self._try(force=True)
                self._delay = min(2 * self._delay, LONGEST_DELAY)
                self._due = self._pace.monotonic() + self._delay
            return
        self._delay = FIRST_DELAY
        silent = self._pace.wall() - latest_handshake(self._machine) >= SILENCE
        if silent and now - self._forced >= SILENCE:
            self._try(force=True)
        elif now - self._registered >= REFRESH:
            self._try(force=False)

    def _try(self, *, force: bool) -> None:
        try:
            self._register(force)
        except DstackError as error:
            log_event("gateway.refresh_failed", code=error.code, message=error.message)
        self._registered = self._pace.monotonic()
        if force:
            self._forced = self._registered
