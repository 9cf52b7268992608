"""Operators are told in the log, and at their own hook; a hook that fails holds nothing up."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from functions.governance.notice import Notice
from functions.governance.notifier import HOOK_REST, HOOK_SECONDS, Notifier, tell_cloud_logging
from shared.errors import UnavailableError
from shared.net.response import Response
from tests.shared.net.hanging import Clock

STOPPED = Notice(
    code="governance.stopped", message="web is stopped", severity="warning", facts={"name": "web"}
)


class Hook:
    """Takes the place of an HTTP client."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.bodies: list[Any] = []

    def request(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float
    ) -> Response:
        assert (method, url, timeout) == ("POST", "https://hook.example", HOOK_SECONDS)
        assert headers == {"Content-Type": "application/json"}
        self.bodies.append(json.loads(body))
        if not self.status:
            raise UnavailableError("net.timeout", "too slow")
        return Response(self.status, {}, b"")


def told(status: int, notice: Notice = STOPPED, url: str = "https://hook.example") -> tuple[Hook, list[str]]:
    hook, log = Hook(status), list[str]()
    Notifier(lambda one: log.append(one.code), hook, url)(notice)  # type: ignore[arg-type]
    return hook, log


def test_a_warning_goes_to_the_log_and_the_hook() -> None:
    hook, log = told(204)
    assert log == ["governance.stopped"]
    assert hook.bodies == [
        {
            "source": "dstack-governance",
            "code": "governance.stopped",
            "message": "web is stopped",
            "severity": "warning",
            "facts": {"name": "web"},
        }
    ]


def test_information_goes_to_the_log_alone() -> None:
    hook, log = told(204, Notice(code="governance.event", message="x"))
    assert (hook.bodies, log) == ([], ["governance.event"])
    assert told(204, STOPPED, "")[0].bodies == []


@pytest.mark.parametrize("status", [0, 302, 500])
def test_a_hook_that_fails_is_told_of_and_raises_nothing(status: int) -> None:
    assert told(status)[1] == ["governance.stopped", "governance.notify"]


def test_a_hook_that_times_out_takes_its_time_once_in_a_run() -> None:
    hook, log, clock = Hook(0), list[Notice](), Clock()
    tell = Notifier(log.append, hook, "https://hook.example", clock)  # type: ignore[arg-type]
    for _ in range(3):
        tell(STOPPED)
    assert len(hook.bodies) == 1
    assert [one.code for one in log] == ["governance.stopped", "governance.notify"] * 3
    hook.status = 204
    clock.now += HOOK_REST
    tell(STOPPED)
    assert len(hook.bodies) == 2
    assert log[-1] == STOPPED


def test_a_hook_that_refuses_at_once_is_told_on() -> None:
    hook, clock = Hook(500), Clock()
    tell = Notifier(lambda _: None, hook, "https://hook.example", clock)  # type: ignore[arg-type]
    for _ in range(3):
        tell(STOPPED)
    assert len(hook.bodies) == 3


def test_a_line_is_what_cloud_logging_reads(capsys: pytest.CaptureFixture[str]) -> None:
    tell_cloud_logging(Notice(code="a.b", message="x", severity="alarm"))
    line = capsys.readouterr().err
    assert json.loads(line) == {"code": "a.b", "message": "x", "severity": "CRITICAL", "facts": {}}
    assert line.endswith("}\n")
