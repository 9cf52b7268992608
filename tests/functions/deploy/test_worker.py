"""What a message does: a step and the next message; what cannot succeed is dropped, the rest comes again."""

import json
import subprocess
import sys

import pytest

from functions.deploy.engine import Next
from functions.deploy.record import Step
from functions.deploy.store import NotFoundError
from functions.deploy.worker import CLOCKS_APART, MAX_MESSAGE, encode_message, handle_message
from shared.errors import DstackError, StorageError
from tests.shared.refusal import refuses


class ScriptedEngine:
    """Says what it is told to."""

    def __init__(self, answer: Next | DstackError) -> None:
        self.answer = answer
        self.names: list[str] = []

    def advance(self, name: str) -> Next:
        self.names.append(name)
        if isinstance(self.answer, DstackError):
            raise self.answer
        return self.answer


class Desk:
    """A schedule and a log."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[str, int]] = []
        self.reports: list[tuple[str, str]] = []

    def schedule(self, name: str, seconds: int) -> None:
        self.scheduled.append((name, seconds))

    def report(self, code: str, message: str) -> None:
        self.reports.append((code, message))

    def handle(self, engine: ScriptedEngine, body: bytes, sent_at: int | None = None) -> Next | None:
        return handle_message(engine, self.schedule, body, self.report, sent_at)


def test_a_step_is_followed_by_the_next_message() -> None:
    desk, engine = Desk(), ScriptedEngine(Next(7, Step.LAUNCH))
    assert desk.handle(engine, encode_message("web")) == engine.answer
    assert (engine.names, desk.scheduled, desk.reports) == (["web"], [("web", 7)], [])


def test_a_next_step_that_is_due_is_scheduled_at_once() -> None:
    desk = Desk()
    desk.handle(ScriptedEngine(Next(0, Step.BUILD)), encode_message("web"))
    assert desk.scheduled == [("web", 0)]


def test_a_deployment_at_rest_gets_no_message() -> None:
    desk = Desk()
    assert desk.handle(ScriptedEngine(Next(None, Step.RUNNING)), encode_message("web")) is not None
    assert desk.scheduled == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"web"',
        b"{}",
        b'{"name": 7}',
        b'{"name": ""}',
        b'{"name": "\xff"}',
        b'{"name": "web"} {}',
        b"[" * 1000,
        json.dumps({"name": "x" * MAX_MESSAGE}).encode(),
    ],
)
def test_what_is_no_message_is_reported_and_dropped(body: bytes) -> None:
    desk, engine = Desk(), ScriptedEngine(Next(0, Step.BUILD))
    assert desk.handle(engine, body) is None
    assert (engine.names, desk.scheduled) == ([], [])
    assert [code for code, _ in desk.reports] == ["worker.message"]


def test_a_message_of_a_later_version_is_understood() -> None:
    desk = Desk()
    desk.handle(ScriptedEngine(Next(1, Step.BUILD)), b'{"name": "web", "why": "retry"}')
    assert desk.scheduled == [("web", 1)]


def test_a_message_for_nobody_is_reported_and_dropped() -> None:
    desk = Desk()
    unknown = NotFoundError("deploy.unknown", "there is no deployment 'web'")
    assert desk.handle(ScriptedEngine(unknown), encode_message("web")) is None
    assert (desk.scheduled, desk.reports) == (
        [],
        [("deploy.unknown", "dropped a message: " + unknown.message)],
    )


@pytest.mark.parametrize(
    "error", [NotFoundError("deploy.blob", "no blob"), StorageError("deploy.record", "unreadable")]
)
def test_any_other_failure_is_left_to_the_queue(error: DstackError) -> None:
    desk = Desk()
    with refuses(error.code, type(error)):
        desk.handle(ScriptedEngine(error), encode_message("web"))
    assert (desk.scheduled, desk.reports) == ([], [])


@pytest.mark.parametrize(
    ("sent_at", "written_at", "scheduled"),
    [
        (1000, 1000 + CLOCKS_APART, True),
        (1000, 1001 + CLOCKS_APART, False),
        (1000, None, True),  # it was not early: the step's runner sends the next one
        (None, 2000, True),  # the queue does not say
        (2000, 1000, True),  # a long wait in parts, or a message after the last write
    ],
)
def test_a_message_that_a_later_one_follows_ends_when_it_is_early(
    sent_at: int | None, written_at: int | None, *, scheduled: bool
) -> None:
    desk = Desk()
    desk.handle(
        ScriptedEngine(Next(60, Step.AWAIT_APPROVAL, written_at=written_at)), encode_message("web"), sent_at
    )
    assert desk.scheduled == ([("web", 60)] if scheduled else [])


def test_a_queue_that_takes_no_message_leaves_this_one_in_it() -> None:
    def full(name: str, seconds: int) -> None:
        raise StorageError("queue.full", f"{name} in {seconds} s")

    with refuses("queue.full", StorageError):
        handle_message(
            ScriptedEngine(Next(1, Step.BUILD)), full, encode_message("web"), lambda _code, _message: None
        )


def test_the_worker_loads_no_cloud() -> None:
    script = (
        "import sys, functions.deploy.worker, functions.deploy.reconcile; "
        "print(*(name for name in ('boto3', 'botocore', 'google.auth', 'aws_lambda_powertools') "
        "if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
