"""Tells operators: a line of the log, and a POST to their own hook where they named one."""

import contextlib
import sys
from typing import Final

import msgspec

from functions.governance.notice import Notice, Notify
from shared.errors import DstackError
from shared.net.fetch import HttpClient

HOOK_SECONDS: Final = 3.0
"""A hook that is down must not take the time in which a machine is stopped."""


_SEVERITIES: Final = {"info": "INFO", "warning": "WARNING", "alarm": "CRITICAL"}


def tell_cloud_logging(notice: Notice) -> None:
    """Write a notice as Cloud Logging reads it from standard error."""
    fields = msgspec.to_builtins(notice) | {"severity": _SEVERITIES[notice.severity]}
    sys.stderr.write(msgspec.json.encode(fields).decode() + "\n")


class Notifier:
    """See `Notify`. `hook` is an https URL, or empty; it is told what is not mere information."""

    def __init__(self, log: Notify, http: HttpClient, hook: str = "") -> None:
        self._log = log
        self._http = http
        self._hook = hook

    def __call__(self, notice: Notice) -> None:
        """Tell one thing."""
        self._log(notice)
        if not self._hook or notice.severity == "info":
            return
        body = msgspec.json.encode({"source": "dstack-governance", **msgspec.to_builtins(notice)})
        with contextlib.suppress(DstackError):
            answer = self._http.request(
                "POST", self._hook, body, {"Content-Type": "application/json"}, timeout=HOOK_SECONDS
            )
            if answer.status < 300:
                return
        self._log(
            Notice(
                code="governance.notify", message=f"the hook did not take {notice.code}", severity="warning"
            )
        )
