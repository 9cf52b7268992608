"""The queue of a process of its own: what is called when, and what a failure changes."""

import threading

from functions.deploy.engine import Next
from functions.deploy.record import Step
from functions.deploy.store import NotFoundError
from functions.queues.in_process import InProcessSchedule
from shared.errors import DstackError, StorageError

WAIT = 20.0


class Runner:
    """Answers each call with the next of `answers`; `done` is set when there is none left."""

    def __init__(self, *answers: Next | DstackError) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []
        self.done = threading.Event()

    def __call__(self, name: str) -> Next:
        self.calls.append(name)
        answer = self.answers.pop(0)
        if not self.answers:
            self.done.set()
        if isinstance(answer, DstackError):
            raise answer
        return answer


AGAIN, END = Next(0, Step.BUILD), Next(None, Step.RUNNING)


class Clock:
    """Jumps when it is told to; a queue that waits is woken by the next call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_goes_on_until_there_is_nothing_to_do() -> None:
    runner = Runner(AGAIN, AGAIN, END)
    InProcessSchedule(runner)("web", 0)
    assert runner.done.wait(WAIT)
    assert runner.calls == ["web"] * 3


def test_calls_that_are_due_together_are_one() -> None:
    clock, runner = Clock(), Runner(END, END)
    schedule = InProcessSchedule(runner, clock=clock)
    for _ in range(5):
        schedule("web", 10)
    clock.now = 11
    schedule("other", 0)
    assert runner.done.wait(WAIT)
    assert sorted(runner.calls) == ["other", "web"]


def test_nothing_is_called_before_it_is_due() -> None:
    clock, runner = Clock(), Runner(END)
    schedule = InProcessSchedule(runner, clock=clock)
    schedule("later", 1000)
    schedule("now", 0)
    assert runner.done.wait(WAIT)
    assert runner.calls == ["now"]


def test_a_failure_is_told_and_tried_again_later() -> None:
    said: list[str] = []
    clock, told = Clock(), threading.Event()
    runner = Runner(StorageError("deploy.store", "the disk is full"), END)

    def report(code: str, _message: str) -> None:
        said.append(code)
        clock.now += 10
        told.set()

    schedule = InProcessSchedule(runner, report, clock=clock)
    schedule("web", 0)
    assert told.wait(WAIT)
    schedule("web", 0)
    assert runner.done.wait(WAIT)
    assert said == ["deploy.store"]
    assert runner.calls == ["web", "web"]


def test_a_name_that_is_gone_is_dropped() -> None:
    runner = Runner(NotFoundError("deploy.unknown", "there is none"), END)
    schedule = InProcessSchedule(runner)
    schedule("gone", 0)
    schedule("web", 0)
    assert runner.done.wait(WAIT)
    assert sorted(runner.calls) == ["gone", "web"]
