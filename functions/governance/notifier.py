"""Tells operators: a line of the log, and a POST to their own hook where they named one."""

import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from functions.governance.notice import Notice, Notify
from shared.errors import DstackError, UnavailableError
from shared.net.breaker import Breaker
from shared.net.fetch import HttpClient

HOOK_SECONDS: Final = 3.0
"""A hook that is down must not take the time in which a machine is stopped."""

HOOK_REST: Final = 60.0
"""For which a hook that was slow to fail is told nothing: as long as a run may be, and the log has it all."""

_SEVERITIES: Final = {"info": "INFO", "warning": "WARNING", "alarm": "CRITICAL"}


def tell_cloud_logging(notice: Notice) -> None:
    """Write a notice as Cloud Logging reads it from standard error."""
    fields = msgspec.to_builtins(notice) | {"severity": _SEVERITIES[notice.severity]}
    sys.stderr.write(msgspec.json.encode(fields).decode() + "\n")


class Notifier:
    """See `Notify`. `hook` is an https URL, or empty; it is told what is not mere information.

    `clock` is monotonic seconds.
    """

    def __init__(
        self, log: Notify, http: HttpClient, hook: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._http = http
        self._hook = hook
        self._breaker = Breaker("the hook", HOOK_REST, clock)

    def __call__(self, notice: Notice) -> None:
        """Tell one thing."""
        self._log(notice)
        if not self._hook or notice.severity == "info":
            return
        try:
            self._breaker.run(lambda: self._tell(notice))
        except DstackError as error:
            self._log(
                Notice(
                    code="governance.notify",
                    message=f"the hook did not take {notice.code}: {error.message}",
                    severity="warning",
                )
            )

    def _tell(self, notice: Notice) -> None:
        body = msgspec.json.encode({"source": "dstack-governance", **msgspec.to_builtins(notice)})
        answer = self._http.request(
            "POST", self._hook, body, {"Content-Type": "application/json"}, timeout=HOOK_SECONDS
        )
        if answer.status >= 300:
            raise UnavailableError("governance.notify", f"it answered http {answer.status}")
